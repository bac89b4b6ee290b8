"""A process for tests to kill: a run without a model that opens its trackers and records steps.

    python tests/helpers/tracked_run.py FOLDER MODE STEPS [STAY_SECONDS [FINISH_SECONDS]]

A step takes 10 ms, and every fifth step has an evaluation. After STEPS steps the process prints `ready` and records
more steps for STAY_SECONDS. SIGTERM and SIGINT close the records, as in training.
"""

from __future__ import annotations

import itertools
import logging
import signal
import sys
import time
from pathlib import Path
from typing import Any

from spantune.core import Config, Document, Entity, parse_config
from spantune.data import formats
from spantune.runs.trackers import dashboards

GOLD = [
    Document("d1", "患者发热咳嗽", (Entity(2, 4, "病"), Entity(4, 6, "病"))),
    Document("d2", "阑尾 <b>炎</b>", (Entity(0, 2, "体"),)),
]
LABELS = ("病", "体")


def recipe(folder: Path, **track: Any) -> Config:
    """Return a recipe for the run in `folder`, whose data are GOLD."""
    data = folder.parent / "gold.jsonl"
    if not data.exists():
        formats.write(data, GOLD)
    return parse_config(
        {
            "run": {"name": folder.name, "folder": str(folder.parent)},
            "model": {"source": "x"},
            "task": {"labels": list(LABELS)},
            "data": {"train": str(data), "dev": str(data)},
            "lora": {"rank": 16},
            "train": {"learning_rate": 1e-4},
            "track": track,
        }
    )


def begin(folder: Path, **track: Any) -> dashboards.Trackers:
    """Make the run folder as the training job does, and open its trackers."""
    from spantune.encoding import make_task

    settings = recipe(folder, **track)
    folder.mkdir(parents=True, exist_ok=True)
    settings.save(folder)
    make_task(settings.task).save(folder)
    (folder / "environment.json").write_text('{"torch": "2.13", "commit": "abc"}', encoding="utf-8")
    return dashboards.open_trackers(settings, folder, {"dev": GOLD}, LABELS)


def measure(trackers: dashboards.Trackers, folder: Path, step: int) -> None:
    """Record an evaluation of the dev documents in which one of three entities was found."""
    predicted = [Document("d1", GOLD[0].text, (Entity(2, 4, "病", 0.9),)), Document("d2", GOLD[1].text, ())]
    values = {
        "f1": 0.5,
        "f1_low": 0.1,
        "f1_high": 0.9,
        "f1/病": 2 / 3,
        "f1_low/病": 0.0,
        "f1_high/病": 1.0,
        "f1/体": 0.0,
    }
    path = folder / "predictions" / f"dev-{step}.jsonl"
    path.parent.mkdir(exist_ok=True)
    formats.write(path, predicted)
    trackers.measuring(step, "dev", values, GOLD, predicted)


def main(folder: Path, mode: str, steps: int, stay: float) -> None:
    """Record `steps` steps, then more for `stay` seconds."""
    trackers = begin(folder, swanlab=mode)
    state, step = "crashed", 0

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)  # a shell starts background processes with SIGINT ignored
    try:
        for step in itertools.count(1):
            trackers.metrics(step, {"loss": 1 / step})
            if step % 5 == 0:
                measure(trackers, folder, step)
            if step == steps:
                print("ready", flush=True)
                end = time.monotonic() + stay
            time.sleep(0.01)
            if step >= steps and time.monotonic() >= end:
                break
        state = "success"
    except KeyboardInterrupt:
        state = "aborted"
    finally:
        trackers.finish(state)
        print(f"{state} after step {step}", flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    if len(sys.argv) > 5:
        dashboards.FINISH_SECONDS = float(sys.argv[5])
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]) if len(sys.argv) > 4 else 0.0)
