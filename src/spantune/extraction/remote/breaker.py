"""How long to wait for a server that fails or is busy, and how many requests to send at a time."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from tenacity import RetryCallState, wait_exponential, wait_random_exponential

from spantune.core import ModelError


class Busy(Exception):
    """The server asks for a pause of `seconds` before the next request."""

    def __init__(self, message: str, seconds: float):
        super().__init__(message)
        self.seconds = seconds


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server that fails; all values are seconds.

    The pause before a retry is random, between half of `first` and `first`; it doubles with each retry, up to
    `longest`. After `seconds` without any answer the server is given up.
    """

    first: float = 0.5
    longest: float = 30.0
    seconds: float = 300.0

    def pause(self, state: RetryCallState) -> float:
        """Return the seconds before the next attempt, at random, so that threads do not retry at the same time."""
        half, most = self.first / 2, self.longest / 2
        pause = wait_exponential(half, max=most)(state) + wait_random_exponential(half, max=most)(state)
        error = state.outcome.exception() if state.outcome else None
        return max(pause, error.seconds if isinstance(error, Busy) else 0.0)


CONCURRENCY = 16
"""Requests at a time to a server that states nothing about itself."""


@dataclass(frozen=True, eq=False)
class Ticket:
    """The permission to send one request, with the number of answers and of cuts of the limit when it was given."""

    answers: int
    cuts: int


class Breaker:
    """A circuit breaker for all threads: while the server does not answer, one request at a time probes it.

    A failure counts only if the server has answered nothing since the failed request was sent; the late failure of an
    older request says nothing about the present state. After too long without an answer the server is given up for all
    threads. If the server is busy for some requests but answers others, the limit of requests at a time is halved; it
    rises by one for each `limit` answers (additive increase, multiplicative decrease, as in TCP).

    Args:
        patience: how long to wait for a server that fails.
        concurrency: the most requests at a time.
    """

    def __init__(self, patience: Patience, concurrency: int = CONCURRENCY):
        self._patience = patience
        self._most, self.limit = concurrency, float(concurrency)
        self._in_flight = self._cuts = 0
        self._changed = threading.Condition()
        self._answers = 0
        self._since: float | None = None  # the time of the first failure since the last answer
        self._probe: Ticket | None = None
        self._failed_probes, self._next_probe = 0, 0.0
        self._reason: str | None = None
        self.given_up = threading.Event()

    def enter(self) -> Ticket:
        """Wait until a request may be sent: at once while the server answers, otherwise as the only probe.

        Raises:
            ModelError: the server is given up.
        """
        with self._changed:
            while True:
                if self.given_up.is_set():
                    raise ModelError(f"the server is given up: {self._reason}; see to it, and go on with --resume")
                wait = self._next_probe - time.monotonic()
                if self._since is None and self._in_flight < int(self.limit):
                    break
                if self._since is not None and self._probe is None and wait <= 0:
                    break
                self._changed.wait(None if self._since is None or self._probe else wait)
            ticket = Ticket(self._answers, self._cuts)
            self._in_flight += 1
            if self._since is not None:
                self._probe = ticket
            return ticket

    def busy(self, ticket: Ticket, reason: str) -> None:
        """Record that the server was too busy; requests that were sent together halve the limit only once."""
        with self._changed:
            if ticket.cuts == self._cuts:
                self._cuts += 1
                self.limit = max(1.0, min(self.limit, self._in_flight) / 2)
        self.failed(ticket, reason)

    def failed(self, ticket: Ticket, reason: str) -> None:
        """Record that a request got no answer."""
        now = time.monotonic()
        with self._changed:
            self._in_flight -= 1
            if ticket.answers != self._answers:
                self._changed.notify_all()
                return
            self._since = self._since or now
            duration = now - self._since
            if self._probe in (None, ticket):
                self._failed_probes += 1
                pause = min(self._patience.longest, self._patience.first * 2.0 ** min(self._failed_probes - 1, 30)) / 2
                self._next_probe = now + pause
                self._probe = None
            self._changed.notify_all()
        if duration > self._patience.seconds:
            self.give_up(f"no answer for {duration:.0f} seconds, lastly: {reason}")

    def answered(self) -> None:
        """Record that the server answered a request."""
        with self._changed:
            self._in_flight -= 1
            self.limit = min(self._most, self.limit + 1 / self.limit)
            self._answers += 1
            self._since = self._probe = None
            self._failed_probes, self._next_probe = 0, 0.0
            self._changed.notify_all()

    def give_up(self, reason: str) -> None:
        """Refuse all further requests, and end every pause; the first `reason` is the one that is reported."""
        with self._changed:
            self._reason = self._reason or reason
            self.given_up.set()
            self._changed.notify_all()
