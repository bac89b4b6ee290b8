"""Graceful stop: the first SIGINT or SIGTERM requests a stop, and a second one ends the process at once.

The signal handler only records the request, so that a signal never interrupts the writing of a file or checkpoint, or a
call of a tracker. The running work checks the request where stopping is safe: after a step, or between two documents.
So a stop takes up to one step. Python delivers signals to the main thread only; in other threads this module does
nothing.
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
    """Raised when a signal ends the work.

    The attribute `exit_code` follows the convention of shells: 130 for SIGINT, 143 for SIGTERM.

    Args:
        number: the number of the signal.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Stopped(Interrupted):
    """Raised after the first signal, at a place where stopping is safe."""


class StopRequest:
    """A request to stop, made by a signal. It is true once a signal was received; `number` is that of the signal."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    def check(self) -> None:
        """Raise an error if a stop was requested.

        Raises:
            Stopped: a stop was requested.
        """
        if self.number is not None:
            raise Stopped(self.number)

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield `items`, and check between them whether a stop was requested.

        Raises:
            Stopped: a stop was requested.
        """
        self.check()
        for item in items:
            yield item
            self.check()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM as stop requests inside the block.

        Raises:
            Interrupted: a second signal was received.
        """
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
        if os.environ.get("RANK", "0") != "0":  # only rank 0 prints messages
            return
        # print is not safe here, since the signal may have interrupted a call of print
        os.write(2, f"\n{signal.Signals(number).name}: stopping after this step; a second signal stops now\n".encode())
