"""What tracking costs a training run, as a share of its step time: an upper bound, so that noise cannot hide it.

    python bench/tracking.py [section.key=value …]

Trains recipes/demo.yaml for a minute, with the overrides, and adds up two things: the time that the training thread
spends in its trackers, and all processor time of the trackers' processes from the first step to the last, as if every
bit of it delayed a step. Opening before the first step and finishing after the last do not count.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from spantune.core import load_config
from spantune.runs import Trackers, read_metrics
from spantune.training import train

ROOT = Path(__file__).resolve().parents[1]


def main(overrides: list[str]) -> None:
    """Run the recipe and print the shares as one JSON line."""
    seen: list[dict[int, float]] = []
    spent = {name: timed(name, seen) for name in ("metrics", "measuring")}
    with tempfile.TemporaryDirectory() as folder:
        short = ["train.max_minutes=1", "train.eval_before=false", "data.test_limit=16", f"run.folder={folder}"]
        result = train(load_config(ROOT / "recipes" / "demo.yaml", [*short, *overrides]))
        records = [record for record in read_metrics(result.folder) if record["split"] == "train"]
    lines = [record["step"] for record in records]
    steps = [after - before for before, after in zip([0, *lines], lines, strict=False)]
    seconds = sum(count * record["step_ms"] for count, record in zip(steps, records, strict=True)) / 1000
    called = sum(spent["metrics"])  # measuring calls it
    first, last = seen[0], seen[-1]
    elsewhere = sum(value - first.get(number, 0.0) for number, value in last.items())
    found = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "steps": lines[-1],
        "step_ms": round(1000 * seconds / lines[-1], 1),
        "training_thread_ms_a_step": round(1000 * called / lines[-1], 3),
        "tracker_processes_ms_a_step": round(1000 * elsewhere / lines[-1], 3),
        "share_of_step_time": round((called + elsewhere) / seconds, 5),
    }
    print(json.dumps(found, ensure_ascii=False))


def timed(name: str, seen: list[dict[int, float]]) -> list[float]:
    """Have every call of a method of Trackers timed and the processes looked at; returns the seconds, as they come."""
    method: Callable[..., Any] = getattr(Trackers, name)
    seconds: list[float] = []

    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - began)
            seen.append(processor_seconds())

    setattr(Trackers, name, wrapper)
    return seconds


def processor_seconds() -> dict[int, float]:
    """What each process of a tracker, and those it started, has used so far."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        times = process.cpu_times()
        found[process.pid] = times.user + times.system
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
