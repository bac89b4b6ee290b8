"""Notifications reach real HTTP and SMTP servers, a run continues without them, and addresses stay secret."""

from __future__ import annotations

import json
import logging
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from helpers.tracked_run import begin, measure, recipe
from spantune.core import ConfigError, masked
from spantune.runs import require_trackers
from spantune.runs.trackers.notify import NotifyTracker

TOKEN = "geheim-0123456789"


class Receiver:
    """An HTTP server that keeps the JSON bodies by path and answers with `status`."""

    def __init__(self) -> None:
        self.got: dict[str, Any] = {}
        self.status = 200
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got[self.path] = json.loads(body)
                self.send_response(receiver.status)
                self.end_headers()
                self.wfile.write(b'{"errcode": 0, "code": 0}')

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """The server; the URLs of the webhooks in the environment are paths of it."""
    server = Receiver()
    monkeypatch.setenv("SPANTUNE_WEBHOOK", f"{server.url}/hook/{TOKEN}")
    for way in ("lark", "dingtalk", "wecom"):
        monkeypatch.setenv(f"SPANTUNE_{way.upper()}_WEBHOOK", f"{server.url}/{way}/{TOKEN}")
    yield server
    server.server.shutdown()
    server.server.server_close()


def notified(folder: Path, *ways: str) -> NotifyTracker:
    """Return the tracker, in this process, after a run with two evaluations."""
    from spantune.runs.trackers.dashboards import run_info

    folder.mkdir()
    tracker = NotifyTracker(run_info(recipe(folder, notify=list(ways)), folder, {}, ()))
    tracker.metrics(0, {"f1": 0.9}, "test")
    tracker.metrics(4, {"f1": 0.5, "f1_low": 0.25, "f1_high": 0.75}, "dev")
    tracker.metrics(8, {"f1": 0.25}, "dev")
    return tracker


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of spantune as its log handlers write them."""
    return [masked(record.getMessage()) for record in caplog.records if record.name.startswith("spantune")]


def test_a_run_tells_a_webhook_how_it_ended_from_a_process_of_its_own(receiver: Receiver, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trackers = begin(folder, swanlab="off", notify="webhook")
    trackers.metrics(1, {"loss": 1.5})
    measure(trackers, folder, 2)
    trackers.finish("success")
    (told,) = receiver.got.values()
    assert (told["run"], told["state"], told["step"], told["url"]) == ("run", "finished", 2, None)
    assert (told["f1"], told["f1_low"], told["f1_high"], told["f1_on"]) == (0.5, 0.1, 0.9, "dev")
    assert told["text"] == f"spantune: run finished after step 2\nF1 0.500 [0.100, 0.900] on dev\n{folder}"
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert kept == []


def test_swanlabs_plugins_send_our_text(receiver: Receiver, tmp_path: Path) -> None:
    notified(tmp_path / "run", "lark", "dingtalk", "wecom").finish("crashed")
    text = f"spantune: run failed after step 8\nF1 0.500 [0.250, 0.750] on dev\n{tmp_path / 'run'}"
    assert receiver.got[f"/lark/{TOKEN}"]["content"] == {"text": text}
    assert receiver.got[f"/dingtalk/{TOKEN}"]["text"] == receiver.got[f"/wecom/{TOKEN}"]["text"] == {"content": text}


def test_one_that_cannot_be_sent_is_a_warning_without_its_address(
    receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    receiver.status = 500
    with caplog.at_level(logging.WARNING):
        notified(tmp_path / "run", "webhook", "lark").finish("success")
    said = warnings(caplog)
    assert [line.partition(":")[0] for line in said] == [
        "no notification was sent by webhook",
        "no notification was sent by lark",
    ]
    assert all("500" in line and TOKEN not in line for line in said)
    assert TOKEN not in "".join(capfd.readouterr())


def test_nobody_who_listens_is_a_warning_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SPANTUNE_WEBHOOK", f"http://127.0.0.1:9/hook/{TOKEN}")
    for name, value in {"SERVER": "127.0.0.1", "PORT": "9", "FROM": "a@b", "TO": "c@d", "PASSWORD": TOKEN}.items():
        monkeypatch.setenv(f"SPANTUNE_EMAIL_{name}", value)
    notified(tmp_path / "run", "webhook", "email").finish("success")
    said = warnings(caplog)
    assert len(said) == 2 and "refused" in said[1] and TOKEN not in "".join(said)  # the path alone is masked too


def test_email_is_refused_by_a_server_without_encryption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Mail(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            for line in self.rfile:
                self.wfile.write(b"221 bye\r\n" if line.lower().startswith(b"quit") else b"250 ok\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        port = str(server.server_address[1])
        for name, value in {"SERVER": "127.0.0.1", "PORT": port, "FROM": "a@b", "TO": "c@d", "PASSWORD": TOKEN}.items():
            monkeypatch.setenv(f"SPANTUNE_EMAIL_{name}", value)
        notified(tmp_path / "run", "email").finish("success")
        server.shutdown()
    (said,) = warnings(caplog)
    assert said.startswith("no notification was sent by email: EmailBot") and "STARTTLS" in said  # no clear password


def test_missing_variables_are_said_before_a_run_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPANTUNE_LARK_WEBHOOK", raising=False)
    with pytest.raises(ConfigError, match=r"track\.notify=lark needs SPANTUNE_LARK_WEBHOOK in the environment"):
        require_trackers(recipe(tmp_path / "run", notify="lark").track)
    for name in ("SERVER", "FROM", "TO", "PASSWORD"):
        monkeypatch.setenv(f"SPANTUNE_EMAIL_{name}", "x")
    monkeypatch.setenv("SPANTUNE_EMAIL_PORT", "smtp")
    with pytest.raises(ConfigError, match="SPANTUNE_EMAIL_PORT is 'smtp' in the environment; expected a port"):
        require_trackers(recipe(tmp_path / "run", notify="email").track)
