"""A worker takes calls in order and without delay, and neither its tracker's failure nor its slowness gets out."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from spantune import track_worker
from spantune.track_worker import Worker, bounded


class Keeping:
    """Keeps what it is told, in which thread."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.threads = {threading.current_thread().name}

    def add(self, value: Any) -> None:
        self.told.append(value)
        self.threads.add(threading.current_thread().name)

    def finish(self, state: str) -> None:
        self.add(state)


def test_calls_come_in_order_in_one_thread_of_its_own() -> None:
    made: list[Keeping] = []

    def opener() -> Any:
        made.append(Keeping())
        return made[0]

    worker = Worker("x", opener)
    assert worker.settled(5)
    for number in range(500):
        worker.put(lambda tracker, number=number: tracker.add(number))  # type: ignore[misc]
    assert worker.finish("success", 5)
    assert made[0].told == [*range(500), "success"] and made[0].threads == {"track x"}
    assert not worker.alive


def test_one_that_cannot_open_takes_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    def opener() -> Any:
        raise RuntimeError("no such host")

    worker = Worker("x", opener)
    assert worker.settled(5)
    worker.put(lambda tracker: pytest.fail("called"))
    assert not worker.finish("success", 5)
    assert "x could not start (RuntimeError: no such host); the run goes on" in caplog.text


def test_one_that_is_too_far_behind_is_dropped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(track_worker, "WAITING", 3)
    go_on, keeping = threading.Event(), Keeping()
    worker = Worker("x", lambda: keeping)  # type: ignore[arg-type,return-value]
    for _ in range(10):
        worker.put(lambda tracker: go_on.wait(5) and None)
    assert caplog.text.count("x is 3 calls behind and is dropped; the run goes on") == 1
    assert not worker.finish("success", 0.1)
    go_on.set()


def test_bounded_gives_the_value_the_error_or_up() -> None:
    assert bounded(5, lambda: 7) == 7

    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        bounded(5, fail)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="not finished in 0 s"):
        bounded(0.05, lambda: time.sleep(1))
    assert time.monotonic() - began < 0.5
