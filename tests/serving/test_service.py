"""The queue in front of the models: limits, fairness, clients that leave, and failures."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.served import Served
from spantune.core import Document
from spantune.serving import service
from spantune.serving.errors import ApiError

BODY = json.dumps({"text": "痨"}).encode()
REQUEST = (
    b"POST /v1/extract HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
)


def test_a_full_queue_is_answered_429_before_the_body(serve_with: Callable[..., Any]) -> None:
    with serve_with(max_queue=2, max_documents=2) as served:
        with served.held():
            asking = threading.Thread(target=lambda: served.extract(documents=[{"text": "痨"}, {"text": "疮"}]))
            asking.start()
            served.until(lambda: served.service.unfinished == 2)
            answer = served.raw(
                REQUEST.replace(b"Host", b"Connection: close\r\nHost") % (999, b"")
            )  # the body never comes
            assert answer.startswith(b"HTTP/1.1 429 ") and b"retry-after: 1\r\n" in answer and b'"overloaded"' in answer
            served.until(lambda: "spantune_documents_in_work 2.0" in served.client.get("/metrics").text)
            assert "spantune_queue_documents 0.0" in served.client.get("/metrics").text
        asking.join()
        assert served.extract(text="痨").status_code == 200


def test_a_full_queue_refuses_label_studio_before_the_body_by_each_address(serve_with: Callable[..., Any]) -> None:
    with serve_with(max_queue=1, max_documents=1) as served:
        with served.held():
            asking = threading.Thread(target=lambda: served.extract(text="痨"))
            asking.start()
            served.until(lambda: served.service.unfinished == 1)
            for path in (b"/predict", b"/label-studio/toy/predict"):
                request = REQUEST.replace(b"/v1/extract", path).replace(b"Host", b"Connection: close\r\nHost")
                assert served.raw(request % (999, b"")).startswith(b"HTTP/1.1 429 ")
            assert 'route="/label-studio/{run}/predict",status="429"' in served.client.get("/metrics").text
        asking.join()


def test_a_request_whose_client_left_does_not_wait_for_the_models(served: Served) -> None:
    (lane,) = served.service._lanes.values()
    with served.held():
        keeping = threading.Thread(target=lambda: served.extract(text="痨"))
        keeping.start()
        served.until(lambda: len(lane.in_work) == 1)
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(REQUEST % (len(BODY), BODY))
            served.until(lambda: len(lane.waiting) == 1)
        served.until(lambda: served.service.unfinished == 1)
        assert not lane.waiting  # also while the models compute, which may take long
    keeping.join()


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_client_that_leaves_frees_its_documents(served: Served, accept: str) -> None:
    request = REQUEST.replace(b"\r\n\r\n", b"\r\nAccept: " + accept.encode() + b"\r\n\r\n")
    with served.held():
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(request % (len(BODY), BODY))
            served.until(lambda: served.service.unfinished == 1)
        served.until(lambda: served.service.unfinished == 0)
    served.until(lambda: served.service.in_work == 0)
    assert served.extract(text="痨").status_code == 200


def test_a_request_has_a_deadline(serve_with: Callable[..., Any]) -> None:
    with serve_with(timeout=0.3) as served:
        with served.held():
            answer = served.extract(text="痨")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "deadline_exceeded")
        assert served.service.unfinished == 0
        assert served.extract(text="痨").status_code == 200


def test_a_single_text_does_not_wait_for_a_large_request(served: Served) -> None:
    ended: list[str] = []

    async def ask(name: str, count: int) -> None:
        documents = [Document(str(index), "未见异常。") for index in range(count)]
        async for _ in served.service.extract(None, documents):
            ended.append(name)

    async def both() -> None:
        with served.held():
            large = asyncio.create_task(ask("large", 64))
            while served.service.unfinished < 64:
                await asyncio.sleep(0)
            small = asyncio.create_task(ask("small", 1))
            await asyncio.sleep(0.05)
        await asyncio.gather(large, small)

    asyncio.run(both())
    assert ended.count("large") == 64
    assert ended.index("small") <= 24  # the batch of 8 that was running, and two batches in turn


def test_a_bug_ends_the_documents_of_its_pass_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr("spantune.core.crash._run_folder", tmp_path)
    session = next(iter(served.service._lanes.values())).session
    step, calls = session.step, []

    def fail_once() -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("the text is a secret")
        return step()

    monkeypatch.setattr(session, "step", fail_once)
    failed = served.extract(text="痨")
    assert (failed.status_code, failed.json()["status"]) == (200, "failed")
    assert "secret" not in failed.text
    assert served.extract(text="痨").json()["status"] == "stopped"
    assert len(list(tmp_path.rglob("crash.log"))) == 1


def test_when_the_models_are_down_every_answer_says_so(
    serve_with: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr("spantune.core.crash._run_folder", tmp_path)
    with serve_with() as served:
        told: list[bool] = []
        served.service.on_failure = lambda: told.append(True)

        def end(*_: object) -> None:
            raise SystemError

        monkeypatch.setattr(served.service, "_submit_document", end)
        for asked in (lambda: served.extract(text="痨"), lambda: served.client.get("/health")):
            answer = asked()
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_down")
        assert served.client.get("/ready").status_code == 503 and told == [True]


def test_a_service_that_stops_finishes_what_it_accepted(serve_with: Callable[..., Any]) -> None:
    with serve_with() as served:
        answers: list[int] = []
        with served.held():
            asking = threading.Thread(target=lambda: answers.append(served.extract(text="痨").status_code))
            asking.start()
            served.until(lambda: served.service.unfinished == 1)
            served.service.stop()
            assert served.client.get("/ready").status_code == 503
            assert served.client.get("/health").status_code == 200
            refused = served.extract(text="痨")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
        asking.join()
        assert answers == [200]


def test_options_are_checked_against_the_run(served: Served) -> None:
    async def ask() -> None:
        from spantune.extraction import Options

        await served.service.extract_all("toy", [Document("0", "痨")], Options(labels=("nope",)))

    with pytest.raises(ApiError, match="no label 'nope'"):
        asyncio.run(ask())


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="only glibc gives memory back when it is told to")
def test_memory_with_gaps_is_given_back(serve_with: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    monkeypatch.setattr(service, "MEMORY_SECONDS", -1)
    with serve_with() as served:
        served.extract(text="痨")
        blocks = [bytes(16_000) for _ in range(4000)]
        kept = blocks[::8]
        full = resident()
        blocks.clear()
        served.extract(text="痨")
        assert resident() < full - 30_000_000, len(kept)
