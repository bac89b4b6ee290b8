"""What tracking costs a training run, as a share of its step time: an upper bound, so that noise cannot hide it.

    python bench/tracking.py [section.key=value …]

Trains recipes/demo.yaml for a minute, with the overrides, and adds up two things: the time that the training thread
spends in its trackers, and all processor time of the threads that are theirs, as if every bit of it delayed a step.
Needs Linux. Time in evaluations and before the first step does not count as step time.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spantune.config import load_config
from spantune.tracking import Trackers, read_metrics
from spantune.train import train

ROOT = Path(__file__).resolve().parents[1]
TICKS = os.sysconf("SC_CLK_TCK")


def main(overrides: list[str]) -> None:
    """Run the recipe and print the shares as one JSON line."""
    spent = {name: timed(name) for name in ("metrics", "measuring", "attach")}
    cpu: dict[int, tuple[str, float]] = {}
    stop = threading.Event()
    sampler = threading.Thread(target=sample, args=(cpu, stop), name="sampler", daemon=True)
    sampler.start()
    with tempfile.TemporaryDirectory() as folder:
        short = ["train.max_minutes=1", "train.eval_before=false", "data.test_limit=16", f"run.folder={folder}"]
        result = train(load_config(ROOT / "recipes" / "demo.yaml", [*short, *overrides]))
        stop.set()
        sampler.join()
        records = [record for record in read_metrics(result.folder) if record["split"] == "train"]
    steps = records[-1]["step"]
    seconds = steps * sum(record["step_ms"] for record in records) / len(records) / 1000
    called = sum(sum(times) for times in spent.values())
    threads = {name: round(value, 3) for name, value in cpu.values() if value}
    found = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "steps": steps,
        "step_ms": round(1000 * seconds / steps, 1),
        "training_thread_s": round(called, 4),
        "tracker_threads_cpu_s": threads,
        "share_of_step_time": round((called + sum(threads.values())) / seconds, 5),
    }
    print(json.dumps(found, ensure_ascii=False))


def timed(name: str) -> list[float]:
    """Have every call of a method of Trackers timed; returns the seconds, as they come."""
    method: Callable[..., Any] = getattr(Trackers, name)
    seconds: list[float] = []

    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - began)

    setattr(Trackers, name, wrapper)
    return seconds


def sample(cpu: dict[int, tuple[str, float]], stop: threading.Event) -> None:
    """Keep the processor seconds of every thread that is a tracker's, by its number."""
    while not stop.wait(0.2):
        for thread in threading.enumerate():
            if thread.name.startswith(("track ", "SwanLab", "wandb", "Inotify")) and thread.native_id:
                try:
                    text = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
                except OSError:  # it has just ended
                    continue
                ticks = text.rpartition(")")[2].split()[11:13]
                cpu[thread.native_id] = (thread.name, sum(map(int, ticks)) / TICKS)


if __name__ == "__main__":
    main(sys.argv[1:])
