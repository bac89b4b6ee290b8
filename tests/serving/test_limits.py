"""Limits of a request, and the answers to requests that are too large or invalid."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from helpers.served import Served
from spantune.serving import server

HEAD = b"POST /v1/extract HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(served: Served) -> None:
    answer = served.raw(HEAD + b"Content-Length: 99999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ") and b'"body_too_large"' in answer


def test_a_chunked_body_is_counted(served: Served) -> None:
    def parts() -> Iterator[bytes]:
        yield b'{"text": "'
        for _ in range(20):
            yield b"x" * 65536

    answer = served.client.post("/v1/extract", content=parts(), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_a_body_that_does_not_arrive_is_given_up(serve_with: Callable[..., Any]) -> None:
    with serve_with(timeout=0.2) as served:
        answer = served.raw(HEAD + b'Content-Length: 20\r\n\r\n{"text"')
    assert answer.startswith(b"HTTP/1.1 408 ") and b'"body_too_slow"' in answer


@pytest.mark.parametrize("begun", [b"", b"POST /v1/ex", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea"])
def test_headers_that_do_not_arrive_are_given_up(
    serve_with: Callable[..., Any], begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HEAD_SECONDS", "KEEP_ALIVE_SECONDS"):
        monkeypatch.setattr(server, name, 0.2)
    with serve_with() as served:
        assert served.raw(begun).count(b"HTTP/1.1 200") == begun.count(b"health")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\r\n\r\n",  # TLS
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nX-Long: " + b"a" * 70_000,
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nno size\r\n",
    ],
)
def test_what_is_no_http_has_an_error_of_our_shape(served: Served, sent: bytes) -> None:
    head, _, body = served.raw(sent).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and json.loads(body)["error"]["code"] == "bad_request"


def test_what_is_no_http_after_an_answer_only_closes_the_connection(
    serve_with: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The answer was sent before the body arrived, so an invalid body cannot be answered."""
    with serve_with(token="a-token") as served, socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}}"):
            answer += connection.recv(65536)
        connection.sendall(b"no size\r\n")
        assert connection.recv(65536) == b""
    assert not [record for record in caplog.records if record.name == "asyncio"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"text"', 400, "invalid_json"),
        (b'{"text": "\xff"}', 400, "bad_request"),
        (b"[" * 100_000, 400, "bad_request"),
        (b"", 422, "invalid_request"),
        (b"[]", 422, "invalid_request"),
        (b"{}", 422, "invalid_request"),
        (b'{"text": 1}', 422, "invalid_request"),
        (b'{"documents": [{"text": "a", "id": "\\ud800"}]}', 422, "invalid_request"),
        (b'{"\\ud800": "a"}', 422, "invalid_request"),
        (b'{"text": "a", "model": "\\ud800"}', 422, "invalid_request"),
        (b'{"text": "a", "documents": [{"text": "a"}]}', 422, "invalid_request"),
        (b'{"documents": []}', 422, "invalid_request"),
        (b'{"documents": [{"text": "a", "label": "b"}]}', 422, "invalid_request"),
        (b'{"text": "a", "min_score": NaN}', 422, "invalid_request"),
        (b'{"text": "a", "min_score": 2}', 422, "invalid_request"),
        (b'{"text": "a", "labels": ["nope"]}', 422, "invalid_option"),
        (b'{"text": "a", "overlap": -1}', 422, "invalid_request"),
        (b'{"text": "a", "model": "nope"}', 404, "unknown_model"),
        (b'{"documents": [' + b",".join([b'{"text": "a"}'] * 65) + b"]}", 413, "too_many_documents"),
    ],
)
def test_nonsense_has_an_error_of_our_shape(served: Served, body: bytes, status: int, code: str) -> None:
    answer = served.client.post("/v1/extract", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], set(error)) == (code, {"code", "message", "remedy"})
    assert "Traceback" not in answer.text and "/" not in error["message"]


def test_unknown_addresses_and_methods_have_it_too(served: Served) -> None:
    assert served.client.get("/absent").json()["error"]["code"] == "not_found"
    wrong = served.client.get("/v1/extract")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    allowed = [served.client.put(f"/v1/{name}").headers["allow"] for name in ("extract", "corrections", "models")]
    assert allowed == ["POST", "GET, HEAD, POST", "GET, HEAD"]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/task", "/health", "/openapi.json", "/", "/static/main.js"])
def test_head_answers_as_get_without_the_body(served: Served, path: str) -> None:
    asked, got = served.client.head(path), served.client.get(path)
    assert (asked.status_code, asked.content) == (200, b"") and len(got.content) > 10
    names = ("content-type", "content-length", "content-security-policy", "cache-control")
    assert [asked.headers[name] for name in names] == [got.headers[name] for name in names]
    assert served.client.head("/v1/extract").status_code == 405


def test_a_text_that_is_too_long_or_half_a_character_is_refused_alone(served: Served) -> None:
    body = json.dumps({"documents": [{"text": "x" * 500_001}, {"text": "\ud800"}, {"text": "痨"}]})
    answer = served.client.post("/v1/extract", content=body, headers={"Content-Type": "application/json"})
    *refused, answered = answer.json()["documents"]
    for document in refused:
        assert (document["status"], document["problems"][0]["kind"], document["entities"]) == ("refused", "refused", [])
    assert (answered["status"], len(answered["entities"])) == ("stopped", 1)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/extract", {"text": "x", "all_scores": 0.0}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "stream": 0}),
    ],
)
def test_a_number_is_no_switch(served: Served, path: str, body: dict[str, Any]) -> None:
    answer = served.client.post(path, json=body)
    assert answer.status_code in (400, 422) and "valid boolean" in answer.json()["error"]["message"]


def test_an_unknown_field_is_named_with_the_nearest(served: Served) -> None:
    answer = served.client.post("/v1/extract", json={"text": "x", "lables": ["dis"]})
    assert answer.status_code == 422
    message = answer.json()["error"]["message"]
    assert message.startswith("lables: an unknown field; did you mean 'labels'? valid: all_scores, ")
