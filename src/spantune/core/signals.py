"""Graceful stop: the first SIGINT or SIGTERM is a request, a second one ends the process at once.

The handler only records the request, so that no signal interrupts the writing of a file or checkpoint or a tracker's
call. The running work checks the request where stopping is safe: after a step, or between two documents. So a stop
takes up to one step. Only the main thread receives signals; in other threads nothing is handled.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

Item = TypeVar("Item")
HANDLED = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Raised when a signal ends the work; `exit_code` is the shell's convention: 130 for SIGINT, 143 for SIGTERM."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Stopped(Interrupted):
    """Raised where stopping is safe, after the first signal."""


class StopRequest:
    """Records whether a signal has asked the work to stop."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    def check(self) -> None:
        """Raise Stopped if a stop was requested."""
        if self.number is not None:
            raise Stopped(self.number)

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield `items`, and raise Stopped between two of them if a stop was requested."""
        self.check()
        for item in items:
            yield item
            self.check()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Treat SIGINT and SIGTERM as requests inside the block."""
        try:
            previous = {number: signal.signal(number, self._note) for number in HANDLED}
        except ValueError:  # not in the main thread: the caller handles signals
            yield
            return
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise Interrupted(number)
        self.number = number
        if os.environ.get("RANK", "0") != "0":  # of several training processes the first speaks
            return
        # not print: the signal may have come in the middle of one
        os.write(2, f"\n{signal.Signals(number).name}: stopping after this step; a second signal stops now\n".encode())
