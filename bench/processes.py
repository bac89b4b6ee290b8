"""Run the parts of a bench one after another, each in processes of its own and with a time limit.

A part prints a JSON object on a line of its own whenever it has new figures; the last value of each key is kept. A part
that is ended at its limit therefore still has the figures that it has printed. Its other output goes to stderr. A bench
that is stopped (Ctrl-C, SIGTERM) returns what is measured so far.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

GRACE = 10  # seconds between SIGTERM and SIGKILL
ERROR = 3000  # last characters of stderr to keep from a part that failed


def run_parts(commands: Mapping[str, Sequence[str]], seconds: float) -> dict[str, dict[str, Any]]:
    """Run the commands one after another.

    Args:
        commands: the command line of each part, by its name.
        seconds: limit for all parts together; the remaining time is divided evenly among the remaining parts.

    Returns:
        The figures of each part that was started, by its name. A part that was ended early also has `stopped`; a
        part that failed or has no figures has `error` with the end of its stderr.
    """
    found: dict[str, dict[str, Any]] = {}
    end = time.monotonic() + seconds
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for number, (name, command) in enumerate(commands.items()):
        share = max(1.0, (end - time.monotonic()) / (len(commands) - number))
        row = found[name] = {}
        print(f"{name}: at most {share:.0f} s", file=sys.stderr)
        try:
            _run(name, command, share, row)
        except KeyboardInterrupt:
            row |= {"stopped": True}
            print("stopped; what is measured so far:", file=sys.stderr)
            break
    return found


def _run(name: str, command: Sequence[str], seconds: float, row: dict[str, Any]) -> None:
    """Run a command for at most `seconds`, and put its figures into `row`."""
    errors: list[str] = []
    ended = threading.Event()
    # a new session is a process group, so that `_end` also ends the processes that the command starts
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        timer = threading.Timer(seconds, lambda: (ended.set(), _end(process)))
        timer.start()
        reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
        reader.start()
        try:
            for line in process.stdout or ():
                _take(name, line, row)
            failed = process.wait() != 0
        finally:
            timer.cancel()
            _end(process)
            reader.join(5)
    if ended.is_set() and row:
        row |= {"stopped": True}
    elif ended.is_set():
        row |= {"error": f"no figure in {seconds:.0f} s; give it more time. {''.join(errors)[-ERROR:]}"}
    elif failed or not row:
        row |= {"error": "".join(errors)[-ERROR:]}


def _take(name: str, line: str, row: dict[str, Any]) -> None:
    """Put the figures of a line into `row` and print the progress; a line that is no JSON object goes to stderr."""
    if not line.startswith("{"):
        print(line, end="", file=sys.stderr)
        return
    row |= json.loads(line)
    if "steps" in row:
        print(f"{name}: {row['steps']} steps, {row['ms_per_step']} ms each", file=sys.stderr)


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and all its child processes: SIGTERM first, and SIGKILL after GRACE seconds."""
    for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
