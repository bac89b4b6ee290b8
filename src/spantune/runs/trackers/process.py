"""A tracker in a process of its own, which protects the run's process from the tracker's SDK.

SDKs of dashboards install handlers for signals, exceptions and exit, read and set environment variables, print to
stdout and wait for their cloud without a limit. A process of its own can be stopped by a message, and killed. When the
run's process ends in any way, the tracker sees the end of its input and closes its record: even a hard kill of the run
leaves a complete one. The cost is a second or two to start, and the memory of a Python process. The process outlives
the run by no more than the time that a tracker has to finish.

Calls go in as pickles; replies and log records come out as lines of JSON. Both ends are in this module.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import queue
import re
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, NoReturn, Protocol

from spantune.core import RunError, printable, to_json
from spantune.runs.trackers.interface import Chart, PredictionRow, RunInfo, Tracker

FINISH_SECONDS = 60.0
"""Longest that a tracker may take to finish."""
_START = """
import sys
source, paths = sys.argv[1], sys.path
if source not in paths:
    paths.insert(next((i for i, path in enumerate(paths) if path.endswith("-packages")), len(paths)), source)
from spantune.runs.trackers.process import main
main()
"""
"""What the process runs: it finds this very spantune, after the standard library and before what is installed."""
_ERROR = re.compile(r"(error|exception|traceback|fatal|failed|failure)\b", re.IGNORECASE)
"""What a line that tells of an error has in it."""
log = logging.getLogger(__name__)


class Backend(Protocol):
    """A class that opens a tracker; it is pickled by its name."""

    def __call__(self, info: RunInfo) -> Tracker:
        """Open the tracker."""


class TrackerProcess:
    """A tracker whose calls are sent to its process.

    Args:
        name: the tracker's name; one process at a time writes its record of a run.
        backend: what opens the tracker in the process.
        info: what the tracker is told about the run.
        environment: the variables of the process; those of this process when absent.
    """

    def __init__(self, name: str, backend: Backend, info: RunInfo, environment: Mapping[str, str] | None = None):
        self._opening = (name, backend, replace(info, gold={}), FINISH_SECONDS)
        self._environment = environment
        self._started: _Process | None = None

    def open(self) -> None:
        """Start the process and wait until the tracker has opened.

        Raises:
            RunError: the tracker could not be opened.
            OSError: the process could not be started.
        """
        self._started = _Process(self._environment)
        self._started.send(("open", self._opening))
        self._started.reply()

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        """Send scalars."""
        self._process.send(("metrics", (step, values, split)))

    def predictions(self, step: int, name: str, rows: Sequence[PredictionRow]) -> None:
        """Send predictions."""
        self._process.send(("predictions", (step, name, rows)))

    def chart(self, step: int, chart: Chart) -> None:
        """Send a chart's data; it is drawn in the process."""
        self._process.send(("chart", (step, chart)))

    def attach(self, step: int, path: Path) -> None:
        """Send the path of the report."""
        self._process.send(("attach", (step, path)))

    def finish(self, state: str) -> None:
        """Wait until the tracker has closed its record.

        Raises:
            RunError: it failed, now or before.
        """
        self._process.send(("finish", (state,)))
        self._process.reply()
        self._process.end()

    def kill(self) -> None:
        """Kill the process."""
        if self._started:
            self._started.end(kill=True)

    @property
    def _process(self) -> _Process:
        assert self._started, "called before it was open"
        return self._started


def call_apart(
    seconds: float, function: Callable[..., None], *arguments: object, environment: Mapping[str, str] | None = None
) -> None:
    """Call a function of a module in a process of its own, for a bounded time.

    Raises:
        RunError: the function raised an error.
        TimeoutError: it did not end in time and was killed.
    """
    process = _Process(environment)
    try:
        process.send(("call", (function, arguments, seconds)))
        process.reply(seconds)
    finally:
        process.end(kill=True)


