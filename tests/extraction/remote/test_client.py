"""While a server is down one request at a time goes through, after pauses that grow, until it is given up for all."""

from __future__ import annotations

import threading
import time

import pytest

from spantune.core import ModelError
from spantune.extraction.remote.client import Breaker, Patience


def opened(patience: Patience) -> Breaker:
    breaker = Breaker(patience)
    for _ in range(Breaker.THRESHOLD):
        breaker.enter()
    for _ in range(Breaker.THRESHOLD):
        breaker.leave("it is down")
    return breaker


def test_pauses_grow_and_are_never_the_same() -> None:
    patience = Patience(first=1.0, longest=10.0)
    pauses = [[patience.pause(times) for _ in range(50)] for times in (0, 1, 2, 9, 2000)]
    for found, most in zip(pauses, (1, 2, 4, 10, 10), strict=True):
        assert most / 2 <= min(found) < max(found) <= most


def test_one_goes_through_at_a_time_until_one_is_answered() -> None:
    breaker = opened(Patience(first=0.1, longest=0.1))
    through: list[float] = []

    def ask() -> None:
        breaker.enter()
        through.append(time.monotonic())

    started = time.monotonic()
    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.4)
    assert len(through) == 1 and through[0] - started >= 0.05
    breaker.leave("still down")
    time.sleep(0.4)
    assert len(through) == 2
    breaker.answered()
    for thread in threads:
        thread.join(2)
    assert len(through) == 6
    breaker.enter()  # and so is everybody else


def test_failures_that_were_under_way_open_it_once() -> None:
    breaker = Breaker(Patience(first=0.1, longest=100.0))
    for _ in range(40):
        breaker.leave("it is down")
    started = time.monotonic()
    breaker.enter()
    assert time.monotonic() - started < 0.5


def test_a_server_that_answers_nothing_is_given_up_for_all() -> None:
    breaker = opened(Patience(first=0.01, longest=0.02, seconds=0.2))
    errors: list[str] = []

    def ask() -> None:
        try:
            while True:
                breaker.enter()
                breaker.leave("it is down")
        except ModelError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3)
    assert len(errors) == 4 and len(set(errors)) == 1 and "no answer for 0 seconds, lastly: it is down" in errors[0]
    with pytest.raises(ModelError):
        breaker.pause(1, "late")


def test_patience_begins_with_the_first_failure_and_not_before() -> None:
    breaker = Breaker(Patience(first=0.01, longest=0.01, seconds=0.2))
    time.sleep(0.3)  # nothing to do
    for _ in range(3):
        breaker.leave("it is down")
        breaker.answered()
        breaker.pause(1, "busy", least=0.15)
        breaker.answered()
    breaker.enter()


def test_who_waits_is_woken_when_it_is_given_up() -> None:
    breaker = opened(Patience(first=60.0, longest=60.0))
    found: list[str] = []

    def wait(how: str) -> None:
        with pytest.raises(ModelError):
            breaker.enter() if how == "enter" else breaker.pause(9, "busy")
        found.append(how)

    threads = [threading.Thread(target=wait, args=(how,)) for how in ("enter", "pause")]
    for thread in threads:
        thread.start()
    breaker.give_up("the client was closed")
    for thread in threads:
        thread.join(2)
    assert sorted(found) == ["enter", "pause"]
