"""Training steps by one process and by several: examples a second, their ratio, and the memory of a rank.

    python bench/distributed.py --lengths lengths.json --only plain ranks            # one GPU, then all, FP8 base
    python bench/distributed.py --lengths lengths.json --only launched fsdp          # accelerate launch; bf16, divided
    python bench/distributed.py --device cpu --gpus 2 --only plain ranks fsdp        # gloo, a small model

`plain` is one process as `spantune train` starts it, `launched` the same through `accelerate launch`, `ranks` one
process on each GPU through torchrun, `fsdp` the same with the layers of a bf16 base divided over them. On a GPU the
model has Phi-4's shape and random weights; `--lengths` and the examples are those of `train_step.py`. A step has
`--examples` examples over all ranks. Times are medians of whole steps after a warm-up, the device synchronised. Each
part is printed when it is done; the bench ends after `--seconds`, or when it is stopped, with what is measured so far.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from train_step import ALPHA, GIB, RANK, RATE, phi4, steps_of  # noqa: E402

PARTS = ("plain", "launched", "ranks", "fsdp")


def main() -> None:
    """Measure the parts in turn, each in processes of its own, and print a table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--gpus", type=int, help="processes of `ranks` and `fsdp`; one for each GPU if not given")
    options.add_argument("--only", nargs="+", choices=PARTS, default=["plain", "ranks"])
    options.add_argument("--lengths", type=Path)
    options.add_argument("--examples", type=int, default=64)
    options.add_argument("--steps", type=int, default=8)
    options.add_argument("--warm", type=int, default=2)
    options.add_argument("--layers", type=int, default=40)
    options.add_argument("--keep", default="some", choices=["none", "some", "most"])
    options.add_argument("--seconds", type=float, default=230.0)
    options.add_argument("--part", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.part:
        _part(chosen)
        return
    signal.signal(signal.SIGTERM, _stop)
    gpus = chosen.gpus or max(1, torch.cuda.device_count())
    end = time.monotonic() + chosen.seconds
    rows: dict[str, dict[str, Any]] = {}
    for part in chosen.only:
        ranks = gpus if part in ("ranks", "fsdp") else 1
        rows[part] = _process(_command(chosen, part, ranks), max(1.0, end - time.monotonic()))
        print(json.dumps({part: rows[part]}), flush=True)
        if rows[part].get("stopped"):
            break
    print(_table(rows), flush=True)


def _command(chosen: argparse.Namespace, part: str, ranks: int) -> list[str]:
    script = [str(Path(__file__).resolve()), "--part", part, "--device", chosen.device]
    for name in ("examples", "steps", "warm", "layers", "keep"):
        script += [f"--{name}", str(getattr(chosen, name))]
    script += ["--lengths", str(chosen.lengths.resolve())] if chosen.lengths else []
    if part == "plain":
        return [sys.executable, *script]
    if part == "launched":
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
        device = ["--cpu"] if chosen.device == "cpu" else []
        return [*launch, *device, "--mixed_precision", "no", "--dynamo_backend", "no", *script]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *script]


