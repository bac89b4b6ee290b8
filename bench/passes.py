"""Measure the milliseconds of a decoding pass by its width, and its kernels, at Phi-4's shape on one GPU.

    python bench/random_phi4.py FOLDER --tokenizer-only
    python bench/passes.py FOLDER --base bf16 --compile off on
    python bench/passes.py FOLDER --base fp8 --widths 16 256 --kernels 20

The weights are random; the fp8 and nf4 bases have an adapter of rank 64 beside them. Every row has a context of
`--context` tokens and feeds `--each` tokens, so that a pass of width 256 has 64 rows. Progress is printed to stderr,
and the result as one JSON object per line. Each base takes about a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from extract import _random

from spantune.core import config
from spantune.extraction import Forward
from spantune.extraction.compiling import is_worth_compiling
from spantune.extraction.fixed_passes import Shape, fitting
from spantune.extraction.model_runner import Part

KINDS = {
    "attention": ("_attend", "_join"),
    "products": ("gemm", "cutlass", "nvjet", "cublas", "splitk", "gemv"),
    "compiled": ("triton_",),
}


def main() -> None:
    """Measure the base with plain layers, compiled layers or both."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--base", choices=["bf16", "fp8", "fp8-merged", "nf4"], default="bf16")
    options.add_argument("--compile", nargs="+", choices=["off", "on"], default=["off", "on"])
    options.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128, 256, 384, 512])
    options.add_argument("--context", type=int, default=340)
    options.add_argument("--each", type=int, default=4, help="tokens that a row feeds")
    options.add_argument("--kernels", type=int, default=0, help="list as many kernels of the last width")
    chosen = options.parse_args()
    model = _random(chosen.folder, torch.device("cuda"), chosen.base).eval().requires_grad_(False)
    for way in chosen.compile:
        for line in measured(model, way, chosen):
            print(json.dumps({"base": chosen.base, "compile": way, **line}), flush=True)


@torch.inference_mode()
def measured(model: Any, way: Any, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the figures of each width, with compiled layers (`way` is "on") or plain ones ("off")."""
    print(f"{chosen.base}, compile {way}", file=sys.stderr, flush=True)
    rows = max(chosen.widths) // chosen.each
    forward = Forward(model, Shape(rows, 1024, fitting(max(chosen.widths))))
    began, lines = time.perf_counter(), []
    if is_worth_compiling(model, config.Extract(compile=way), is_bulk=False):
        forward.compile()
        lines.append({"seconds_to_compile": round(time.perf_counter() - began, 1)})
    numbers = [forward.cache.open() for _ in range(rows)]
    for number in numbers:
        forward.feed([Part(number, 0, [5] * chosen.context)], [0])
    for width in chosen.widths:
        one_pass(forward, numbers, width, chosen)
        lines.append({"width": width, **kernels(forward, numbers, width, chosen)})
    return lines


def one_pass(forward: Forward, numbers: list[int], width: int, chosen: argparse.Namespace) -> None:
    """Compute one pass of `width` tokens, then release the cache slots that it has filled."""
    used = numbers[: max(1, width // chosen.each)]
    each = min(chosen.each, width)
    counts = {number: len(forward.cache._held[number]) for number in used}
    forward.feed([Part(number, chosen.context, [7] * each) for number in used], range(len(used)))
    for number, count in counts.items():
        held = forward.cache._held[number]
        forward.cache._free += held[count:][::-1]
        del held[count:]


def kernels(forward: Forward, numbers: list[int], width: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """Return the milliseconds of a pass, and the milliseconds and launches of each kind of its kernels."""
    from torch.profiler import ProfilerActivity, profile

    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    events[0].record()
    for _ in range(10):
        one_pass(forward, numbers, width, chosen)
    events[1].record()
    events[1].synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        one_pass(forward, numbers, width, chosen)
        torch.cuda.synchronize()
    ms: dict[str, float] = defaultdict(float)
    launches: dict[str, int] = defaultdict(int)
    averages = [one for one in seen.key_averages() if one.device_time_total]
    for one in averages:
        kind = next((kind for kind, names in KINDS.items() if any(name in one.key for name in names)), "other")
        ms[kind] += one.self_device_time_total / 1000
        launches[kind] += one.count
    found = {
        "used_width": forward._width(width),
        "ms": round(events[0].elapsed_time(events[1]) / 10, 2),
        "kernels_ms": {kind: round(value, 2) for kind, value in sorted(ms.items())},
        "launches": dict(sorted(launches.items())),
    }
    if chosen.kernels and width == chosen.widths[-1]:
        most = sorted(averages, key=lambda one: -one.self_device_time_total)[: chosen.kernels]
        found["kernels"] = [[one.key[:90], one.count, round(one.self_device_time_total / 1000, 3)] for one in most]
    return found


if __name__ == "__main__":
    main()
