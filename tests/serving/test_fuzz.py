"""Invalid requests of all kinds: no answer is a 5xx, and none shows a path, a traceback or another request's text.

SPANTUNE_FUZZ_EXAMPLES=10000 tries more requests.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.run_folders import READING, save_run
from helpers.served import Served
from spantune.serving import ServeSettings

EXAMPLES = int(os.environ.get("SPANTUNE_FUZZ_EXAMPLES", "100"))
SECRET = "痨SECRET疮"
CONFIG = '<View><Labels name="l" toName="t"><Label value="dis"/></Labels><Text name="t" value="$text"/></View>'
_REGION = {"type": "labels", "to_name": "t", "value": {"start": 0, "end": 1, "labels": ["dis"]}}
VALID: dict[str, dict[str, Any]] = {
    "/v1/extract": {
        "text": "疮",
        "model": "toy",
        "min_score": 0.5,
        "labels": ["dis"],
        "overlap": 1,
        "all_scores": True,
    },
    "/v1/corrections": {
        "document": {"id": "a", "text": "疮", "entities": [{"start": 0, "end": 1, "label": "dis", "text": "疮"}]},
        "predicted": [{"start": 0, "end": 1, "label": "dis", "score": 0.5}],
        "model": "toy",
    },
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "疮"}], "max_tokens": 5, "stream": False},
    "/setup": {"project": "1.2", "schema": CONFIG, "access_token": "x"},
    "/predict": {"tasks": [{"id": 1, "data": {"text": "疮"}}], "label_config": CONFIG, "params": {"login": "x"}},
    "/webhook": {
        "action": "ANNOTATION_CREATED",
        "annotation": {"id": 1, "result": [_REGION], "was_cancelled": False},
        "task": {"id": 1, "data": {"text": "疮"}},
        "project": {"id": 1, "created_at": "x", "label_config": CONFIG},
    },
}
GETS = (
    "/health",
    "/ready",
    "/metrics",
    "/v1/task",
    "/v1/models",
    "/versions",
    "/openapi.json",
    "/v1/none",
    "/%00",
    "//x",
)

odd_values = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        -1,
        1.5,
        10**400,
        -(2**63),
        1e308,
        float("nan"),
        float("inf"),
        "",
        "a\0b",
        "\ud800",
        "𝒳" * 50,
        [],
        {},
    ]
) | st.text(max_size=20)
json_values = st.recursive(
    odd_values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
not_json = st.one_of(
    st.binary(max_size=200),
    st.integers(1, 60_000).map(lambda depth: b"[" * depth),
    st.integers(1, 20_000).map(lambda depth: b'{"text":' * depth + b"1" + b"}" * depth),
    st.integers(1, 20_000).map(lambda depth: b'{"tasks":' + b"[" * depth + b"]" * depth + b"}"),
    st.sampled_from(
        [
            b'{"text": "a", "text": "b"}',
            b'{"text": "\xff\xfe"}',
            b'{"text": NaN, "min_score": Infinity}',
            b'{"text": "a", "min_score": 1' + b"0" * 5000 + b"}",
            b'{"text": "a", "chunk_tokens": ' + b"9" * 5000 + b"}",
            b'\xef\xbb\xbf{"text": "a"}',
            '{"text": "a"}'.encode("utf-16"),
            b'{"text": "\\ud800"}',
            b"null",
        ]
    ),
)


@st.composite
def mutated(draw: Callable[..., Any], valid: dict[str, Any]) -> bytes:
    """Draw a valid body in which one value, at any depth, is replaced, removed or gets an unknown neighbour."""
    body = json.loads(json.dumps(valid))
    place = body
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and draw(st.booleans()):
            place = place[key]
            continue
        change = draw(st.integers(0, 3))
        if change == 0:
            del place[key]
        elif change == 1 and isinstance(place, dict):
            place[draw(st.text(max_size=8))] = draw(json_values)
        else:
            place[key] = draw(json_values)
        break
    return json.dumps(body).encode()


@st.composite
def requests(draw: Callable[..., Any]) -> tuple[str, str, bytes, dict[str, str]]:
    """Draw method, path, body and headers of a request."""
    path = draw(st.sampled_from(sorted(VALID)))
    body = draw(
        st.one_of(
            mutated(VALID[path]), mutated(VALID[path]), not_json, json_values.map(lambda v: json.dumps(v).encode())
        )
    )
    kinds = ["application/json"] * 8 + ["application/json; charset=latin-1", "text/plain", "application/x+json", ""]
    headers = {"Content-Type": draw(st.sampled_from(kinds))}
    headers["Accept"] = draw(st.sampled_from(["*/*", "application/x-ndjson", "text/event-stream", "q=;;"]))
    method = draw(st.sampled_from(["POST"] * 10 + ["GET", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "TRACE"]))
    if method == "GET":
        path = draw(
            st.sampled_from([*GETS, "/v1/task?model=" + quote(draw(st.text(max_size=9)).encode(errors="replace"))])
        )
    if draw(st.integers(0, 9)) == 0:
        path = path.replace("/predict", "/label-studio/toy/predict").replace("/setup", "/label-studio/%2e%2e%2f/setup")
    return method, path, body, headers


@pytest.fixture(scope="module")
def reading(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service of a run that reads spans, which is fast."""
    run = save_run(tmp_path_factory.mktemp("reads") / "toy", tiny_folder, READING)
    with Served(run, ServeSettings(corrections=tmp_path_factory.mktemp("corrections"))) as served:
        yield served


def check(status: int, answer: str) -> None:
    assert status < 500, answer
    for leak in ("SECRET", "/tmp/", "/work/", "site-packages", "Traceback", "spantune/serving"):
        assert leak not in answer


def test_no_request_is_answered_with_a_5xx_or_with_what_is_not_its_own(reading: Served) -> None:
    assert reading.extract(text=SECRET).status_code == 200
    statuses: set[int] = set()

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(requests())
    def ask(request: tuple[str, str, bytes, dict[str, str]]) -> None:
        method, path, body, headers = request
        response = reading.client.request(method, path, content=body, headers=headers)
        check(response.status_code, response.text)
        statuses.add(response.status_code)

    ask()
    assert {200, 422} <= statuses  # both valid and invalid requests were sent
    assert reading.extract(text="疮").status_code == 200


_POST = b"POST /v1/extract HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        _POST + b'Transfer-Encoding: chunked\r\n\r\nd\r\n{"text": "a"}\r\n0\r\n\r\n',
        _POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        _POST + b"Content-Length: 999999999999999999999\r\n\r\n",
        _POST + b"Content-Length: -1\r\n\r\n{}",
        _POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"GET /v1/task?model=\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /health HTTP/9.9\r\n\r\n",
    ],
)
def test_what_is_hardly_http_is_refused(reading: Served, raw: bytes) -> None:
    with socket.create_connection(("127.0.0.1", reading.port), timeout=20) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    if answer:
        check(int(answer.split()[1]), answer.decode(errors="replace"))
    assert reading.client.get("/health").status_code == 200
