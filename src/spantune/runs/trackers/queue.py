"""The queue between a run and a tracker, so that a dashboard that is slow, full or gone delays no step and ends no run.

What a tracker costs the run is putting a call into it; a thread takes it out again. The price is that a hard kill loses
what is still in the queue: `metrics.jsonl` has it, and a resumed run tells its trackers everything again. It refuses to
wait without a limit: a tracker that has not finished in time is left, and the caller can say so.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import Protocol

from spantune.runs.trackers.interface import Call, Tracker

WAITING = 10_000
"""Calls that may wait for a tracker; over it the tracker is dropped, since it would take ever more memory."""

log = logging.getLogger(__name__)


class Remote(Tracker, Protocol):
    """A tracker elsewhere."""

    def opened(self) -> None:
        """Wait until it can be called; raises when it never can."""

    def leave(self) -> None:
        """Have done with it, whatever it is doing."""


class Worker:
    """One tracker with its queue and thread.

    Args:
        name: its name for people.
        tracker: it; called in the thread.
    """

    def __init__(self, name: str, tracker: Remote):
        self.name, self._tracker = name, tracker
        self._calls: queue.Queue[Call] = queue.Queue(WAITING)
        self._settled = threading.Event()
        self._finished = self._dropped = self._left = False
        self._thread = threading.Thread(target=self._work, name=f"track {name}", daemon=True)
        self._thread.start()

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

    def finish(self, state: str) -> None:
        """Have the tracker closed, after all that waits."""

        def last(tracker: Tracker) -> None:
            tracker.finish(state)
            self._finished = True

        self.put(last)

    def finished(self, seconds: float) -> bool:
        """Whether the tracker ended within this time, having taken everything; one that did not is left."""
        self._thread.join(0 if self._dropped else seconds)
        if not self._finished:
            self._left = True  # that it ends now is no news
            self._tracker.leave()
        return self._finished

    @property
    def dropped(self) -> bool:
        """Whether it was given up before, which was said."""
        return self._dropped

    def _work(self) -> None:
        what = "could not start"
        try:
            self._tracker.opened()
            self._settled.set()
            what = "failed and is dropped"
            while not self._finished:
                self._calls.get()(self._tracker)
        except Exception as error:  # the boundary to foreign SDKs: no dashboard is no reason not to train
            if not self._dropped and not self._left:
                self._dropped = True
                log.error("%s %s (%s); the run goes on", self.name, what, error)
        finally:
            self._settled.set()
