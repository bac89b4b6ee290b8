"""Average the weights of several runs that share their first weights, and measure the average (arXiv 2203.05482).

    python bench/quality_soup.py FOLDER DEV.jsonl TEST.jsonl RUN RUN [RUN …]

The runs are those of `quality.py jobs --group soup`: one recipe, one seed, one stage of masked tokens, and then orders
of the examples of their own. Those that have not finished are left out. Three kinds of average are measured:

- `weights`: A and B of the adapters and the weights of the heads, one by one; an adapter of the same rank;
- `products`: the products B A, which are what is added to the base; an adapter whose rank is the sum of the ranks;
- `weights` of two runs, for every pair.

Each is a run folder in FOLDER, the first one FOLDER/run. Its thresholds are chosen on DEV as training chooses them, and
stored in its head, so that F1 on DEV is flattered; TEST is reported. A line of FOLDER/soups.jsonl for each.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from spantune.data import read
from spantune.extraction import evaluate, evaluate_run
from spantune.extraction.loading import load_bare
from spantune.models import require_head, save_head
from spantune.runs import RunFolder
from spantune.runs.manifest import MANIFEST, seal

ADAPTER, CONFIG, HEAD = "adapter_model.safetensors", "adapter_config.json", "head.safetensors"
LEFT_OUT = ("checkpoints", "predictions", "run.lock")
"""What a copy of a run folder does without."""


def main() -> None:
    """Average all runs in both ways, then each pair, and write the figures of each as they come."""
    folder, dev, test, *given = map(Path, sys.argv[1:])
    runs = [run for run in given if RunFolder(run).is_finished]
    if len(runs) < 2:
        sys.exit(f"{len(runs)} of {len(given)} runs have finished; an average needs two at least")
    everything = tuple(range(len(runs)))
    wanted = [("weights", everything), ("products", everything)]
    wanted += [("weights", pair) for pair in itertools.combinations(everything, 2) if pair != everything]
    for number, (kind, members) in enumerate(wanted):
        target = folder / (f"run-{number}" if number else "run")
        average(kind, [runs[member] for member in members], target)
        line = {"kind": kind, "members": [runs[member].parent.name for member in members], **measure(target, dev, test)}
        with (folder / "soups.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def average(kind: str, runs: Sequence[Path], target: Path) -> None:
    """Make the run folder `target` with the average of the adapters and heads of `runs`."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(runs[0], target, ignore=shutil.ignore_patterns(*LEFT_OUT))
    adapters = [load_file(run / "adapter" / ADAPTER) for run in runs]
    save_file(mean(adapters) if kind == "weights" else mean_product(adapters), target / "adapter" / ADAPTER)
    save_file(mean([load_file(run / "adapter" / HEAD) for run in runs]), target / "adapter" / HEAD)
    if kind == "products":
        multiply_rank(target / "adapter" / CONFIG, len(runs))
    seal_again(target / "adapter")


def seal_again(adapter: Path) -> None:
    """Write the manifest of an adapter folder whose files have changed."""
    (adapter / MANIFEST).unlink()
    seal(adapter)


def mean(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each weight over `parts`, in its own type."""
    return {
        name: torch.stack([part[name].float() for part in parts]).mean(0).to(weight.dtype)
        for name, weight in parts[0].items()
    }


def mean_product(adapters: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Weights A [n rank, in] and B [out, n rank] whose product is the mean of the products B A of n adapters."""
    joined = {}
    for name in adapters[0]:
        weights = [adapter[name] for adapter in adapters]
        joined[name] = torch.cat(weights) if ".lora_A." in name else torch.cat(weights, 1) / len(adapters)
    return joined


def multiply_rank(path: Path, times: int) -> None:
    """Write the configuration of an adapter of so many times the rank, whose scale alpha / rank is the same."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings |= {"r": times * settings["r"], "lora_alpha": times * settings["lora_alpha"]}
    path.write_text(json.dumps(settings, indent=1), encoding="utf-8")


def measure(run: Path, dev: Path, test: Path) -> dict[str, Any]:
    """Choose the thresholds of a run on `dev`, store them in its head, and return its figures on `test`."""
    extractor = load_bare(run)
    extractor.keeps_candidates = True
    on_dev = evaluate(extractor, read(dev).documents)
    save_head(require_head(extractor.model), run / "adapter")
    seal_again(run / "adapter")
    extractor.keeps_candidates = False
    values = evaluate_run(extractor, test, train=[]).values()
    kept = ("f1", "f1_low", "f1_high", "precision", "recall", "macro_f1", "documents")
    types = {name.removeprefix("f1/"): value for name, value in values.items() if name.startswith("f1/")}
    return {**{name: values[name] for name in kept}, "dev_f1": on_dev.scores.micro.f1, "types": types}


if __name__ == "__main__":
    main()
