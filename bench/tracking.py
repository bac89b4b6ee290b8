"""Measure what tracking costs a training run, as a fraction of its step time.

    python bench/tracking.py [section.key=value …]

Trains recipes/demo.yaml for one minute, with the overrides, and adds two times: the time that the training thread
spends in its trackers, and all CPU time of the trackers' processes from the first step to the last. The sum is an upper
bound, because it counts this CPU time as if all of it delayed the steps. Opening the trackers before the first step and
closing them after the last are not counted.
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
    """Train, and print the fractions as one JSON line."""
    seen: list[dict[int, float]] = []
    spent = {name: timed(name, seen) for name in ("metrics", "measuring")}
    with tempfile.TemporaryDirectory() as folder:
        short = ["train.max_minutes=1", "train.eval_before=false", "data.test_limit=16", f"run.folder={folder}"]
        result = train(load_config(ROOT / "recipes" / "demo.yaml", [*short, *overrides]))
        records = [record for record in read_metrics(result.folder) if record["split"] == "train"]
    lines = [record["step"] for record in records]
    steps = [after - before for before, after in zip([0, *lines], lines, strict=False)]
    seconds = sum(count * record["step_ms"] for count, record in zip(steps, records, strict=True)) / 1000
    called = sum(spent["metrics"])  # `measuring` calls `metrics`
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
    """Replace a method of Trackers by one that measures its calls; return the list that gets the seconds of each call.

    `seen` gets the CPU seconds of the trackers' processes after each call.
    """
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
    """Return the CPU seconds that each tracker's process, and each of its child processes, has used so far, by id."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        times = process.cpu_times()
        found[process.pid] = times.user + times.system
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
