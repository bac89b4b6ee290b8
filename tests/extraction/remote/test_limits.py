"""An answer of a server is limited in time, bytes, depth and tokens; a bad answer fails only its document."""

from __future__ import annotations

import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from helpers.fakes import MERGES, byte_tokenizer
from spantune.core import Document, Label, Status, TaskSpec, config
from spantune.encoding import Encoder
from spantune.extraction import Server
from spantune.extraction.remote.breaker import Breaker, Patience
from spantune.extraction.remote.client import Client, Refused
from spantune.extraction.remote.extractor import RemoteExtractor
from spantune.extraction.remote.protocol import Served, depth

TASK = TaskSpec(labels=(Label(code="dis"),), instruction="Find entities.")
QUICK = Patience(first=0.01, longest=0.02, seconds=20)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
Send = Callable[[socket.socket], None]


@contextmanager
def raw_server(answer: Send) -> Iterator[str]:
    """Serve /models correctly, and completions by whatever `answer` writes to the socket."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(65536)
            if request.startswith(b"GET"):
                connection.sendall(whole({"data": [{"id": "tiny", "owned_by": "vllm"}]}))
                return
            head, _, body = request.partition(b"\r\n\r\n")
            size = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            while len(body) < size:
                body += connection.recv(65536)
            answer(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        listener.close()


def whole(value: object) -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def completion(text: str, **fields: Any) -> bytes:
    return whole({"choices": [{"text": text, "finish_reason": "stop", **fields}]})


def slowly(head: bytes) -> Send:
    """Return a function that writes `head`, and then single bytes with pauses, without end."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(b"x")
            time.sleep(0.1)

    return answer


def endless(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b"{" * 0x10000 + b"\r\n")