def _process(command: list[str], seconds: float) -> dict[str, Any]:
    """What the part says in its last JSON line so far; it is ended after so many seconds."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, text=True)
        note = {}
        try:
            process.wait(seconds)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as reason:
            note = {"ended_early" if isinstance(reason, subprocess.TimeoutExpired) else "stopped": True}
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        output.seek(0), errors.seek(0)
        lines = [line for line in output.read().splitlines() if line.startswith("{")]
        text = errors.read()
    if not lines or (process.returncode and not note):
        note["error"] = text[-3000:]
    return (json.loads(lines[-1]) if lines else {}) | note


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _table(rows: dict[str, dict[str, Any]]) -> str:
    base = rows.get("plain", {}).get("examples_per_s")
    columns = ("ranks", "ms_per_step", "examples_per_s", "first_s", "balance", "base_gib", "peak_gib")
    lines = [f"| part | {' | '.join(columns)} | ratio to plain |", "|---" * (len(columns) + 2) + "|"]
    for part, row in rows.items():
        ratio = round(row["examples_per_s"] / base, 3) if base and "examples_per_s" in row else "–"
        lines.append(f"| {part} | {' | '.join(str(row.get(key, '–')) for key in columns)} | {ratio} |")
    return "\n".join(lines)


def _part(chosen: argparse.Namespace) -> None:
    """Take the steps of one part in this process, one of its ranks; rank 0 prints a JSON line after every step."""
    from spantune.core import parse_config
    from spantune.training import join

    strategy = "fsdp" if chosen.part == "fsdp" else "ddp"
    recipe = parse_config(
        {
            "model": {"source": "none", "base": "bf16" if strategy == "fsdp" else "auto", "device": chosen.device},
            "task": {"labels": ["a"]},
            "data": {"train": "none"},
            "distributed": {"strategy": strategy, "timeout_minutes": 5},
        }
    )
    started, ranks = time.perf_counter(), join(recipe)
    torch.manual_seed(0)
    step, work, notes = (_on_gpu if chosen.device == "cuda" else _on_cpu)(chosen, ranks)
    notes |= {"part": chosen.part, "ranks": ranks.size, "ready_s": round(time.perf_counter() - started, 1)}
    cuda, seconds, balances = chosen.device == "cuda", [], []
    for number in range(chosen.warm + chosen.steps):
        examples = next(work)
        began = time.perf_counter()
        tokens = step(examples)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        of_all = [count for (count,) in ranks.table([tokens])]
        balances.append(max(of_all) * len(of_all) / sum(of_all))
        if number < chosen.warm:
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            continue
        median = statistics.median(seconds[chosen.warm :])
        row = notes | {
            "steps": number + 1 - chosen.warm,
            "ms_per_step": round(1000 * median, 1),
            "fastest_ms": round(1000 * min(seconds[chosen.warm :]), 1),
            "examples_per_s": round(chosen.examples / median, 2),
            "first_s": round(seconds[0], 1),
            "balance": round(statistics.mean(balances), 4),
            "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2) if cuda else None,
        }
        if ranks.is_main:
            print(json.dumps(row), flush=True)


def _on_gpu(chosen: argparse.Namespace, ranks: Any) -> tuple[Callable[[list[Any]], int], Iterator[list[Any]], Any]:
    """The step of `spantune train` on Phi-4's shape, its examples, and what the base takes."""
    from spantune.core import config
    from spantune.models import attach, compile_layers, divide_layers

    model, _ = attach(phi4(chosen, "bf16" if ranks.in_lockstep else "fp8"), config.Lora(rank=RANK, alpha=ALPHA))
    compile_layers(model, chosen.keep)
    model.enable_input_require_grads()
    if ranks.in_lockstep:
        divide_layers(model, torch.device("cuda", torch.cuda.current_device()), ranks.size)
        torch.cuda.empty_cache()
    held = round(torch.cuda.memory_allocated() / GIB, 2)
    return _step(model, ranks, 4096), steps_of(chosen), {"base_gib": held, "device": torch.cuda.get_device_name()}


def _on_cpu(chosen: argparse.Namespace, ranks: Any) -> tuple[Callable[[list[Any]], int], Iterator[list[Any]], Any]:
    """The same on a small model of Phi-4's kind in fp32, with random weights."""
    from random_phi4 import CONFIG
    from transformers import AutoConfig, AutoModelForCausalLM

    from spantune.core import config
    from spantune.models import NAME, attach, divide_layers

    small = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape = {key: value for key, value in CONFIG.items() if key not in ("model_type", "torch_dtype", "architectures")}
    model_config = AutoConfig.for_model("phi3", **{**shape, **small, "num_hidden_layers": min(4, chosen.layers)})
    model = AutoModelForCausalLM.from_config(model_config, attn_implementation="sdpa", trust_remote_code=False)
    model.set_attn_implementation(NAME)
    model, _ = attach(model, config.Lora(rank=8, alpha=ALPHA))
    if ranks.in_lockstep:
        divide_layers(model, torch.device("cpu"), ranks.size)
    notes = {"base_gib": None, "device": f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} threads a rank"}
    return _step(model, ranks, 1024), steps_of(chosen), notes


def _step(model: Any, ranks: Any, budget: int) -> Callable[[list[Any]], int]:
    """The step of `spantune train`, collating, reducing, clipping and the guard included; returns its own tokens."""
    from spantune.core import config
    from spantune.encoding import shared_prefix
    from spantune.training import Collator, StepGuard, StepRunner

    settings = config.Train(learning_rate=RATE)
    collator = Collator(settings, (), budget, 0)
    runner = StepRunner(model.train(), collator, settings, StepGuard("stop"), ranks=ranks)
    runner.align()
    numbers = itertools.count(1)

    def step(examples: list[Any]) -> int:
        collator.prefix = examples[0].ids[: shared_prefix(examples)]
        batch = collator(examples)
        runner.run(batch, next(numbers), 1.0)
        return batch.tokens

    return step


if __name__ == "__main__":
    main()
