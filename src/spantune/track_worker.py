"""A tracker in a thread of its own, so that a dashboard that is slow, full or gone delays no step and ends no run.

What a tracker costs the run is putting a call into a queue. The price is that a hard kill loses what is still in the
queue: `metrics.jsonl` has it, and a resumed run tells its trackers everything again. It refuses to wait without a
limit: a tracker that has not opened or finished in time is left behind, and the caller can say so.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from spantune.tracker import Call, Tracker

WAITING = 10_000
"""Calls that may wait for a tracker; over it the tracker is dropped, since it would take ever more memory."""

log = logging.getLogger(__name__)
Value = TypeVar("Value")


class Worker:
    """One tracker in its thread.

    Args:
        name: its name for people.
        opener: makes it, in the thread.
    """

    def __init__(self, name: str, opener: Callable[[], Tracker]):
        self.name = name
        self._calls: queue.Queue[Call] = queue.Queue(WAITING)
        self._settled = threading.Event()
        self._finished = self._dropped = False
        self._thread = threading.Thread(target=self._work, args=(opener,), name=f"track {name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread still works."""
        return self._thread.is_alive()

    def settled(self, seconds: float) -> bool:
        """Whether the tracker has opened, or failed to, within this time."""
        return self._settled.wait(seconds)

    def put(self, call: Call) -> None:
        """Have the tracker called; without effect when it was dropped."""
        if self._dropped:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._dropped = True
            log.error("%s is %d calls behind and is dropped; the run goes on", self.name, WAITING)

    def finish(self, state: str, seconds: float) -> bool:
        """Close the tracker after all that waits; whether it ended within this time, having taken everything."""

        def last(tracker: Tracker) -> None:
            tracker.finish(state)
            self._finished = True

        self.put(last)
        if not self._dropped:
            self._thread.join(seconds)
        return self._finished

    def _work(self, opener: Callable[[], Tracker]) -> None:
        try:
            tracker = opener()
        except Exception as error:  # the boundary to foreign SDKs: no dashboard is no reason not to train
            self._drop("could not start", error)
            return
        finally:
            self._settled.set()
        try:
            while not self._finished:
                self._calls.get()(tracker)
        except Exception as error:  # the same boundary
            self._drop("failed and is dropped", error)
            _quietly(lambda: tracker.finish("crashed"))

    def _drop(self, what: str, error: Exception) -> None:
        self._dropped = True
        log.error("%s %s (%s: %s); the run goes on", self.name, what, type(error).__name__, _first_line(error))
        log.info("%s %s", self.name, what, exc_info=error)  # the traceback is for run.log only


def bounded(seconds: float, call: Callable[[], Value]) -> Value:
    """What `call` returns or raises, if it does so within this time; else it is left behind in its thread.

    Raises:
        TimeoutError: it did not.
    """
    found: list[Value] = []
    failed: list[Exception] = []

    def work() -> None:
        try:
            found.append(call())
        except Exception as error:  # handed to the caller's thread
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(f"not finished in {seconds:.0f} s")
    return found[0]


def _quietly(call: Callable[[], None]) -> None:
    try:
        call()
    except Exception:  # it has failed already, and was said to
        log.info("closing it failed too", exc_info=True)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