ODD: dict[str, tuple[Send, str]] = {
    "a byte now and then": (slowly(HEAD + b"Content-Length: 9999\r\n\r\n"), "was not complete after 0.5 seconds"),
    "a byte of the head now and then": (slowly(b"HTTP/1.1 200 OK\r\nX-"), "no answer within 0.5 seconds"),
    "no end": (endless, "has more than 1180864 bytes"),
    "two million braces": (
        lambda connection: connection.sendall(whole(b"{" * 2_000_000)),
        "has more than 1180864 bytes",
    ),
    "nesting": (lambda connection: connection.sendall(whole(b'{"a":' * 200_000)), "is nested too deep to be read"),
    "a text of braces": (lambda connection: connection.sendall(completion("{" * 100)), "is nested 100 levels deep"),
    "a long text": (lambda connection: connection.sendall(completion("x" * 100_000)), "has 100000 characters"),
    "tokens": (
        lambda connection: connection.sendall(completion("x", token_ids=[1] * 200_000)),
        "has 200000 tokens, where max_tokens=64 was asked for",
    ),
    "compression": (
        lambda connection: connection.sendall(HEAD + b"Content-Encoding: gzip\r\nContent-Length: 0\r\n\r\n"),
        "is compressed (gzip)",
    ),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_answer_without_bounds_costs_its_document(odd: str) -> None:
    answer, words = ODD[odd]
    encoder = Encoder(byte_tokenizer(MERGES), TASK)
    settings = config.Extract(max_new_tokens=64)
    with raw_server(answer) as url:
        server = Server(url, timeout=0.5 if "now and then" in odd else 30.0, attempts=1, patience=QUICK)
        extractor = RemoteExtractor(server, Served("tiny", "openai"), encoder, settings)
        tracemalloc.start()
        (found,) = extractor.stream([Document("a", "ab")], strict=False)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert found.status is Status.FAILED and found.document.entities == ()
    assert words in found.problems[0].found and found.problems[0].kind == "server"
    assert peak < 30 * 2**20


def test_brackets_in_strings_are_no_levels() -> None:
    assert depth("") == 0 and depth("{[{") == 3 and depth("}}{") == 1
    assert depth('{"entity_text": "[[[\\"[", "x": ["]"]}\n' * 50) == 2
    assert depth('"' + "{" * 90) == 90  # a string without an end


def test_while_a_server_is_down_one_request_at_a_time_probes_it() -> None:
    lock, at_once, most, up = threading.Lock(), 0, list[int](), threading.Event()

    def answer(connection: socket.socket) -> None:
        nonlocal at_once
        with lock:
            at_once += 1
            most.append(at_once)
        time.sleep(0.02)
        with lock:
            at_once -= 1
        good, bad = completion("ok"), HEAD.replace(b"200 OK", b"500 No") + b"Content-Length: 0\r\n\r\n"
        connection.sendall(good if up.is_set() else bad)

    with raw_server(answer) as url, Client(Server(url, attempts=99, patience=QUICK)) as client:
        done: list[object] = []
        threads = [
            threading.Thread(target=lambda: done.append(client.complete({"prompt": [1]}, lambda body: body)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        probes = most[16:]  # the first requests were sent before the failure was known; they end with the first probes
        up.set()
        for thread in threads:
            thread.join(20)
    assert len(done) == 8 and len(probes) > 3 and set(probes) == {1}


def test_a_late_failure_of_an_older_request_says_nothing_of_a_server_that_answers_again() -> None:
    breaker = Breaker(Patience(first=0.001, longest=0.001, seconds=0.05))
    old, other = breaker.enter(), breaker.enter()
    breaker.failed(other, "down")
    time.sleep(0.1)
    probe = breaker.enter()
    waiting = threading.Thread(target=breaker.enter, daemon=True)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()  # it waits for a second probe
    breaker.answered()
    waiting.join(5)
    assert not waiting.is_alive()
    breaker.failed(old, "too late")
    breaker.failed(probe, "too late")
    assert not breaker.given_up.is_set()
    for _ in range(3):
        breaker.enter()  # no request waits


def test_a_late_failure_does_not_let_a_second_probe_through() -> None:
    breaker = Breaker(Patience(first=0.001, longest=0.001, seconds=60))
    old, other = breaker.enter(), breaker.enter()
    breaker.failed(other, "down")
    time.sleep(0.01)
    breaker.enter()
    breaker.failed(old, "down too")
    second = threading.Thread(target=breaker.enter, daemon=True)
    second.start()
    second.join(0.05)
    assert second.is_alive()
    breaker.answered()
    second.join(5)
    assert not second.is_alive()


def test_what_a_model_writes_at_length_is_read_in_time() -> None:
    """Without a grammar a model may write as many braces as tokens, closed or not."""
    encoder = Encoder(byte_tokenizer(MERGES), TASK)
    for answer in ("{" * 20_000, "{" * 20_000 + "}", '{"a' * 7_000 + "}"):
        assert not encoder.format.parse(answer, "ab", TASK).resolved


def test_a_refusal_that_is_longer_than_any_answer_is_one_too() -> None:
    bad = HEAD.replace(b"200 OK", b"400 No") + b"Content-Length: 3000000\r\n\r\n" + b"x" * 3_000_000
    with (
        raw_server(lambda connection: connection.sendall(bad)) as url,
        Client(Server(url, patience=QUICK)) as client,
        pytest.raises(Refused, match="has more than"),
    ):
        client.complete({"prompt": [1]}, lambda body: body)


def test_a_busy_server_gets_fewer_requests_at_a_time_and_more_again_as_it_answers() -> None:
    breaker = Breaker(Patience(first=0.001, longest=0.001, seconds=60), concurrency=8)
    tickets = [breaker.enter() for _ in range(8)]
    breaker.answered()
    for ticket in tickets[1:]:
        breaker.busy(ticket, "429")
    assert int(breaker.limit) == 3, "refusals of requests that were sent together count once"
    sent = [breaker.enter() for _ in range(3)]
    with ThreadPoolExecutor() as pool:
        fourth = pool.submit(breaker.enter)
        time.sleep(0.05)
        assert not fourth.done()
        breaker.answered()
        breaker.busy(fourth.result(5), "429")
    assert int(breaker.limit) == 1
    for _ in sent[1:]:
        breaker.answered()
    for _ in range(40):
        breaker.enter()
        breaker.answered()
    assert breaker.limit == 8
