"""The process of the service: how it starts, what it refuses, and how it ends."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from helpers.command import Outcome, one_line_error
from helpers.forked import Command
from helpers.served import Served
from spantune.core import RunError
from spantune.serving import ServeSettings, serve, server
from spantune.serving.service import Service


def started(spawn: Callable[..., Command], run: Path) -> Command:
    """Start a service in a process of its own and wait until it listens."""
    command = spawn("serve", run, "--port", 0)
    command.wait_for(lambda: command.has_begun)
    command.wait_for(lambda: "(Ctrl-C ends this)" in command.err)
    return command


def test_sigterm_under_load_answers_what_was_accepted(trained: Any, spawn: Callable[..., Command]) -> None:
    command = started(spawn, trained.folder)
    match = re.search(r"http://127\.0\.0\.1:\d+", command.err)
    assert match is not None and "serving tiny (jsonl, " in command.err
    answers: list[tuple[int, int]] = []
    sending = threading.Event()

    def ask(accept: str) -> None:
        body = {"documents": [{"text": "未见异常。"}] * 16}
        is_served = True
        with httpx2.Client(base_url=match[0], timeout=60) as client:
            while is_served:
                answer = client.post("/v1/extract", json=body, headers={"Accept": accept})
                answers.append((answer.status_code, answer.text.count('"status"')))
                is_served = answer.status_code == 200
                sending.set()

    threads = [threading.Thread(target=ask, args=(kind,)) for kind in ("application/json", "application/x-ndjson") * 2]
    for thread in threads:
        thread.start()
    assert sending.wait(30)
    command.signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert command.end() == 0, command.err
    assert len(answers) > 4 and set(answers) == {(200, 16), (503, 0)}


REQUEST = (
    b"POST /v1/extract HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n"
)
BODY = b'{"text": "x"}'


def rest_of(connection: socket.socket) -> bytes:
    """Return what comes over a connection until its end; raise if the connection is reset."""
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


@pytest.fixture
def ending(serve_with: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A service that gives its clients little time when it ends."""
    monkeypatch.setattr(server, "QUIET_SECONDS", 0.5)
    monkeypatch.setattr(server, "PARTING_SECONDS", 0.8)
    with serve_with() as served:
        served.server.config.timeout_graceful_shutdown = 10
        yield served


def test_clients_that_go_on_to_ask_are_refused_until_they_cease(ending: Served) -> None:
    """The service ends at last although they continue; a connection at that moment may be reset."""
    ending.server.handle_exit(signal.SIGTERM, None)
    statuses, began = [], time.monotonic()
    with pytest.raises((httpx2.ConnectError, httpx2.ReadError)):
        while time.monotonic() < began + 10:
            statuses.append(ending.client.post("/v1/extract", json={"text": "x"}).status_code)
            time.sleep(0.1)
    assert set(statuses) == {503} and time.monotonic() > began + 0.8


def test_a_connection_that_was_accepted_is_answered_when_nothing_listens_any_more(ending: Served) -> None:
    ending.client.get("/health")  # a connection that stays open and idle
    with socket.create_connection(("127.0.0.1", ending.port), timeout=20) as connection:
        ending.service.stop()
        ending.server.should_exit = True
        ending.until(lambda: ending.listener.fileno() < 0)
        time.sleep(0.1)
        connection.sendall(REQUEST + BODY)
        assert rest_of(connection).startswith(b"HTTP/1.1 503 ")
    ending.until(lambda: not ending.server.server_state.connections)


def test_a_connection_that_only_the_kernel_has_accepted_is_answered(ending: Served) -> None:
    connections: list[socket.socket] = []

    async def shut_down() -> None:  # it blocks the event loop, so nothing is accepted meanwhile
        connections.append(socket.create_connection(("127.0.0.1", ending.port), timeout=20))
        connections[0].sendall(REQUEST + BODY)
        ending.service.stop()
        await ending.server.shutdown([ending.listener])

    shutting_down = asyncio.run_coroutine_threadsafe(shut_down(), ending.loop)
    ending.until(lambda: bool(connections))
    with connections[0]:
        assert rest_of(connections[0]).startswith(b"HTTP/1.1 503 ")
    shutting_down.result(20)


