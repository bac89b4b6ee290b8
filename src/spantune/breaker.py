"""A circuit breaker: many threads ask one server, and leave it alone while it is down.

Failures in a row open it; then one request at a time goes through, after a pause that grows, until one is answered. A
server that answers nothing for as long as the patience lasts is given up, for all threads at once.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass

from spantune.errors import ModelError


@dataclass(frozen=True)
class Patience:
    """How a server that fails is waited for, in seconds.

    The first pause is `first` at most, later ones up to twice as long each time and `longest` at most; after `seconds`
    without any answer the server is given up.
    """

    first: float = 0.5
    longest: float = 30.0
    seconds: float = 300.0

    def pause(self, times: int) -> float:
        """The pause after so many earlier ones: at random, so that threads do not come back all at once."""
        return random.uniform(0.5, 1.0) * min(self.longest, self.first * 2.0 ** min(times, 30))


class Breaker:
    """Lets requests through while the server is well, one at a time while it is not, and none once it is given up."""

    THRESHOLD = 5
    """Failures in a row after which the server is taken to be down."""

    def __init__(self, patience: Patience):
        self._patience = patience
        self._changed = threading.Condition()
        self._failures = 0
        self._rounds = 0
        self._opened_until = 0.0
        self._probing = False
        self._failing_since: float | None = None
        self._lost: str | None = None

    def enter(self) -> None:
        """Wait for leave to ask.

        Raises:
            ModelError: the server is given up.
        """
        with self._changed:
            while True:
                self._check()
                left = self._opened_until - time.monotonic()
                if self._failures < self.THRESHOLD:
                    return
                if left <= 0 and not self._probing:
                    self._probing = True
                    return
                self._changed.wait(max(left, 0.05))

    def leave(self, failure: str | None = None) -> None:
        """Say that a request came to nothing; to a `failure` of the server where it was one.

        Raises:
            ModelError: there was no answer for so long that the server is given up.
        """
        with self._changed:
            self._probing = False
            if failure is not None:
                self._failures += 1
                now = time.monotonic()
                # once, and not for each of those that were under way
                if self._failures >= self.THRESHOLD and now >= self._opened_until:
                    self._opened_until = now + self._patience.pause(self._rounds)
                    self._rounds += 1
                self._give_up_after(failure)
            self._changed.notify_all()
            self._check()

    def answered(self) -> None:
        """Say that the server is well."""
        with self._changed:
            self._failures, self._rounds = 0, 0
            self._probing, self._failing_since = False, None
            self._changed.notify_all()

    def pause(self, times: int, why: str, least: float = 0.0) -> None:
        """Sleep before the next try after a request has failed so many `times`, `least` seconds at least.

        Raises:
            ModelError: there was no answer for so long that the server is given up.
        """
        until = time.monotonic() + max(self._patience.pause(times - 1), least)
        with self._changed:
            self._give_up_after(why)
            while (left := until - time.monotonic()) > 0:
                self._check()
                self._changed.wait(left)
            self._check()

    def give_up(self, why: str) -> None:
        """Let nobody in any more."""
        with self._changed:
            self._lost = self._lost or why
            self._changed.notify_all()

    def _give_up_after(self, why: str) -> None:
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        if now - self._failing_since > self._patience.seconds:
            self._lost = self._lost or f"no answer for {now - self._failing_since:.0f} seconds, lastly: {why}"
            self._changed.notify_all()

    def _check(self) -> None:
        if self._lost is not None:
            raise ModelError(f"the server is given up: {self._lost}; see to it, and go on with --resume")
