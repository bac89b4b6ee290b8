"""Locks between processes: a file that one process at a time holds, and that the system releases when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Locked(Exception):
    """Another process holds the lock; the caller turns this into an error that says what is locked."""


@contextmanager
def file_lock(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` inside the block, and wait for it at most `patience` seconds (`math.inf`: for ever).

    The file is made where it is absent, and it is not removed. A lock follows its file when the folder is renamed.

    Raises:
        Locked: another process holds the lock.
        OSError: the file cannot be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=patience)
    try:
        lock.acquire()
    except Timeout:
        raise Locked(str(path)) from None
    try:
        yield
    finally:
        lock.release()
