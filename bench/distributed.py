"""Compare training steps by one process and by several: examples per second, their ratio, and the memory of a rank.

    python bench/distributed.py --lengths lengths.json --only plain ranks            # one GPU, then all, FP8 base
    python bench/distributed.py --lengths lengths.json --only launched fsdp          # accelerate launch; bf16, divided
    python bench/distributed.py --device cpu --gpus 2 --only plain ranks fsdp        # gloo, a small model

The parts are:
- `plain`: one process, as `spantune train` starts it;
- `launched`: one process started by `accelerate launch`;
- `ranks`: one process on each GPU, started by torchrun;
- `fsdp`: like `ranks`, with the layers of a bf16 base divided over the ranks.

On a GPU the model has Phi-4's shape and random weights. `--lengths` and the examples are those of `train_step.py`. One
step has `--examples` examples, counted over all ranks. Times are medians of whole steps after a warm-up, with the
device synchronised. The parts share `--seconds`. A bench that reaches this limit, or that is stopped, reports the steps
measured so far.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from processes import run_parts  # noqa: E402
from train_step import ALPHA, PACK_TOKENS, RANK, phi4  # noqa: E402
from training_steps import GIB, PREFIX, Memory, Steps, steps_of  # noqa: E402

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
    options.add_argument("--pack-tokens", type=int, help="most tokens of a pack; if not given, as training chooses")
    options.add_argument("--seconds", type=float, default=230.0, help="of all parts together")
    options.add_argument("--part", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.part:
        _part(chosen)
        return
    gpus = chosen.gpus or max(1, torch.cuda.device_count())
    commands = {part: _command(chosen, part, gpus if part in ("ranks", "fsdp") else 1) for part in chosen.only}
    rows = run_parts(commands, chosen.seconds)
    print(json.dumps(rows))
    print(_table(rows), flush=True)


def _command(chosen: argparse.Namespace, part: str, ranks: int) -> list[str]:
    script = [str(Path(__file__).resolve()), "--part", part, "--device", chosen.device]
    for name in ("examples", "steps", "warm", "layers", "keep"):
        script += [f"--{name}", str(getattr(chosen, name))]
    script += ["--pack-tokens", str(chosen.pack_tokens)] if chosen.pack_tokens else []
    script += ["--lengths", str(chosen.lengths.resolve())] if chosen.lengths else []
    if part == "plain":
        return [sys.executable, *script]
    if part == "launched":
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
        device = ["--cpu"] if chosen.device == "cpu" else []
        return [*launch, *device, "--mixed_precision", "no", "--dynamo_backend", "no", *script]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *script]


def _table(rows: dict[str, dict[str, Any]]) -> str:
    base = rows.get("plain", {}).get("examples_per_s")
    columns = ("ranks", "pack_tokens", "ms_per_step", "examples_per_s", "first_s", "balance", "base_gib", "peak_gib")
    lines = [f"| part | {' | '.join(columns)} | ratio to plain |", "|---" * (len(columns) + 2) + "|"]
    for part, row in rows.items():
        ratio = round(row["examples_per_s"] / base, 3) if base and "examples_per_s" in row else "–"
        lines.append(f"| {part} | {' | '.join(str(row.get(key, '–')) for key in columns)} | {ratio} |")
    return "\n".join(lines)


def _part(chosen: argparse.Namespace) -> None:
    """Take the training steps of one part as one of its ranks; rank 0 prints a JSON line after every step."""
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
    model, least, notes = (_on_gpu if chosen.device == "cuda" else _on_cpu)(chosen, ranks)
    size = chosen.pack_tokens or _pack_tokens(chosen, least, ranks)
    step = Steps(model, steps_of(chosen), size, ranks=ranks)
    notes |= {"part": chosen.part, "ranks": ranks.size, "ready_s": round(time.perf_counter() - started, 1)}
    notes |= {"pack_tokens": size}
    cuda, seconds, balances = chosen.device == "cuda", [], []
    memory = Memory(model)
    for number in range(chosen.warm + chosen.steps):
        if cuda:
            memory.begin()
        began = time.perf_counter()
        tokens = step()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        of_all = [count for (count,) in ranks.table([tokens])]
        balances.append(max(of_all) * len(of_all) / sum(of_all))
        if number < chosen.warm:
            continue
        if cuda:
            memory.end()
        median = statistics.median(seconds[chosen.warm :])
        row = notes | {
            "steps": number + 1 - chosen.warm,
            "ms_per_step": round(1000 * median, 1),
            "fastest_ms": round(1000 * min(seconds[chosen.warm :]), 1),
            "examples_per_s": round(chosen.examples / median, 2),
            "first_s": round(seconds[0], 1),
            "all_ms": [round(1000 * second) for second in seconds],
            "balance": round(statistics.mean(balances), 4),
            "peak_gib": round(memory.peak / GIB, 2) if cuda else None,
        }
        if ranks.is_main:
            print(json.dumps(row), flush=True)


def _pack_tokens(chosen: argparse.Namespace, least: int, ranks: Any) -> int:
    """Return the most tokens of a pack that `spantune train` would choose on a GPU with enough memory."""
    from spantune.training.pack_size import Load, largest_packs

    if chosen.device == "cpu" or ranks.in_lockstep:
        return least
    own = [len(example.ids) - PREFIX for step in itertools.islice(steps_of(chosen), 8) for example in step]
    return largest_packs(Load(own, PREFIX, chosen.examples, ranks.size), least, lambda size: True)


def _on_gpu(chosen: argparse.Namespace, ranks: Any) -> tuple[Any, int, dict[str, Any]]:
    """Return a model of Phi-4's shape ready for training, the default size of packs, and the GiB of the base."""
    from spantune.core import config
    from spantune.models import attach, compile_layers, divide_layers

    model, _ = attach(phi4(chosen, "bf16" if ranks.in_lockstep else "fp8"), config.Lora(rank=RANK, alpha=ALPHA))
    compile_layers(model, chosen.keep)
    model.enable_input_require_grads()
    if ranks.in_lockstep:
        divide_layers(model, torch.device("cuda", torch.cuda.current_device()), ranks.size)
        torch.cuda.empty_cache()
    held = round(torch.cuda.memory_allocated() / GIB, 2)
    return model, PACK_TOKENS, {"base_gib": held, "device": torch.cuda.get_device_name()}


def _on_cpu(chosen: argparse.Namespace, ranks: Any) -> tuple[Any, int, dict[str, Any]]:
    """Return the same as `_on_gpu` for a small fp32 model of Phi-4's architecture, with random weights."""
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
    return model, 1024, notes


if __name__ == "__main__":
    main()
