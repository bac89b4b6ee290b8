"""One process to a run: `run.lock`, which the system lets go of when the process ends, however it ends.

The file holds the process's number while it works, is emptied when it ends in order, and stays where it is. The lock
is advisory and of this machine; on a network disk it is as good as that disk's own locking.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from spantune.errors import RunError

LOCK_FILE = "run.lock"
PATIENCE = 1.0  # seconds: who looks whether a run is running holds its lock for a moment


def hold(folder: Path, run: Path | None = None) -> FileLock:
    """Take the lock of the run in `folder` (which is to become `run`); release it, or end.

    Raises:
        RunError: another process has it, or the folder cannot be written.
    """
    path = folder / LOCK_FILE
    lock = FileLock(path, timeout=PATIENCE)
    try:
        lock.acquire()
        path.write_text(f"{os.getpid()}\n", encoding="utf-8")
    except Timeout:
        raise RunError(
            f"{run or folder}: {holder(folder)} is working on this run; wait for it, stop it, or give another run.name"
        ) from None
    except OSError as error:
        lock.release()
        raise RunError(
            f"{run or folder}: cannot be written ({error.strerror}); make it writable, or copy the run elsewhere"
        ) from None
    return lock


def holder(folder: Path) -> str:
    """Who holds the lock, in words."""
    try:
        number = (folder / LOCK_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        number = ""
    return f"process {number}" if number.isdecimal() else "another process"


def let_go(lock: FileLock, folder: Path) -> None:
    """Release the lock of the run that is in `folder` now, and say there that its process ended in order."""
    with suppress(OSError):
        (folder / LOCK_FILE).write_text("", encoding="utf-8")
    lock.release()


def was_let_go(folder: Path) -> bool:
    """Whether the last process that worked on a run ended in order; one that was killed still stands in the file."""
    try:
        return not (folder / LOCK_FILE).read_text(encoding="utf-8")
    except OSError:
        return True


def is_held(folder: Path) -> bool:
    """Whether a process is working on the run now."""
    path = folder / LOCK_FILE
    if not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    except OSError:  # a disk that is read-only: nobody is writing there
        return False
    lock.release()
    return False
