"""The server of the growing report: the page of `live` for a browser on this machine.

It listens on 127.0.0.1 only, answers GET alone, and only where the browser was told `127.0.0.1` or `localhost`, so that
a page of another site, whose name is pointed at this machine, reads nothing. Nothing is loaded from elsewhere. A report
is a file that may come from anywhere: it is served with a policy that lets it run its own script in a sandbox.
"""

from __future__ import annotations

import logging
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from spantune.core import ConfigError, SpantuneError, first_line, json_text, log_crash, masked_values
from spantune.report.live import Watch
from spantune.runs import RunFolder

log = logging.getLogger(__name__)
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; frame-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page itself allows its own script alone, which it names by its hash."""
_REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; font-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'; sandbox allow-scripts allow-popups allow-downloads"
)


class LiveServer:
    """A server of the growing report of one run, or of the runs of a folder.

    Args:
        path: a run folder, or a folder that holds them.
        port: on which it listens; 0 for a free one.

    Raises:
        RunError: there is no such folder.
        ConfigError: the port is taken.
    """

    def __init__(self, path: Path, port: int = 0):
        watch = Watch(path)
        handler = type("_BoundHandler", (_Handler,), {"watch": watch, "reading": threading.Lock()})
        try:
            self._server = _Server(("127.0.0.1", port), handler)
        except OSError as error:
            raise ConfigError(f"--port {port}: {error.strerror}; give another one, or 0 for a free one") from None
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://127.0.0.1:{self._server.server_port}/"

    def serve(self) -> None:
        """Answer until `stop` is called from another thread, or KeyboardInterrupt is raised."""
        try:
            self._server.serve_forever(0.2)
        finally:
            self._server.server_close()

    def stop(self) -> None:
        """Let `serve` return."""
        self._server.shutdown()


def _asked(query: str) -> str | None:
    """The run that a query names."""
    return parse_qs(query).get("run", [""])[0] or None


class _Server(ThreadingHTTPServer):
    """A server that says nothing of a browser that has closed the page before it had its answer."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Log what ended the answer to a request, unless the browser did."""
        error = sys.exception()
        if isinstance(error, Exception) and not isinstance(error, ConnectionError):
            log.error("a request was not answered: %s; the traceback is in %s", first_line(error), log_crash(error))


class _Handler(BaseHTTPRequestHandler):
    """Answers a request."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "spantune", ""
    timeout = 30
    watch: Watch
    reading: threading.Lock

    def do_GET(self) -> None:
        """Answer with the page, its state or a report."""
        hostname = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        if hostname not in ("127.0.0.1", "localhost"):
            self._send(403, "text/plain", "This is spantune watch: open it by 127.0.0.1 or localhost.\n", _PAGE_POLICY)
            return
        try:
            with self.reading:
                self._answer()
        except ConnectionError:  # the browser has closed the page
            self.close_connection = True
        except (SpantuneError, OSError) as error:
            self._send(503, "text/plain", f"{error}\n", _PAGE_POLICY)
        except Exception as error:  # a bug: the page says that there is no answer, and the server goes on
            log.error("this is a bug in spantune: %s; the traceback is in %s", first_line(error), log_crash(error))
            self._send(500, "text/plain", "This is a bug in spantune; see the terminal.\n", _PAGE_POLICY)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: requests are of no interest to whoever trains."""

    def _answer(self) -> None:
        address = urlsplit(self.path)
        kind, _, name = address.path.removeprefix("/").partition("/")
        run = unquote(name) or None
        if kind == "" or (kind == "run" and run and self.watch.folder(run)):
            self._send(200, "text/html", self.watch.page(run), _PAGE_POLICY)
        elif kind == "state.json" and not ((run := _asked(address.query)) and self.watch.folder(run) is None):
            self._send(200, "application/json", json_text(masked_values(self.watch.state(run))), _PAGE_POLICY)
        elif kind == "report" and run and (folder := self.watch.folder(run)) and RunFolder(folder).is_finished:
            page = RunFolder(folder).report_html.read_text(encoding="utf-8")
            self._send(200, "text/html", page, _REPORT_POLICY)
        else:
            self._send(404, "text/plain", "There is no such page.\n", _PAGE_POLICY)

    def _send(self, status: int, kind: str, text: str, policy: str) -> None:
        body = text.encode("utf-8", errors="replace")
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy,
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
