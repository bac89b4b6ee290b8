"""F1 of the average of several runs that began with the same weights (model soups, arXiv 2203.05482).

    python bench/quality_soup.py devA.jsonl devB.jsonl RUN RUN [RUN …]

The runs are those of one recipe and seed, trained with `order=1`, `order=2` … of quality_tricks.py. The weights of
their adapters and heads are averaged one by one; the thresholds are chosen on the first file, whose F1 is flattered by
that, and the second is reported. Prints one JSON object.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from spantune.data import read
from spantune.extraction import evaluate, load_run

FILES = ("adapter_model.safetensors", "head.safetensors")


def main() -> None:
    """Average, measure and print."""
    dev, test, *runs = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "soup"
        shutil.copytree(runs[0], copy, ignore=shutil.ignore_patterns("checkpoints", "trackers", "run.lock"))
        for name in FILES:
            parts = [load_file(run / "adapter" / name) for run in runs]
            mean = {key: torch.stack([part[key].float() for part in parts]).mean(0) for key in parts[0]}
            save_file({key: mean[key].to(parts[0][key].dtype) for key in mean}, copy / "adapter" / name)
        extractor = load_run(copy, accept_changes=True)
        extractor.keeps_candidates = True
        on_dev = evaluate(extractor, read(dev).documents).scores.micro
        extractor.keeps_candidates = False
        on_test = evaluate(extractor, read(test).documents).scores
    figures = {"f1": on_test.micro.f1, "interval": on_test.micro_interval, "dev_f1": on_dev.f1, "runs": len(runs)}
    print(json.dumps(figures, default=str))


if __name__ == "__main__":
    main()
