"""A polite end: the first SIGINT or SIGTERM is a request, a second one ends the process at once.

The handler notes the request and does nothing else, so that no signal tears a file, a checkpoint or a tracker's call in
two; whoever works looks at the request where stopping is safe: after a step, between two documents. The price is that
an end takes as long as a step does. Outside the main thread, which alone gets signals, nothing is handled.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
HANDLED = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Work that a signal has ended; `exit_code` is what a shell expects of it: 130 for SIGINT, 143 for SIGTERM."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Stopped(Interrupted):
    """Work that ended where stopping is safe, as a first signal asked."""


class StopRequest:
    """Whether a signal has asked the work to stop."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    def check(self) -> None:
        """Raise Stopped once the work is asked to stop."""
        if self.number is not None:
            raise Stopped(self.number)

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield `items`, and raise Stopped between two of them once the work is asked to stop."""
        self.check()
        for item in items:
            yield item
            self.check()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM as requests inside the block."""
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

    def _note(self, number: int, frame: Any) -> None:
        if self.number is not None:
            raise Interrupted(number)
        self.number = number
        # not print: the signal may have come in the middle of one
        os.write(2, f"\n{signal.Signals(number).name}: stopping after this step; a second signal stops now\n".encode())
