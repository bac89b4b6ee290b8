"""Average the weights of several runs that share their first weights, and measure the average (arXiv 2203.05482).

    python bench/quality_soup.py FOLDER DEV.jsonl TEST.jsonl RUN RUN [RUN …]

The runs are those of `quality.py jobs --group soup`. They have one recipe, one seed and one masked-token stage, and
then different orders of the examples. Runs that have not finished are left out. Three kinds of average are measured:

- `weights`: the mean of each weight of the adapters (A and B) and of the heads; the rank stays the same;
- `products`: the mean of the products B A that are added to the base; the rank is the sum of the ranks;
- `weights` of two runs, for every pair.

Each average is a run folder in FOLDER; the first is FOLDER/run. Its thresholds are chosen on DEV, as in training, and
stored in its head. F1 on DEV is therefore too high, and F1 on TEST is the one to report. Each average adds a line to
FOLDER/soups.jsonl.
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
"""Files and folders that are not copied with a run folder."""


def main() -> None:
    """Measure the average of all runs in both ways, then that of each pair; write each result when it is there."""
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
    """Write the run folder `target` with the average of the adapters and the heads of `runs`; `kind` as above."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(runs[0], target, ignore=shutil.ignore_patterns(*LEFT_OUT))
    adapters = [load_file(run / "adapter" / ADAPTER) for run in runs]
    save_file(mean(adapters) if kind == "weights" else mean_product(adapters), target / "adapter" / ADAPTER)
    save_file(mean([load_file(run / "adapter" / HEAD) for run in runs]), target / "adapter" / HEAD)
    if kind == "products":
        multiply_rank(target / "adapter" / CONFIG, len(runs))
    seal_again(target / "adapter")


def seal_again(adapter: Path) -> None:
    """Write the manifest of an adapter folder again, after its files have changed."""
    (adapter / MANIFEST).unlink()
    seal(adapter)


def mean(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each weight over `parts`, computed in fp32, in the weight's own dtype."""
    return {
        name: torch.stack([part[name].float() for part in parts]).mean(0).to(weight.dtype)
        for name, weight in parts[0].items()
    }


def mean_product(adapters: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return A [n × rank, in] and B [out, n × rank] whose product B A is the mean of those of n adapters."""
    joined = {}
    for name in adapters[0]:
        weights = [adapter[name] for adapter in adapters]
        joined[name] = torch.cat(weights) if ".lora_A." in name else torch.cat(weights, 1) / len(adapters)
    return joined


def multiply_rank(path: Path, times: int) -> None:
    """Multiply rank and alpha in an adapter's configuration by `times`, so that the scale alpha / rank stays."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings |= {"r": times * settings["r"], "lora_alpha": times * settings["lora_alpha"]}
    path.write_text(json.dumps(settings, indent=1), encoding="utf-8")


def measure(run: Path, dev: Path, test: Path) -> dict[str, Any]:
    """Choose the thresholds of a run on `dev`, store them in its head, and return the run's figures on `test`."""
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
