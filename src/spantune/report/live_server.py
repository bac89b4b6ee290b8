"""The web server of the growing report, which serves the pages of the module `live` to a browser on this machine.

It listens on 127.0.0.1 only and answers only GET requests whose header Host is `127.0.0.1` or `localhost`. So a web
site that lets its own name resolve to this machine (DNS rebinding) can read nothing. The pages load nothing from
elsewhere. The report of a run is a file that may come from anyone, so its content security policy lets it run its
script only in a sandbox.
"""

from __future__ import annotations

import logging
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from spantune.core import ConfigError, SpantuneError, first_line, json_text, log_crash, masked_values
from spantune.report.live import Watch
from spantune.runs import RunFolder

log = logging.getLogger(__name__)
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; frame-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The content security policy of the growing report. The HTML of the page allows only its own script, by its hash."""
_REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; font-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'; sandbox allow-scripts allow-popups allow-downloads"
)


class LiveServer:
    """A server of the growing report of one run, or of the runs of a folder.

    Args:
        path: a run folder, or a folder that contains run folders.
        port: the port to listen on; 0 for any free port.

    Raises:
        RunError: there is no such folder.
        ConfigError: the server cannot listen on the port, for example because it is in use.
    """

    def __init__(self, path: Path, port: int = 0):
        watch = Watch(path)
        handler = type("_BoundHandler", (_Handler,), {"watch": watch, "reading": threading.Lock()})
        try:
            self._server = _Server(("127.0.0.1", port), handler)
        except OSError as error:
            raise ConfigError(f"--port {port}: {error.strerror}; give another one, or 0 for a free one") from None

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://127.0.0.1:{self._server.server_port}/"

    def serve(self) -> None:
        """Answer requests until `stop` is called in another thread or KeyboardInterrupt is raised."""
        try:
            self._server.serve_forever(0.2)
        finally:
            self._server.server_close()

    def stop(self) -> None:
        """Make `serve` return. Call it in another thread."""
        self._server.shutdown()


class _Server(ThreadingHTTPServer):
    """A server that answers each connection in its own thread."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Log an error, unless the browser has closed the connection or has stopped reading."""
        error = sys.exception()
        if isinstance(error, Exception) and not isinstance(error, ConnectionError | TimeoutError):
            log.error("this is a bug in spantune: %s; the traceback is in %s", first_line(error), log_crash(error))


@dataclass(frozen=True)
class _Answer:
    """The answer to a request.

    Args:
        status: the HTTP status.
        kind: the media type, such as `text/html`.
        text: the content.
        policy: the content security policy.
    """

    status: int
    kind: str
    text: str
    policy: str = _PAGE_POLICY


_NO_PAGE = _Answer(404, "text/plain", "There is no such page.\n")
_REFUSED = _Answer(403, "text/plain", "This is spantune watch: open it by 127.0.0.1 or localhost.\n")
_BUG = _Answer(500, "text/plain", "This is a bug in spantune; see the terminal.\n")


def _asked(query: str) -> str | None:
    """Return the name of the run in the query of an address, as in `run=demo`; None if there is none."""
    return parse_qs(query).get("run", [""])[0] or None


def _split(address: str) -> SplitResult | None:
    """Return the parts of an address; None if it is not valid."""
    try:
        return urlsplit(address)
    except ValueError:
        return None


class _Handler(BaseHTTPRequestHandler):
    """The handler of the requests of one connection. Only one thread at a time reads the run folders."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "spantune", ""
    timeout = 30
    watch: Watch
    reading: threading.Lock

    def do_GET(self) -> None:
        """Answer with a page, its state or a report. Answers are made one after another, and sent in parallel."""
        host = _split(f"//{self.headers.get('Host', '')}")
        if host is None or host.hostname not in ("127.0.0.1", "localhost"):
            self._send(_REFUSED)
            return
        try:
            with self.reading:
                answer = self._answer()
        except (SpantuneError, OSError) as error:
            answer = _Answer(503, "text/plain", f"{error}\n")
        except Exception as error:  # a bug of spantune: the answer says so, and the server goes on
            log.error("this is a bug in spantune: %s; the traceback is in %s", first_line(error), log_crash(error))
            answer = _BUG
        self._send(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Do nothing, so that requests are not logged."""

    def _answer(self) -> _Answer:
        address = _split(self.path)
        kind, _, name = address.path.removeprefix("/").partition("/") if address else ("none", "", "")
        run = unquote(name) or None
        if kind == "" or (kind == "run" and run and self.watch.folder(run)):
            return _Answer(200, "text/html", self.watch.page(run))
        if address and kind == "state.json" and not ((run := _asked(address.query)) and self.watch.folder(run) is None):
            return _Answer(200, "application/json", json_text(masked_values(self.watch.state(run))))
        if kind == "report" and run and (folder := self.watch.folder(run)) and RunFolder(folder).is_finished:
            page = RunFolder(folder).report_html.read_text(encoding="utf-8")
            return _Answer(200, "text/html", page, _REPORT_POLICY)
        return _NO_PAGE

    def _send(self, answer: _Answer) -> None:
        body = answer.text.encode("utf-8", errors="replace")
        self.send_response(answer.status)
        for name, value in {
            "Content-Type": f"{answer.kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": answer.policy,
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
