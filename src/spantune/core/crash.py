"""The traceback of a bug goes into a log file: `crash.log` in the run folder, if one is known, else in the user's logs.

A command says on which run it works before it begins. Credentials in a traceback are masked.
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
    """Have the traceback of a bug written into the run folder `folder` from now on, if it exists then."""
    global _run_folder
    _run_folder = folder


def log_crash(error: BaseException) -> Path | None:
    """Append the traceback of `error` to the log file, and return its path; None where none can be written."""
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
