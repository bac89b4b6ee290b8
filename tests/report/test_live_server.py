"""The server of the growing report over real HTTP: its answers, allowed hosts and policy; and in a browser."""

from __future__ import annotations

import http.client
import json
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.chromium import BROWSER
from helpers.growing_run import begun, dev, record, step
from spantune.core import ConfigError
from spantune.report import LiveServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    """A server of a folder with one run."""
    record(begun(tmp_path / "runs" / "run"), *map(step, range(1, 5)), dev(4, 0.5))
    live = LiveServer(tmp_path / "runs")
    threading.Thread(target=live.serve, daemon=True).start()
    yield live
    live.stop()


def asked(
    server: LiveServer, path: str, method: str = "GET", host: str | None = None
) -> tuple[int, dict[str, str], str]:
    """Return status, headers and text of an answer."""
    port = int(server.url.rpartition(":")[2].strip("/"))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.headers), text


def test_the_page_and_its_state(server: LiveServer) -> None:
    status, headers, page = asked(server, "/")
    assert status == 200 and "spantune watch" in page and "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert re.findall(r"(?:src|href)=\"?(?!data:)[^ >]*//", page) == []  # nothing is loaded from elsewhere
    assert "script-src &#39;sha256-" in page or "script-src 'sha256-" in page
    state = json.loads(asked(server, "/state.json")[2])
    assert state["runs"][0]["f1"] == 0.5 and state["runs"][0]["step"] == 4 and "<svg" in state["body"]
    one = json.loads(asked(server, "/state.json?run=run&version=x")[2])
    assert one["title"] == "stopped · run" and asked(server, "/run/run")[0] == 200


def test_the_report_is_served_in_a_sandbox_once_it_is_there(server: LiveServer, tmp_path: Path) -> None:
    assert asked(server, "/report/run")[0] == 404
    (tmp_path / "runs" / "run" / "report.html").write_text("<p>页", encoding="utf-8")
    status, headers, page = asked(server, "/report/run")
    assert (status, page) == (200, "<p>页")
    assert "sandbox allow-scripts" in headers["Content-Security-Policy"]
    assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_a_run_whose_folder_has_an_odd_name_is_linked(server: LiveServer, tmp_path: Path) -> None:
    (tmp_path / "runs" / "run").rename(odd := tmp_path / "runs" / "a b&c#1 50%")
    (odd / "report.html").write_text("<p>its report", encoding="utf-8")
    (link,) = re.findall(r'href="(/run/[^"]*)"', json.loads(asked(server, "/state.json")[2])["body"])
    assert asked(server, link)[0] == 200
    state = json.loads(asked(server, f"/state.json?run={link.removeprefix('/run/')}")[2])
    assert asked(server, state["report"])[2] == "<p>its report" and f'href="{state["report"]}"' in state["body"]


@pytest.mark.parametrize(
    "path", ["/x", "/run/none", "/state.json?run=none", "/report/..%2F..%2Fetc", "/report/", "//a", "http://["]
)
def test_other_paths_are_not_found(server: LiveServer, path: str) -> None:
    assert asked(server, path)[0] == 404


def test_other_names_of_this_machine_and_other_methods_are_refused(server: LiveServer) -> None:
    for host in ("evil.example", "evil.example:80", "[::2]", "[", "127.0.0.1.evil.example", "@", ""):
        assert asked(server, "/state.json", host=host or "x")[0] == 403
    assert asked(server, "/", host="localhost:9000")[0] == 200  # a forwarded port
    assert asked(server, "/", method="POST")[0] == 501


def test_a_reader_that_goes_away_or_does_not_read_disturbs_nobody(
    server: LiveServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs" / "run" / "report.html").write_text("x" * 10**7, encoding="utf-8")
    place = ("127.0.0.1", int(server.url.rpartition(":")[2].strip("/")))
    others = set(threading.enumerate())  # servers of other tests may run
    with socket.create_connection(place) as stalled:
        stalled.sendall(b"GET /report/run HTTP/1.1\r\nHost: localhost\r\n\r\n")
        stalled.recv(1)  # the report is being sent, and is not read further
        assert asked(server, "/state.json")[0] == 200
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    deadline = time.monotonic() + 20
    while set(threading.enumerate()) - others and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - others
    assert capfd.readouterr() == ("", "")


def test_a_port_in_use_is_refused(server: LiveServer, tmp_path: Path) -> None:
    port = int(server.url.rpartition(":")[2].strip("/"))
    with pytest.raises(ConfigError, match=f"--port {port}: Address already in use; give another one"):
        LiveServer(tmp_path, port)


def test_a_browser_that_goes_away_prints_nothing(server: LiveServer, capfd: pytest.CaptureFixture[str]) -> None:
    port = int(server.url.rpartition(":")[2].strip("/"))
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port)) as browser:
            browser.sendall(b"GET /state.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
            browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with a reset
    assert asked(server, "/state.json")[0] == 200
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_browser_shows_the_run_and_its_report(server: LiveServer, tmp_path: Path) -> None:
    (tmp_path / "runs" / "run" / "report.html").write_text("<p>the whole report", encoding="utf-8")
    assert BROWSER
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    done = subprocess.run(
        [BROWSER, *options, f"--user-data-dir={tmp_path / 'profile'}", f"{server.url}run/run"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "Training loss" in done.stdout and done.stdout.count("<svg") == 3
    assert 'sandbox="allow-scripts allow-popups" src="/report/run"' in done.stdout
    assert "<title>finished · run</title>" in done.stdout and 'role="alert" hidden' in done.stdout
