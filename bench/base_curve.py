"""Compare training over several kinds of frozen base: does a low-precision base learn as well as a bf16 one?

    python bench/base_curve.py                                  bf16 and fp8, 200 steps of the embedded model
    python bench/base_curve.py --bases fp32 fp8 nf4 --set model.source=FOLDER data.train=FILE

The same recipe is trained over each base. The result is the mean training loss of every tenth of the run, and the
largest relative difference from the first base, as a Markdown table or one JSON object. It runs on any machine: on a
GPU without FP8 matrix products, and on a CPU, the products are computed from the same e4m3 values.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from spantune.core import load_config
from spantune.runs import read_metrics
from spantune.training import train

ROOT = Path(__file__).resolve().parents[1]
PARTS = 10


def main() -> None:
    """Train over each base, compare the losses and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", default=["bf16", "fp8"])
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "demo.yaml")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--set", nargs="*", default=[], help="section.key=value, for all")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        curves = {base: curve(chosen.recipe, base, chosen.steps, Path(folder), chosen.set) for base in chosen.bases}
    first, *others = chosen.bases
    found = {
        "steps": chosen.steps,
        "losses": curves,
        "difference": {
            base: max(abs(a / b - 1) for a, b in zip(curves[base], curves[first], strict=True)) for base in others
        },
    }
    print(json.dumps(found) if chosen.json else table(found))


def curve(recipe: Path, base: str, steps: int, folder: Path, changes: list[str]) -> list[float]:
    """Train `steps` steps over `base` and return the mean loss of each tenth of the run, in nats per answer token."""
    fixed = {
        "run.folder": folder,
        "run.name": base,
        "model.base": base,
        "train.max_steps": steps,
        "train.max_minutes": "null",
        "train.log_steps": 1,
        "train.eval_steps": steps,
        "train.eval_documents": 1,
        "train.eval_before": "false",
        "data.test_limit": 1,
        "track.swanlab": "off",
    }
    result = train(load_config(recipe, [*(f"{key}={value}" for key, value in fixed.items()), *changes]))
    losses = [line["loss"] for line in read_metrics(result.folder) if line["split"] == "train"]
    size = len(losses) // PARTS
    return [round(statistics.fmean(losses[i * size : (i + 1) * size]), 4) for i in range(PARTS)]


def table(found: dict[str, Any]) -> str:
    """Return the losses as a Markdown table."""
    difference = found["difference"]
    lines = ["| base | mean loss by tenths of the run | largest difference |", "|---|---|---|"]
    for base, values in found["losses"].items():
        apart = f"{difference[base]:.2%}" if base in difference else ""
        lines.append(f"| {base} | {', '.join(f'{value:.3f}' for value in values)} | {apart} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
