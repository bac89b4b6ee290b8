"""Measure one optimizer step over 16 examples: the tutorial's recipe, spantune, and optionally a peer's script.

    python bench/train_step.py --lengths lengths.json                    # Phi-4's shape on one GPU, random weights
    python bench/train_step.py --only fp8 --keep none some most         # the curve of memory against time
    python bench/train_step.py --only fp8-spans fp8-spans-instruction   # reading spans instead of writing
    python bench/train_step.py --device cpu --write                      # the embedded model on the bundled corpus
    python bench/train_step.py --peer "python unsloth_peer.py --padding-free"

Each part runs in a process of its own. Times are medians of whole optimizer steps after a warm-up, with the device
synchronised. The time of the first step, which includes compilation, is a column of its own. On a GPU the token ids are
random, since speed and memory do not depend on them. `--lengths` is a JSON list of [text, answer] token counts; without
it, lengths are drawn with CMeEE's means, 71 and 88. Examples of reading spans have no answer; they have 0.75 characters
per token, as Chinese has with Phi-4's vocabulary, and four entities per text. A peer's script prints one JSON line with
`ms_per_step` and `peak_gib`.

On a CPU both ways take the same examples of the bundled corpus. The loss of `ours` is on all answer tokens, as in the
tutorial; that of `choices` is where the grammar allows more than one token. The memory peak is that of the process.

The parts share `--minutes`. A part that reaches its limit reports the median of the steps that it has, and so does a
bench that is stopped (Ctrl-C, SIGTERM). Progress is printed to stderr. `--write` writes the table with date, hardware,
commit and command into `bench/results/`.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from processes import run_parts
from training_steps import GIB, PREFIX, RATE, TYPES, Memory, Steps, read_steps_of, steps_of

CUT = 384
RANK, ALPHA = 64, 16
PACK_TOKENS = 4096
GROUPED = 49 / 92  # answer tokens in `grouped` per answer token in `jsonl`, of CMeEE with Phi-4's vocabulary
AS_WRITTEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BASES = ("bf16", "fp8", "nf4", "int8")


def main() -> None:
    """Measure the parts of the command line and print a table or JSON."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument(
        "--only",
        nargs="+",
        help="seed, seed-all, bf16, nf4, fp8, fp8-grouped, fp8-spans, fp8-spans-instruction on a GPU; "
        "seed, ours, choices on a CPU",
    )
    options.add_argument(
        "--keep", nargs="+", default=["some"], help="none, some, fp8, most: what layers keep for backward"
    )
    options.add_argument("--lengths", type=Path)
    options.add_argument("--examples", type=int, default=16)
    options.add_argument("--steps", type=int, default=12)
    options.add_argument("--layers", type=int, default=40)
    options.add_argument("--pack-tokens", type=int, default=PACK_TOKENS, help="most tokens of a pack")
    options.add_argument("--optimizer", default="adamw", choices=["adamw", "adamw_8bit"])
    options.add_argument("--peer", help="command of a peer's script")
    options.add_argument("--no-compile", action="store_true")
    options.add_argument("--no-graphs", action="store_true", help="launch every kernel of a step by itself")
    options.add_argument("--keep-table", action="store_true", help="keep the token embeddings on the GPU")
    options.add_argument("--profile", action="store_true", help="print the kernels of one step")
    options.add_argument("--minutes", type=float, default=5, help="of all parts together")
    options.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options.add_argument("--write", action="store_true", help="write the table into bench/results")
    options.add_argument("--part", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.part:
        print(json.dumps(PARTS[chosen.device](chosen)), flush=True)
        return
    wanted = chosen.only or {"cuda": ["seed", "seed-all", "bf16", "fp8"], "cpu": ["seed", "ours"]}[chosen.device]
    parts = [(name, keep) for name in wanted for keep in (chosen.keep if _is_ours(name) else ["none"])]
    commands = {
        f"{name}, keep {keep}" if _is_ours(name) else name: [*_ourselves(chosen), "--part", name, "--keep", keep]
        for name, keep in parts
    }
    if chosen.peer:
        commands["peer"] = shlex.split(chosen.peer)
    found = run_parts(commands, chosen.minutes * 60)
    for row in found.values():
        for other in ("seed", "peer"):
            if "ms_per_step" in found.get(other, {}) and "ms_per_step" in row:
                row[f"ratio_to_{other}"] = round(found[other]["ms_per_step"] / row["ms_per_step"], 2)
    if chosen.write:
        _write(chosen, found)
    print(json.dumps(found) if chosen.json else _table(found))


def _table(found: dict[str, dict[str, Any]]) -> str:
    columns = {
        "ms_per_step": "ms a step",
        "replayed_ms": "without captures",
        "host_ms": "host ms",
        "first_s": "first step s",
        "peak_gib": "peak GiB",
        "examples_per_s": "examples/s",
        "ratio_to_seed": "ratio to seed",
        "ratio_to_peer": "ratio to peer",
    }
    lines = [f"| what | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in found.items():
        cells = [str(row.get(key, "–")) for key in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |" + (f" {row['error']}" if "error" in row else ""))
    return "\n".join(lines)


def _write(chosen: argparse.Namespace, found: dict[str, dict[str, Any]]) -> None:
    """Write the table to a dated page with the commit, the versions and the command."""
    here = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True).stdout
    date = datetime.date.today().isoformat()
    devices = {row["device"] for row in found.values() if "device" in row}
    page = [
        f"# {date}: one optimizer step of {chosen.examples} examples on {', '.join(sorted(devices))}",
        f"Commit {commit.strip() or 'unknown'}, Python {sys.version.split()[0]}, torch {torch.__version__}.",
        "    python bench/train_step.py " + shlex.join(sys.argv[1:]),
        _table(found),
    ]
    path = here / "results" / f"{date}-{chosen.device}-train-step.md"
    path.write_text("\n\n".join(page) + "\n", encoding="utf-8")
    print(f"{path} written", file=sys.stderr)


def _is_ours(name: str) -> bool:
    return name.partition("-")[0] in BASES


def _ourselves(chosen: argparse.Namespace) -> list[str]:
    """Return the command of this script with the options that every part needs."""
    given = [sys.executable, __file__, "--device", chosen.device, "--examples", str(chosen.examples)]
    given += ["--steps", str(chosen.steps)]
    given += ["--layers", str(chosen.layers), "--optimizer", chosen.optimizer]
    given += ["--pack-tokens", str(chosen.pack_tokens)]
    given += ["--lengths", str(chosen.lengths)] if chosen.lengths else []
    return given + [
        flag
        for flag in ("--no-compile", "--no-graphs", "--keep-table", "--profile")
        if getattr(chosen, flag[2:].replace("-", "_"))
    ]


def timed(chosen: argparse.Namespace, step: Callable[[], object], memory: Memory | None = None) -> dict[str, Any]:
    """Take the steps and return their figures; warm-up steps (three on a GPU, one on a CPU) are left out.

    A JSON line is printed after every step that counts.
    """
    cuda = chosen.device == "cuda"
    warm = 3 if cuda else 1
    seconds: list[float] = []
    host: list[float] = []
    replayed: list[float] = []
    found: dict[str, Any] = {}
    for number in range(warm + chosen.steps):
        if memory is not None and number >= warm:
            memory.begin()
        start = time.perf_counter()
        step()
        host.append(time.perf_counter() - start)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        if memory is not None and number >= warm and not memory.end():
            replayed.append(seconds[-1])
        if number >= warm:
            found = _figures(chosen, seconds[warm:], host[warm:], memory) | {"first_s": round(seconds[0], 1)}
            if (
                0 < len(replayed) < len(seconds) - warm
            ):  # the other steps have captured a graph, which is rare in a long run
                found |= {"replayed_ms": round(1000 * statistics.median(replayed), 1), "replayed_steps": len(replayed)}
            print(json.dumps(found), flush=True)  # so that a stopped part has figures too
    if chosen.profile and cuda:
        _profile(step)
    return found


def _figures(
    chosen: argparse.Namespace, seconds: list[float], host: list[float], memory: Memory | None
) -> dict[str, Any]:
    """Return the figures of the steps so far."""
    cuda = chosen.device == "cuda"
    median = statistics.median(seconds)
    if memory is not None:
        peak = memory.peak
    else:
        peak = torch.cuda.max_memory_allocated() if cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "ms_per_step": round(1000 * median, 1),
        "fastest_ms": round(1000 * min(seconds), 1),
        "host_ms": round(1000 * statistics.median(host), 1),  # until the last kernel is launched
        "examples_per_s": round(chosen.examples / median, 2),
        "device": torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads",
        "peak_gib": round(peak / GIB, 2),
        "steps": len(seconds),
    }


def _profile(step: Callable[[], object]) -> None:
    """Print the kernels of a step, their total time, and the time from the first kernel to the last."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    rows = sorted(found.key_averages(), key=lambda row: -row.self_device_time_total)
    total = sum(row.self_device_time_total for row in rows)
    times = [event.time_range for event in found.events() if event.device_time_total]
    span = max(time.end for time in times) - min(time.start for time in times)
    print(f"kernels: {total / 1000:.1f} ms, from the first to the last {span / 1000:.1f} ms")
    for row in rows[:32]:
        print(f"{row.self_device_time_total / 1000:8.2f} ms {row.count:6d} × {row.key[:110]}")


def phi4(chosen: argparse.Namespace, base: str) -> Any:
    """Return a model of Phi-4's shape with random weights on the GPU; each layer is made in its final dtype."""
    from random_phi4 import CONFIG
    from transformers import AutoConfig, AutoModelForCausalLM

    from spantune.models import NAME, to_fp8

    shape = {key: value for key, value in CONFIG.items() if key not in ("model_type", "torch_dtype", "architectures")}
    config = AutoConfig.for_model("phi3", **{**shape, "num_hidden_layers": chosen.layers})
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", trust_remote_code=False)
    device = torch.device("cuda")
    for layer in model.model.layers:
        _draw(layer, device)
        if base == "fp8":
            to_fp8(layer, device)
    for module in (model.model.embed_tokens, model.model.norm, model.lm_head):
        _draw(module, device)
    model.model.rotary_emb = type(model.model.rotary_emb)(config, device=device)
    torch.set_default_dtype(torch.float32)
    if base != "seed":
        model.set_attn_implementation(NAME)
    torch.cuda.empty_cache()
    return model


def _draw(module: Any, device: torch.device) -> None:
    """Give a module random weights on `device`."""
    module.to_empty(device=device)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.02) if parameter.dim() > 1 else parameter.data.fill_(1.0)


