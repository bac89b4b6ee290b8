"""A file of lines that is complete up to the last line, whatever ends the process or fills the disk.

A line goes to the system at once and whole. What a full or read-only disk refuses is kept, said once, and written
before the next line; only the end of the process can lose it. Lines are not synced to the disk one by one: they
survive a killed process, not a lost machine.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spantune.core import replacing

log = logging.getLogger(__name__)


class Journal:
    """Appends lines to `path`; a torn last line that an earlier process left is ended first."""

    def __init__(self, path: Path):
        self.path = path
        self._pending = b"\n" if _is_torn(path) else b""
        self._failing = False
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, line: str) -> None:
        """Write `line` and its end, or keep it until the disk takes it."""
        self._pending += line.encode() + b"\n"
        self._write()

    def close(self) -> None:
        """Try once more to write what is kept, and close the file.

        Raises:
            OSError: lines are lost, since the disk still refuses them.
        """
        if self._descriptor < 0:
            return
        self._write()
        os.close(self._descriptor)
        self._descriptor = -1
        if self._pending:
            lost = self._pending.count(b"\n")
            raise OSError(f"{self.path}: the last {lost} lines could not be written and are lost")

    def _write(self) -> None:
        try:
            while self._pending:
                self._pending = self._pending[os.write(self._descriptor, self._pending) :]
        except OSError as error:
            first, self._failing = not self._failing, True  # before the warning, which may come here itself
            if first:
                log.warning("%s: %s; lines are kept in memory until there is room", self.path, error.strerror)
            return
        again, self._failing = self._failing, False
        if again:
            log.warning("%s: there is room again; no line was lost", self.path)


def _is_torn(path: Path) -> bool:
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


METRICS_FILE = "metrics.jsonl"


class JsonlTracker:
    """`metrics.jsonl`: one object a line with `step` and `time` (Unix seconds)."""

    def __init__(self, folder: Path):
        self._journal = Journal(folder / METRICS_FILE)

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        """Append one line; a value that is not finite becomes null, since JSON has no NaN."""
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self._journal.append(json.dumps({"step": step, "time": round(time.time(), 3), "split": split, **finite}))

    def finish(self, state: str) -> None:
        """Close the file."""
        self._journal.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; a torn last line is left out."""
    path = folder / METRICS_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            log.warning("%s:%d: a torn line is left out", path, number)
    return records


def rewind(folder: Path, step: int) -> None:
    """Drop what a run resumed at `step` records again: lines after it, the closing measurement, their predictions."""

    def is_kept(record: Mapping[str, Any]) -> bool:
        return bool(record["step"] <= step and not (record.get("split") == "test" and record["step"] > 0))

    records = read_metrics(folder)
    with replacing(folder / METRICS_FILE) as file:
        file.writelines(json.dumps(record) + "\n" for record in records if is_kept(record))
    for record in records:
        if not is_kept(record):
            (folder / "predictions" / f"{record['split']}-{record['step']}.jsonl").unlink(missing_ok=True)
