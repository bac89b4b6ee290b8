"""Parts of a bench, each in processes of its own under a time limit; what a part has printed by then counts.

A part prints a JSON object on a line of its own whenever it has new figures; the last value of each key is kept.
Whatever else it prints goes to stderr. A bench that is stopped (Ctrl-C, SIGTERM) gives what is measured so far.
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

GRACE = 10  # seconds between the request to end and the end
ERROR = 3000  # characters of stderr that are kept of a part that failed


def run_parts(commands: Mapping[str, Sequence[str]], seconds: float) -> dict[str, dict[str, Any]]:
    """Run the commands one after another.

    Args:
        commands: the command line of each part, by its name.
        seconds: of all parts together; what is left is divided evenly by the parts that are left.

    Returns:
        The figures of each part that was begun, with `stopped` where it was ended early, or `error`.
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
    """Run a command for so many seconds at most, and put its figures into `row`."""
    errors: list[str] = []
    ended = threading.Event()
    # a session of its own, so that the processes that it starts are ended with it
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
    """Put the figures of a line into `row`, and say how far the part is."""
    if not line.startswith("{"):
        print(line, end="", file=sys.stderr)
        return
    row |= json.loads(line)
    if "steps" in row:
        print(f"{name}: {row['steps']} steps, {row['ms_per_step']} ms each", file=sys.stderr)


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and all that it has started, with a moment to end by themselves."""
    for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