def ours_on_gpu(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure our step at Phi-4's shape."""
    from torch._dynamo.utils import counters

    from spantune.core import config
    from spantune.models import attach, compile_layers, graph_limit, graph_packs, park_embedding

    base, _, way = chosen.part.partition("-")
    model = phi4(chosen, base)
    model, _ = attach(model, config.Lora(rank=RANK, alpha=ALPHA))
    if not chosen.keep_table:
        park_embedding(model)
    if not chosen.no_compile:
        compile_layers(model, chosen.keep[0])
        model.enable_input_require_grads()  # the first layer is then compiled in the same way as the others
    if way.startswith("spans"):
        step = _read_steps(chosen, model, (0,) * (PREFIX if way == "spans-instruction" else 1))
    else:
        share = GROUPED if way == "grouped" else 1.0
        step = Steps(model, steps_of(chosen, share), chosen.pack_tokens, optimizer=chosen.optimizer)
    if not chosen.no_graphs and step.usual_tokens <= graph_limit(model):
        graph_packs(model, chosen.pack_tokens, step.usual_tokens)
    found = timed(chosen, step, Memory(model))
    found["graphs"] = counters["stats"]["unique_graphs"]
    return {**found, "base": chosen.part, "keep": chosen.keep[0]}


def _read_steps(chosen: argparse.Namespace, model: Any, prefix: tuple[int, ...]) -> Steps:
    """Attach a head to the model and return the step of `task.answer=spans`."""
    from spantune.core import config
    from spantune.models import HeadConfig, SpanHead, attach_head, park_output_layer

    spans = config.Spans(longest=32, types="learnt")
    shape = model.config
    head_config = HeadConfig(
        labels=tuple(map(str, range(TYPES))),
        hidden=shape.hidden_size,
        layers=shape.num_hidden_layers,
        longest=32,
        **spans.model_dump(include={"view", "instruction", "size", "convolution", "types"}),
    )
    attach_head(model, SpanHead(head_config, spans.dropout).to("cuda"))
    park_output_layer(model)
    torch.cuda.empty_cache()
    options = {"spans": spans, "head_rate": spans.learning_rate, "optimizer": chosen.optimizer}
    return Steps(model, read_steps_of(chosen, prefix), chosen.pack_tokens, prefix, **options)


def seed_on_gpu(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure the tutorial's step on a GPU.

    It has padded batches of 4 examples, accumulated over 4 batches and cut at 384 tokens, gradient checkpointing, and
    logits at all positions.
    """
    from peft import LoraConfig, get_peft_model

    model = phi4(chosen, "seed")
    targets = AS_WRITTEN if chosen.part == "seed" else ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    model = get_peft_model(model, LoraConfig(target_modules=targets, r=RANK, lora_alpha=ALPHA, lora_dropout=0.1))
    model.train()
    step, work = _padded_step(model, 100349, CUT, torch.device("cuda")), steps_of(chosen)
    return timed(chosen, lambda: step(next(work)))


def _padded_step(model: Any, padding: int, cut: int | None, device: torch.device) -> Callable[[list[Any]], None]:
    from spantune.core import config
    from spantune.training import Collator

    adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(adapters, lr=RATE, fused=True)
    collate = Collator(config.Train(pack="none", micro_batch=4), (), 0, padding)
    rough = model.get_input_embeddings().weight.dtype == torch.bfloat16

    def step(examples: list[Any]) -> None:
        from dataclasses import replace

        batch = collate([replace(example, ids=example.ids[:cut]) for example in examples])
        for rows in batch.parts:
            with torch.autocast(device.type, torch.bfloat16, enabled=rough):
                loss = model(**vars(rows.to(device)), use_cache=False, num_items_in_batch=batch.weight).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(adapters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def on_cpu(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure either step on a CPU, with the embedded model and the bundled corpus as answers to write."""
    from peft import LoraConfig, get_peft_model

    from spantune.core import load_config
    from spantune.models import attach, load
    from spantune.training import prepare
    from spantune.training.plan import settled

    loss_on = "choices" if chosen.part == "choices" else "answer"
    prepared = prepare(
        load_config(
            Path(__file__).parents[1] / "recipes" / "demo.yaml", ["task.answer=jsonl", f"train.loss_on={loss_on}"]
        )
    )
    budget = settled(prepared).pack_tokens("cpu")
    loaded, lora = load(prepared.recipe.model), prepared.recipe.lora
    cpu = torch.device("cpu")
    if chosen.part == "seed":
        loaded.model.set_attn_implementation("sdpa")
        settings = LoraConfig(target_modules=AS_WRITTEN, r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.1)
        model = get_peft_model(loaded.model, settings).train()
        padded, work = _padded_step(model, loaded.tokenizer.pad_token_id, CUT, cpu), _in_turn(chosen, prepared.examples)
        found = timed(chosen, lambda: padded(next(work)))
    else:
        model, work = attach(loaded.model, lora)[0], _in_turn(chosen, prepared.examples)
        found = timed(chosen, Steps(model, work, budget, prepared.prefix))
    return {**found, "base": str(loaded.dtype).removeprefix("torch.")}


def _in_turn(chosen: argparse.Namespace, examples: Sequence[Any]) -> Iterator[list[Any]]:
    """Yield the examples of one step after another, in the corpus's order, without end."""
    endless = itertools.cycle(examples)
    while True:
        yield list(itertools.islice(endless, chosen.examples))


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "cuda": lambda chosen: (seed_on_gpu if chosen.part.startswith("seed") else ours_on_gpu)(chosen),
    "cpu": on_cpu,
}

if __name__ == "__main__":
    main()
