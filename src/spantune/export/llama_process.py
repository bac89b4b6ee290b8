"""The process of xllamacpp's server: `python -m spantune.export.llama_process WEIGHTS PORT TOKENS SLOTS [ADAPTER]`.

It is a process of its own, since llama.cpp ends its process on a fatal error. It ends when its standard input ends, so
that it never outlives the command that started it.
"""

from __future__ import annotations

import os
import sys


def main(weights: str, port: str, tokens: str, slots: str, adapter: str | None = None) -> None:
    """Serve `weights` until standard input ends; `tokens` is the number of cache slots for all `slots` together."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = weights
    params.port, params.n_ctx, params.n_parallel = int(port), int(tokens), int(slots)
    params.swa_full = True  # a common prefix of prompts is then computed once, also with a sliding window
    params.warmup = False
    if hasattr(os, "sched_getaffinity") and (cores := len(os.sched_getaffinity(0))) < (os.cpu_count() or 1):
        params.cpuparams.n_threads = cores  # llama.cpp counts the machine's cores, of which a container may have fewer
    if adapter is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    server = xllamacpp.Server(params)
    sys.stdin.read()
    del server


if __name__ == "__main__":
    main(*sys.argv[1:])
