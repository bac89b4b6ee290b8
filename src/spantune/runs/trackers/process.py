"""A tracker in its own process, so that the SDK of the tracker cannot disturb the process of the run.

SDKs of dashboards install handlers for signals, exceptions and exit, read and set environment variables, print to
stdout and wait for their cloud without a time limit. Their own process can be stopped by a message or killed. When the
process of the run ends for any reason, the tracker process reads the end of its input and closes its record. So the
record is complete even after a hard kill of the run. The cost is one or two seconds for the start, and the memory of a
Python process. The tracker process outlives the run by at most the time that a tracker has to finish.

Calls are sent to the process as pickles. Replies and log records are returned as lines of JSON. This module has the
code of both ends.
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
"""The maximum time, in seconds, that a tracker may take to finish."""
_START = """
import sys
source, paths = sys.argv[1], sys.path
if source not in paths:
    paths.insert(next((i for i, path in enumerate(paths) if path.endswith("-packages")), len(paths)), source)
from spantune.runs.trackers.process import main
main()
"""
"""The program of the process. It imports the same spantune as the run.

The folder of spantune is put into the path after the standard library and before the installed packages.
"""
_ERROR = re.compile(r"(error|exception|traceback|fatal|failed|failure)\b", re.IGNORECASE)
"""A printed line with one of these words is taken for an error message."""
log = logging.getLogger(__name__)


class Backend(Protocol):
    """A class or function that opens a tracker. It is pickled, so it must be found under its name in its module."""

    def __call__(self, info: RunInfo) -> Tracker:
        """Open the tracker of a run."""


class TrackerProcess:
    """A tracker whose calls are sent to its process.

    Args:
        name: the name of the tracker. Only one process at a time may write the tracker's record of a run.
        backend: opens the tracker inside the process.
        info: the facts about the run that the tracker gets.
        environment: the environment variables of the process; None for those of this process.
    """

    def __init__(self, name: str, backend: Backend, info: RunInfo, environment: Mapping[str, str] | None = None):
        self._opening = (name, backend, replace(info, gold={}), FINISH_SECONDS)
        self._environment = environment
        self._started: _Process | None = None

    def open(self) -> None:
        """Start the process, and wait until the tracker has opened.

        Raises:
            RunError: the tracker could not be opened.
            OSError: the process could not be started.
        """
        self._started = _Process(self._environment)
        self._started.send(("open", self._opening))
        self._started.reply()

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        """Send figures; see `Tracker.metrics`. This and the next three methods do not wait for a reply."""
        self._process.send(("metrics", (step, values, split)))

    def predictions(self, step: int, name: str, rows: Sequence[PredictionRow]) -> None:
        """Send predictions."""
        self._process.send(("predictions", (step, name, rows)))

    def chart(self, step: int, chart: Chart) -> None:
        """Send the data of a chart, which is drawn in the process."""
        self._process.send(("chart", (step, chart)))

    def attach(self, step: int, path: Path) -> None:
        """Send the path of the report."""
        self._process.send(("attach", (step, path)))

    def finish(self, state: str) -> None:
        """Close the record of the tracker, and wait until this is done.

        Raises:
            RunError: the tracker failed in this or an earlier call.
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
    """Call a function in a process of its own, with a time limit.

    Args:
        seconds: the time limit.
        function: a function that can be pickled, so one that is defined in a module.
        arguments: its arguments.
        environment: the environment variables of the process; None for those of this process.

    Raises:
        RunError: the function raised an error.
        TimeoutError: the function did not end in time, and its process was killed.
    """
    process = _Process(environment)
    try:
        process.send(("call", (function, arguments, seconds)))
        process.reply(seconds)
    finally:
        process.end(kill=True)


class _Process:
    """The end of the connection in the process of the run. It starts the tracker process."""

    def __init__(self, environment: Mapping[str, str] | None):
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, str(Path(__file__).parents[3])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C must reach only the run, which tells its trackers how it ended
        )
        self._replies: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, call: tuple[str, tuple[object, ...]]) -> None:
        """Send a call, without waiting for its reply.

        Args:
            call: the kind or method, and its arguments.

        Raises:
            RunError: the process has ended. The message says why.
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

        Args:
            seconds: the maximum time to wait; None for no limit.

        Raises:
            RunError: the call failed, or the process has ended.
            TimeoutError: there was no reply in time.
        """
        try:
            failure = self._replies.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        if failure is not None:
            raise RunError(failure)

    def end(self, kill: bool = False) -> None:
        """Close the input of the process, or kill the process, and wait until it has ended."""
        if kill:
            self._popen.kill()
        assert self._popen.stdin and self._popen.stdout
        try:
            self._popen.stdin.close()
        except OSError:  # a call was still in the buffer when the process ended
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
    """Run the tracker process: execute the calls that are sent to it until its input ends. Never returns."""
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
    except Exception as error:  # the reply is one line, and the traceback goes to run.log
        log.info("%s", traceback.format_exc())
        _leave(replies, printed, _first_line(error))
    _leave(replies, printed, None)


class _PrintedLines:
    """Copies what the SDK and its libraries print to stdout and stderr, line by line, into the log of the run.

    A line that looks like an error is logged as a warning, which the user sees. Other lines, such as banners and
    progress, go to `run.log` only.
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
        """Copy the remaining lines, for at most a second.

        A process that the SDK has started may keep the pipe open for longer.
        """
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # the SDK may have closed the stream
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
    """Copy the remaining printed lines, send the last reply, and end the process.

    Args:
        replies: the stream of replies.
        printed: the copier of printed lines.
        failure: the error message of the last call; None if it succeeded.
    """
    printed.close()
    _reply(replies, {"failure": failure})
    os._exit(0 if failure is None else 1)  # not sys.exit, since threads of an SDK may still wait for its cloud


def _serve(tracker: Tracker, seconds: float, calls: IO[bytes], replies: IO[str]) -> None:
    """Pass calls to the tracker until it has finished. If the input ends, as for a killed run, finish as `aborted`.

    Args:
        tracker: the opened tracker.
        seconds: the maximum time that `finish` may take.
        calls: the stream of pickled calls.
        replies: the stream of replies.
    """
    _reply(replies, {"failure": None})
    while True:
        try:
            method, arguments = pickle.load(calls)
        except (EOFError, pickle.UnpicklingError):  # the run was killed, perhaps while it was sending a call
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
    """End this process 5 seconds after `seconds` have passed, since a run that was killed cannot kill it."""
    timer = threading.Timer(seconds + 5, os._exit, (1,))
    timer.daemon = True
    timer.start()


class _LogSender(logging.Handler):
    """A log handler that sends records to the process of the run, which writes them to run.log and stderr."""

    def __init__(self, replies: IO[str]):
        super().__init__()
        self._replies = replies

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        _reply(self._replies, {"log": record.levelno, "name": record.name, "message": record.getMessage()})


def _reply(replies: IO[str], message: Mapping[str, object]) -> None:
    try:
        replies.write(to_json(message, ascii_only=True) + "\n")  # one call for the whole line, since two threads write
        replies.flush()
    except OSError:  # the run was killed, so nobody reads the reply
        return


def _first_line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or ["no message"])[0]
    return text if isinstance(error, RunError) else f"{type(error).__name__}: {text}"
