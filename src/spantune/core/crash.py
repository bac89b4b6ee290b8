"""The crash log: the traceback of a bug is written to `crash.log` in the run folder or in the user's log folder.

A command calls `log_crashes_into` before it works on a run. Without such a call, or if the run folder does not exist,
the user's log folder is used. Credentials in a traceback are masked.
"""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path

import platformdirs

from spantune.core.terminal import printable

CRASH_LOG = "crash.log"
_run_folder: Path | None = None


def log_crashes_into(folder: Path) -> None:
    """From now on, write the traceback of a bug into the run folder `folder`, if the folder exists at that time."""
    global _run_folder
    _run_folder = folder


def log_crash(error: BaseException) -> Path | None:
    """Append the traceback of `error` to the crash log and return the path of that file; None if it cannot be written.

    The file is readable by its owner only.
    """
    text = f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{''.join(traceback.format_exception(error))}\n"
    folders = [_run_folder] if _run_folder else []
    folders.append(platformdirs.user_log_path("spantune", appauthor=False))
    for folder in folders:
        try:
            if folder is not _run_folder:
                folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / CRASH_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "a", encoding="utf-8") as file:
                file.write(printable(text, lines=True))
        except OSError:
            continue
        return folder / CRASH_LOG
    return None
