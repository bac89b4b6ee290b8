"""Files to which whole lines are appended, `metrics.jsonl` and `run.log`, so that a kill or a full disk loses none.

Each line is passed to the operating system at once. If a full or read-only disk refuses a line, the line stays in
memory, a warning is logged once, and the line is written before the next one. Such a line is lost only if the process
ends before. Lines are not synced to the disk, so they survive a killed process, but not a power failure.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from spantune.core import SafeFormatter, StderrHandler, log_crashes_into, replacing, to_json
from spantune.runs.folder import MetricsRecord, RunFolder

log = logging.getLogger(__name__)


class Journal:
    """A file to which lines are appended. If an earlier process left an incomplete last line, it is ended first.

    Args:
        path: the file, which is created if it is absent.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path):
        self.path = path
        self._pending = b"\n" if _is_torn(path) else b""
        self._failing = False
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, line: str) -> None:
        """Write `line` and a line break, or keep it in memory until the disk accepts it."""
        self._pending += line.encode() + b"\n"
        self._write()

    def close(self) -> None:
        """Try once more to write the lines in memory, and close the file.

        Raises:
            OSError: the disk still refuses the lines, which are lost.
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
            is_first, self._failing = not self._failing, True  # set first, since the warning may be written here too
            if is_first:
                log.warning("%s: %s; lines are kept in memory until there is room", self.path, error.strerror)
            return
        was_failing, self._failing = self._failing, False
        if was_failing:
            log.warning("%s: there is room again; no line was lost", self.path)


def _is_torn(path: Path) -> bool:
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


class JsonlTracker:
    """The writer of `metrics.jsonl`: each line is an object with `step`, `time` (Unix seconds), `split` and figures."""

    def __init__(self, folder: Path):
        self._journal = Journal(RunFolder(folder).metrics_file)

    def metrics(self, step: int, values: Mapping[str, float | None], split: str = "train") -> None:
        """Append one line with the figures `values`. A value that is not finite becomes null, since JSON has no NaN."""
        finite = {key: value if value is not None and math.isfinite(value) else None for key, value in values.items()}
        self._journal.append(
            to_json({"step": step, "time": round(time.time(), 3), "split": split, **finite}, ascii_only=True)
        )

    def finish(self, state: str) -> None:
        """Close the file; `state` is not used.

        Raises:
            OSError: the last lines could not be written and are lost.
        """
        self._journal.close()


def rewind(folder: Path, step: int) -> None:
    """Remove the records that a run resumed at `step` writes again.

    These are the lines of `metrics.jsonl` after `step`, the lines of the final evaluation, and the files of predictions
    that belong to these lines.

    Raises:
        DataError: `metrics.jsonl` cannot be written.
    """

    def is_repeated(record: MetricsRecord) -> bool:
        return bool(record["step"] > step or (record.get("split") == "test" and record["step"] > 0))

    run = RunFolder(folder)
    records = run.metrics()
    with replacing(run.metrics_file) as file:
        file.writelines(to_json(record, ascii_only=True) + "\n" for record in records if not is_repeated(record))
    for record in filter(is_repeated, records):
        run.predictions(record["split"], record["step"]).unlink(missing_ok=True)


@contextmanager
def logging_to(folder: Path) -> Iterator[None]:
    """Inside the block, write the log of spantune to `run.log` of the run folder `folder`, and warnings to stderr too.

    The traceback of a bug is written into the run folder as well, also after the block.
    """
    logger = logging.getLogger("spantune")
    level = logger.level
    run_log = _RunLog(RunFolder(folder).log_file)
    run_log.setFormatter(SafeFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    added: list[logging.Handler] = [run_log]
    if not any(isinstance(handler, StderrHandler) or _is_on_stderr(handler) for handler in logger.handlers):
        added.append(StderrHandler())
    for handler in added:
        logger.addHandler(handler)
    logger.setLevel(min(level, logging.INFO) if level else logging.INFO)
    log_crashes_into(folder)
    try:
        yield
    finally:
        logger.setLevel(level)
        for handler in added:
            logger.removeHandler(handler)
            handler.close()


def _is_on_stderr(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr


class _RunLog(logging.Handler):
    """The log handler of `run.log`. On a full disk, lines are kept in memory until they can be written."""

    def __init__(self, path: Path):
        super().__init__()
        self._journal = Journal(path)

    def emit(self, record: logging.LogRecord) -> None:
        """Append the line of a record."""
        self._journal.append(self.format(record))

    def close(self) -> None:
        """Close the file. Lines that could not be written are lost without an error."""
        with suppress(OSError):
            self._journal.close()
        super().close()
