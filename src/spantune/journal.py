"""A file of lines that is complete up to the last line, whatever ends the process or fills the disk.

A line goes to the system at once and whole. What a full or read-only disk refuses is kept, said once, and written
before the next line; only the end of the process can lose it. Lines are not synced to the disk one by one: they
survive a killed process, not a lost machine.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

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
