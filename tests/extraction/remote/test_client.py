"""Requests are retried with growing pauses until the document or the server is given up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import httpx2 as httpx
import pytest

from spantune.core import ModelError
from spantune.extraction.remote.breaker import Patience
from spantune.extraction.remote.client import Client, Refused, Server

QUICK = Patience(first=0.01, longest=0.02, seconds=20)
REQUEST = {"prompt": [1]}
Handler = Callable[[httpx.Request], httpx.Response]


class Asked:
    """A client whose server is a function; `times` has the times of the requests for completions."""

    def __init__(self, answer: Callable[[int], httpx.Response], *, well: bool = True, **options: object):
        self.times: list[float] = []

        def handle(request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith("/models"):
                return httpx.Response(200 if well else 500, json={"data": []})
            self.times.append(time.monotonic())
            return answer(len(self.times))

        self.client = Client(Server("http://127.0.0.1:1/v1", **{"patience": QUICK, **options}))  # type: ignore[arg-type]
        self.client._http = httpx.Client(base_url="http://server/v1/", transport=httpx.MockTransport(handle))

    def complete(self) -> object:
        return self.client.complete(REQUEST, lambda body: body)


def unreachable(number: int) -> httpx.Response:
    raise httpx.ConnectError("it is down")


def test_pauses_grow_up_to_the_longest_and_are_random(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    pause = Patience.pause

    def recorded(patience: Patience, state: Any) -> float:
        pauses.append(pause(patience, state))
        return pauses[-1]

    monkeypatch.setattr(Patience, "pause", recorded)
    asked = Asked(
        lambda number: httpx.Response(500 if number < 9 else 200, json={}),
        attempts=50,
        patience=Patience(first=0.04, longest=0.16),
    )
    asked.complete()
    gaps = [after - before for before, after in pairwise(asked.times)]
    assert len(pauses) == len(gaps) == 8 and len({round(seconds, 5) for seconds in pauses}) > 4
    for seconds, gap, most in zip(pauses, gaps, (0.04, 0.08, 0.16, 0.16, 0.16, 0.16, 0.16, 0.16), strict=True):
        assert most / 2 <= seconds <= most and gap >= seconds


def test_a_busy_server_is_asked_again_no_earlier_than_it_says() -> None:
    busy = {"Retry-After": "0.3"}
    asked = Asked(lambda number: httpx.Response(429 if number < 3 else 200, json={"n": number}, headers=busy))
    assert asked.complete() == {"n": 3}
    assert all(after - before >= 0.3 for before, after in pairwise(asked.times))


def test_a_request_that_fails_again_and_again_is_refused_if_the_server_is_well() -> None:
    asked = Asked(lambda number: httpx.Response(500, json={"error": {"message": "no\nway"}}), attempts=3)
    with pytest.raises(Refused, match=r"the server failed 3 times, lastly: 500 Internal Server Error: no way"):
        asked.complete()
    assert len(asked.times) == 3
    unreadable = Asked(lambda number: httpx.Response(200, content=b"[" * 100_000), attempts=2)
    with pytest.raises(Refused, match="nested too deep"):
        unreadable.complete()


def test_a_server_that_answers_nothing_is_given_up_for_all_threads() -> None:
    patience = Patience(first=0.01, longest=0.02, seconds=0.2)
    for answer in (unreachable, lambda number: httpx.Response(500, json={})):
        asked, errors = Asked(answer, well=False, attempts=2, patience=patience), list[str]()

        def ask(asked: Asked = asked, errors: list[str] = errors) -> None:
            with pytest.raises(ModelError) as caught:
                asked.complete()
            errors.append(str(caught.value))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(3)
        assert len(errors) == 4 and len(set(errors)) == 1 and "given up: no answer for 0 seconds, lastly: " in errors[0]
        sent = len(asked.times)
        with pytest.raises(ModelError, match="go on with --resume"):
            asked.complete()
        assert len(asked.times) == sent


def test_patience_begins_with_the_first_failure_and_ends_with_an_answer() -> None:
    asked = Asked(
        lambda number: httpx.Response(503 if number % 2 else 200, json={}),
        patience=Patience(first=0.15, longest=0.15, seconds=0.2),
    )
    time.sleep(0.3)  # nothing to do in this time
    for _ in range(4):
        asked.complete()


def test_a_pause_ends_when_the_client_is_closed() -> None:
    asked = Asked(unreachable, patience=Patience(first=60.0, longest=60.0))
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            asked.complete()
        except ModelError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    asked.client.close()
    for thread in threads:
        thread.join(2)
    assert len(errors) == 2 and "the client was closed" in str(errors[0])
