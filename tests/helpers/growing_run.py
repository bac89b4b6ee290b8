"""A run folder whose `metrics.jsonl` grows by lines that a test writes, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spantune.core import parse_config


def begun(folder: Path, **train: Any) -> Path:
    """Make a run folder that has only a recipe."""
    folder.mkdir(parents=True)
    recipe = {"model": {"source": "m"}, "task": {"labels": ["dis"]}, "data": {"train": "<t>.jsonl"}, "train": train}
    parse_config(recipe).save(folder)
    return folder


def record(folder: Path, *lines: dict[str, Any] | str) -> None:
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)


def step(number: int, **more: Any) -> dict[str, Any]:
    line = {"step": number, "split": "train", "loss": 1 / number, "learning_rate": 1e-4, "epoch": number / 10}
    return {**line, "step_ms": 500.0, **more}


def dev(number: int, f1: float) -> dict[str, Any]:
    return {"step": number, "split": "dev", "f1": f1, "f1_low": f1 / 2, "f1_high": 0.9, "evaluation_seconds": 2.0}