def test_a_body_that_comes_after_its_refusal_does_not_reset_the_connection(serve_with: Callable[..., Any]) -> None:
    with serve_with() as served, socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        served.service.stop()
        for part in (REQUEST, BODY[:4], BODY[4:]):
            connection.sendall(part)
            time.sleep(0.05)
        assert rest_of(connection).startswith(b"HTTP/1.1 503 ")


def test_a_second_signal_ends_it_at_once(trained: Any, spawn: Callable[..., Command]) -> None:
    command = started(spawn, trained.folder)
    match = re.search(r"127\.0\.0\.1:(\d+)", command.err)
    assert match is not None
    with socket.create_connection(("127.0.0.1", int(match[1]))) as connection:  # a body that never comes delays the end
        connection.sendall(b"POST /v1/extract HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n")
        connection.sendall(b"Content-Type: application/json\r\n\r\n")
        command.signal(signal.SIGINT)
        command.wait_for(lambda: "a second signal ends now" in command.err)
        command.signal(signal.SIGTERM)
        assert command.end() == 128 + signal.SIGTERM


def test_two_runs_of_the_same_name_are_refused(command: Callable[..., Outcome], trained: Any, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path / "tiny", ignore=shutil.ignore_patterns("swanlab", "checkpoints"))
    outcome = command("serve", trained.folder, tmp_path / "tiny", "--port", 0)
    one_line_error(outcome, f"{tmp_path}/tiny are both called 'tiny'", "rename one of the folders")


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded(command: Callable[..., Outcome], trained: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = command("serve", trained.folder, "--port", port)
    one_line_error(outcome, f"cannot listen on 127.0.0.1, port {port}: Address already in use", "another --port")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "a token is needed; set SPANTUNE_TOKEN"),
        (["--max-body", "1MB"], "expected a size such as 1MiB"),
        (["--max-documents", "300"], "max_documents=300 is over max_queue=256"),
        (["--port", "0", "--host", "192.0.2.1", "--token", "a-token"], "cannot listen on 192.0.2.1"),
    ],
)
def test_wrong_options_are_one_line(
    command: Callable[..., Outcome], trained: Any, arguments: list[str], said: str
) -> None:
    one_line_error(command("serve", trained.folder, *arguments), said)


def test_a_run_without_an_adapter_is_one_line(command: Callable[..., Outcome], trained: Any, tmp_path: Path) -> None:
    run = tmp_path / "unfinished"
    shutil.copytree(trained.folder, run, ignore=shutil.ignore_patterns("adapter", "swanlab", "checkpoints"))
    one_line_error(command("serve", run, "--port", 0), "no adapter here yet")
    one_line_error(command("serve", tmp_path / "absent", "--port", 0), "absent")


def test_a_bug_that_ends_the_models_ends_the_process_with_70(
    trained: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("spantune.core.crash._run_folder", tmp_path)

    def end(*_: object) -> None:
        raise SystemError

    monkeypatch.setattr(Service, "_submit_document", end)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    codes: list[int] = []

    def ask() -> None:
        transport = httpx2.HTTPTransport(retries=10)  # until it listens
        with httpx2.Client(transport=transport, timeout=60) as client:
            codes.append(client.post(f"http://127.0.0.1:{port}/v1/extract", json={"text": "痨"}).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    assert serve([trained.folder], ServeSettings(port=port)) == 70
    asking.join()
    assert codes == [503] and (tmp_path / "crash.log").exists()


def test_a_missing_extra_is_one_line(
    command: Callable[..., Outcome], trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spantune.core.extras.find_spec", lambda name: None)
    one_line_error(command("serve", trained.folder), "spantune serve needs fastapi, which is not installed", "[serve]")


def test_the_kernel_caches_are_bounded_unless_the_user_says_otherwise(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> dict[str, Any]:
        loaded_with.update(os.environ)
        raise RunError("read no further")

    loaded_with: dict[str, str] = {}
    monkeypatch.setenv(server.KERNEL_CACHES[0], "7")
    monkeypatch.setenv(server.KERNEL_CACHES[1], "")  # so that it is restored after the test
    monkeypatch.delenv(server.KERNEL_CACHES[1])
    monkeypatch.setattr(server, "load_runs", load)
    with pytest.raises(RunError):
        serve([trained.folder], ServeSettings(port=0))
    assert [loaded_with[name] for name in server.KERNEL_CACHES] == ["7", "64"]
