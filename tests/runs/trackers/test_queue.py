"""A worker hands calls on in order and without delay, and neither a tracker's failure nor its slowness gets out."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from spantune.runs.trackers import queue
from spantune.runs.trackers.queue import Worker


class Keeping:
    """Keeps what it is told, in which thread."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.told: list[Any] = []
        self.threads: set[str] = set()
        self.failure = failure

    def opened(self) -> None:
        if self.failure:
            raise self.failure

    def add(self, value: Any) -> None:
        self.told.append(value)
        self.threads.add(threading.current_thread().name)

    def finish(self, state: str) -> None:
        self.add(state)

    def leave(self) -> None:
        self.told.append("left")


def worker(keeping: Keeping) -> Worker:
    return Worker("x", keeping)  # type: ignore[arg-type]


def test_calls_come_in_order_in_one_thread_of_its_own() -> None:
    keeping = Keeping()
    working = worker(keeping)
    assert working.settled(5)
    for number in range(500):
        working.put(lambda tracker, number=number: tracker.add(number))  # type: ignore[misc]
    working.finish("success")
    assert working.finished(5) and not working.dropped
    assert keeping.told == [*range(500), "success"] and keeping.threads == {"track x"}


def test_one_that_cannot_open_takes_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    keeping = Keeping(RuntimeError("no such host"))
    working = worker(keeping)
    assert working.settled(5)
    working.put(lambda tracker: pytest.fail("called"))
    working.finish("success")
    assert not working.finished(5) and working.dropped and keeping.told == ["left"]
    assert [record.message for record in caplog.records] == ["x could not start (no such host); the run goes on"]


def test_one_that_is_too_far_behind_is_dropped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(queue, "WAITING", 3)
    go_on, keeping = threading.Event(), Keeping()
    working = worker(keeping)
    for _ in range(10):
        working.put(lambda tracker: go_on.wait(5) and None)
    assert caplog.text.count("x is 3 calls behind and is dropped; the run goes on") == 1
    working.finish("success")
    assert not working.finished(0.1) and keeping.told == ["left"]
    go_on.set()