class _Process:
    """The run's end of the process."""

    def __init__(self, environment: Mapping[str, str] | None):
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, str(Path(__file__).parents[3])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C in a terminal is for the run, which tells its trackers how it ended
        )
        self._replies: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, call: tuple[str, tuple[object, ...]]) -> None:
        """Send a call.

        Raises:
            RunError: the process has ended; says why.
        """
        assert self._popen.stdin
        try:
            pickle.dump(call, self._popen.stdin)
            self._popen.stdin.flush()
        except (OSError, ValueError):
            self.reply()
            raise RunError("its process has ended") from None

    def reply(self, seconds: float | None = None) -> None:
        """Wait for the reply to a call.

        Raises:
            RunError: the call failed.
            TimeoutError: there is no reply in this time.
        """
        try:
            failure = self._replies.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        if failure is not None:
            raise RunError(failure)

    def end(self, kill: bool = False) -> None:
        """Close the input of the process, or kill it, and wait for its end."""
        if kill:
            self._popen.kill()
        assert self._popen.stdin and self._popen.stdout
        try:
            self._popen.stdin.close()
        except OSError:  # a call was still buffered when the process ended
            log.debug("a call was not taken", exc_info=True)
        self._popen.wait()
        self._reader.join()
        self._popen.stdout.close()

    def _read(self) -> None:
        assert self._popen.stdout
        for line in self._popen.stdout:
            message = json.loads(line)
            if "log" in message:
                logging.getLogger(message["name"]).log(message["log"], "%s", message["message"])
            else:
                self._replies.put(message["failure"])
        self._replies.put(f"its process has ended with code {self._popen.wait()}")


def main() -> NoReturn:
    """The process's end: execute the calls that it is sent until its input ends; never returns."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    printed = _PrintedLines(replies)
    logger = logging.getLogger("spantune")
    logger.setLevel(logging.INFO)
    logger.addHandler(_LogSender(replies))
    try:
        kind, arguments = pickle.load(sys.stdin.buffer)
        if kind == "call":
            function, function_arguments, seconds = arguments
            _end_after(seconds)
            function(*function_arguments)
        else:
            name, backend, info, seconds = arguments
            with info.owned(name):
                _serve(backend(info), seconds, sys.stdin.buffer, replies)
    except Exception as error:  # one line is sent as the reply, and the traceback goes to run.log
        log.info("%s", traceback.format_exc())
        _leave(replies, printed, _first_line(error))
    _leave(replies, printed, None)


class _PrintedLines:
    """What the SDK and its libraries print, to stdout or stderr: it goes line by line into the log of the run.

    Banners and progress are for `run.log` only; a line that tells of an error is a warning, which people see.
    """

    def __init__(self, replies: IO[str]) -> None:
        self._replies = replies
        self._stderr = os.dup(2)
        self._end, write_end = os.pipe()
        for descriptor in (1, 2):
            os.dup2(write_end, descriptor)
        os.close(write_end)
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send what is left; a process that the SDK has started may hold its end open, and is not waited for."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # the SDK may have closed it
                stream.flush()
        for descriptor in (1, 2):
            os.dup2(self._stderr, descriptor)
        self._thread.join(1.0)

    def _copy(self) -> None:
        with os.fdopen(self._end, encoding="utf-8", errors="backslashreplace") as lines:
            for line in lines:
                text = printable(line.rstrip())
                if text:
                    level = logging.WARNING if _ERROR.search(text) else logging.INFO
                    _reply(self._replies, {"log": level, "name": __name__, "message": text})


def _leave(replies: IO[str], printed: _PrintedLines, failure: str | None) -> NoReturn:
    """Write out what the SDK has printed, send the last reply, and end the process."""
    printed.close()
    _reply(replies, {"failure": failure})
    os._exit(0 if failure is None else 1)  # an SDK's threads may still wait for its cloud


def _serve(tracker: Tracker, seconds: float, calls: IO[bytes], replies: IO[str]) -> None:
    """Pass calls on to the tracker up to `finish`."""
    _reply(replies, {"failure": None})
    while True:
        try:
            method, arguments = pickle.load(calls)
        except (EOFError, pickle.UnpicklingError):  # the run was killed, perhaps while it sent
            method, arguments = "finish", ("aborted",)
        if method == "finish":
            _end_after(seconds)
        try:
            getattr(tracker, method)(*arguments)
        except Exception:
            if method != "finish":
                _end_after(seconds)
                tracker.finish("crashed")
            raise
        if method == "finish":
            return


def _end_after(seconds: float) -> None:
    """End the process after this time, since a run that was killed cannot kill it."""
    timer = threading.Timer(seconds + 5, os._exit, (1,))
    timer.daemon = True
    timer.start()


class _LogSender(logging.Handler):
    """Sends log records to the run's process, where run.log and stderr are."""

    def __init__(self, replies: IO[str]):
        super().__init__()
        self._replies = replies

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        _reply(self._replies, {"log": record.levelno, "name": record.name, "message": record.getMessage()})


def _reply(replies: IO[str], message: Mapping[str, object]) -> None:
    try:
        replies.write(to_json(message, ascii_only=True) + "\n")  # at once, since two threads reply
        replies.flush()
    except OSError:  # the run was killed: nobody reads any more
        return


def _first_line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or ["no message"])[0]
    return text if isinstance(error, RunError) else f"{type(error).__name__}: {text}"
