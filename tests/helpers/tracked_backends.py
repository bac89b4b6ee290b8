"""Tracker backends for tests; each call adds a line to the file `told` in the run folder, also from another process."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spantune.core import RunError
from spantune.runs.trackers.interface import Chart, PredictionRow, RunInfo


class Noting:
    """A tracker that records every call."""

    def __init__(self, info: RunInfo):
        self.place = info.folder / "told"
        print("printed by the SDK")  # SDKs print to stdout, which machines read
        print("OSError: printed by the SDK too", file=sys.stderr)
        logging.getLogger("spantune.noting").warning("said to the log: 看\nand more")
        self.note(f"opened {os.environ.get('NOTED', '')}")

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        self.note(f"metrics {step} {split} {dict(values)}")

    def predictions(self, step: int, name: str, rows: Sequence[PredictionRow]) -> None:
        self.note(f"predictions {step} {name} {[row.summary for row in rows]}")

    def chart(self, step: int, chart: Chart) -> None:
        self.note(f"chart {step} {chart.name} {chart.image().size}")

    def attach(self, step: int, path: Path) -> None:
        self.note(f"attach {step} {path.name}")

    def finish(self, state: str) -> None:
        self.note(f"finish {state}")

    def note(self, text: str) -> None:
        with self.place.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")


class Leaking(Noting):
    """A tracker that prints, logs, remembers and raises a credential, as SDKs of dashboards with a server may do."""

    def __init__(self, info: RunInfo):
        secret = os.environ["TRACKER_URI"]
        print(f"View run at {secret}/runs/1 \x1b[31m")
        print(f"retrying {secret}", file=sys.stderr)
        os.write(2, f"from C: {secret}\n".encode())
        logging.getLogger("spantune.leaking").warning("connected to %s", secret)
        info.remember("leaking", hint=f"dashboard: {secret}", url=secret)
        raise ConnectionError(f"{secret} refused the token")


class Failing(Noting):
    """A tracker that fails at step 2, as an SDK does when its server is gone."""

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        if step == 2:
            raise ConnectionError("the dashboard is gone\nand more")
        super().metrics(step, values, split)


class Stuck(Noting):
    """A tracker that never finishes."""

    def finish(self, state: str) -> None:
        self.note("finishing")
        time.sleep(600)


class Unwilling(Noting):
    """A tracker that cannot be opened."""

    def __init__(self, info: RunInfo):
        raise RunError("not today")


def noted(path: Path, value: Any) -> None:
    """Print a line and write `value` to `path`; a function for a tracker's process to call."""
    print("printed by the function")
    path.write_text(f"{value} {sys.flags.utf8_mode >= 0}", encoding="utf-8")


def paths(path: Path) -> None:
    """Write the origins of some imported modules and `sys.path` to `path`."""
    import types

    import spantune

    path.write_text("\n".join([str(types.__file__), str(spantune.__file__), os.__file__, *sys.path]), encoding="utf-8")


def refusing() -> None:
    """Raise an error of spantune."""
    raise RunError("will not")


def slow() -> None:
    """Take ten minutes."""
    time.sleep(600)
