"""The process of the service: it loads the runs, listens, and ends in an orderly way on a signal.

After the first SIGTERM or SIGINT nothing new is accepted, accepted requests are answered, and the process ends with
exit code 0. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from spantune.core import ConfigError, keep_for_good, os_error, say
from spantune.extraction import load_runs
from spantune.serving.app import create_app
from spantune.serving.errors import ApiError
from spantune.serving.security import HEADERS
from spantune.serving.service import Service
from spantune.serving.settings import ServeSettings

ENGINE_DOWN = 70
"""The exit code after a bug has ended the models' thread: EX_SOFTWARE of sysexits.h, as for every bug of spantune."""
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""The variables that limit PyTorch's caches of CPU kernels (1,024 kernels by default). Each length of a pass needs
kernels of its own."""
KERNELS = "64"
"""How many kernels each cache keeps: more than a pass uses."""
KEEP_ALIVE_SECONDS = 15
HEAD_SECONDS = 30.0
"""The most seconds in which a request's headers must arrive, from the opening of the connection or their first byte."""
SWITCH_SECONDS = 0.0005
"""The seconds after which a Python thread must let a waiting thread run; Python's default is 0.005. While requests are
answered, the models' thread waits for this long at each operation of a pass."""
QUIET_SECONDS = 1.0
"""When the service ends, it listens until no request has arrived for this many seconds, and closes an idle connection
after nothing has arrived over it for this long. Requests that arrive in this time get 503."""
PARTING_SECONDS = 5.0
"""The most seconds that the service listens and refuses after its last answer, if clients keep sending requests."""
LAST_SECONDS = 5
"""The most seconds that a client may take to read its answer, beyond the time of a request, before the service ends."""


def serve(runs: Sequence[str | Path], settings: ServeSettings | None = None) -> int:
    """Serve finished runs over HTTP until SIGTERM or SIGINT; return the exit code: 0, or 70 after a bug.

    Args:
        runs: the run folders, the default run first; the name of a folder is the name of its run.
        settings: as in `create_app`.

    Raises:
        ConfigError: the port is taken, or two folders have the same name; or as `create_app` and `load_runs`.
        RunError: a folder is not a run, or has no adapter yet.
        ModelError: a base model or adapter cannot be loaded.
    """
    settings = settings or ServeSettings()
    listener = _listener(settings)  # first, so that a port that is taken is found before the models are loaded
    with listener:
        bound_kernel_caches()
        sys.setswitchinterval(SWITCH_SECONDS)
        extractors = load_runs(runs, settings.device, min_score=settings.min_score)
        if any(extractor.on_gpu for extractor in extractors.values()):
            keep_for_good()
        app = create_app(extractors, settings)
        config = uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            log_level="critical",
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(settings.timeout) + LAST_SECONDS,
        )
        server = Server(config, app.state.service, address_of(listener))
        listener.listen(config.backlog)
        server.run([listener])
    return ENGINE_DOWN if app.state.service.failure is not None else 0


def bound_kernel_caches() -> None:
    """Limit the caches of CPU kernels, so that memory does not grow by hundreds of MB.

    This must be called before a model computes. A limit that the user has set in the environment stays.
    """
    for name in KERNEL_CACHES:
        os.environ.setdefault(name, KERNELS)


def address_of(listener: socket.socket) -> str:
    """Return the URL of the page."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _listener(settings: ServeSettings) -> socket.socket:
    """Bind the port without listening yet, so that clients are refused until the models are loaded.

    Raises:
        ConfigError: the port is taken, or the host is not an address of this machine.
    """
    host = settings.host.strip("[]")
    try:
        found = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        what = error.strerror or os_error(error)
        raise ConfigError(
            f"cannot listen on {settings.host}, port {settings.port}: {what}; give another --port, or 0 for a free "
            "one, and as --host an address of this machine"
        ) from None
    return listener


class Protocol(H11Protocol):
    """uvicorn's HTTP protocol, which also closes connections without requests, so that they do not pile up."""

    _head_timer: asyncio.TimerHandle | None = None
    _active_at = 0.0
    """When the connection last received or sent something, by the clock of the event loop."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for a request."""
        super().connection_made(transport)
        self._active_at = self.loop.time()
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        self._active_at = self.loop.time()
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        """Start to wait for the next request."""
        self._active_at = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        super().connection_lost(exc)
        self._unwatch_head()

    def send_400_response(self, msg: str) -> None:
        """Answer 400 to bytes that are not a request of HTTP/1.1; if an answer was begun, only close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            remedy = "send one, with headers of at most 16 KiB"
            refused = ApiError(400, "bad_request", "what was sent is not a request of HTTP/1.1", remedy).response()
            headers = [*refused.headers.items(), *HEADERS.items(), ("connection", "close")]
            start = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            for event in (start, h11.Data(data=bytes(refused.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def close_if_quiet(self) -> None:
        """Close the connection if no answer is owed, nothing has arrived for a while, and no bytes are unread.

        Closing it earlier would reset a connection over which a request is arriving, and its client would get no
        answer.
        """
        is_quiet = self._is_idle and self.loop.time() > self._active_at + QUIET_SECONDS
        if is_quiet and not self.transport.is_closing() and not _has_unread_bytes(self.transport):
            self.transport.close()

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _watch_head(self) -> None:
        if not self._is_idle:
            self._unwatch_head()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _unwatch_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        if self._is_idle:
            self.transport.close()


def _has_unread_bytes(transport: asyncio.Transport) -> bool:
    """Whether the kernel has bytes of this connection, or its end, that the event loop has not read."""
    with selectors.DefaultSelector() as selector:
        selector.register(transport.get_extra_info("socket"), selectors.EVENT_READ)
        return bool(selector.select(0))


class Server(uvicorn.Server):
    """uvicorn's server, which ends after accepted requests are answered and later ones are refused."""

    def __init__(self, config: uvicorn.Config, service: Service, address: str):
        super().__init__(config)
        self._service, self._address = service, address
        self._signal: int | None = None
        self._worked_at = self._asked_at = 0.0
        """When a document was last unfinished, and when a request was last answered, since the signal."""
        self._requests = 0
        service.on_failure = self._end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, and print the address."""
        await super().startup(sockets)
        names = ", ".join(f"{run.name} ({run.task.answer}, {run.fingerprint})" for run in self._service.runs)
        say(f"serving {names}")
        say(f"the page and the API are at {self._address} (Ctrl-C ends this)")

    async def main_loop(self) -> None:
        """Serve until a signal has come, every accepted document is answered, and no more requests arrive."""
        while not self.should_exit:
            await self.on_tick(0)
            await asyncio.sleep(0.1)
            if self._signal is not None and self._has_parted(time.monotonic()):
                self._end()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and close each connection when it is quiet; requests that arrive until then are answered."""
        await self._accept_the_last(sockets or [])
        end = time.monotonic() + (self.config.timeout_graceful_shutdown or 0)
        await asyncio.sleep(0.05)  # connections that were just accepted become Protocols
        while self.server_state.connections and time.monotonic() < end:
            for connection in list(self.server_state.connections):
                assert isinstance(connection, Protocol)
                connection.close_if_quiet()
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop gracefully on the first signal, and end the process at once on a second one."""
        if self._signal is not None:
            os._exit(128 + sig)
        self._worked_at = self._asked_at = time.monotonic()
        self._signal = sig
        self._service.stop()
        os.write(
            2, f"\n{signal.Signals(sig).name}: ending after what was accepted; a second signal ends now\n".encode()
        )

    def _has_parted(self, now: float) -> bool:
        """Whether all requests are answered, and either no more arrive or later ones were refused for long enough."""
        if self._service.unfinished:
            self._worked_at = now
        if self.server_state.total_requests != self._requests:
            self._requests, self._asked_at = self.server_state.total_requests, now
        is_quiet = now > max(self._worked_at, self._asked_at) + QUIET_SECONDS
        return is_quiet or now > self._worked_at + PARTING_SECONDS

    async def _accept_the_last(self, listeners: list[socket.socket]) -> None:
        """Stop listening, and take the connections that the kernel has accepted, since closing would reset them."""
        connections: list[socket.socket] = []
        for listener in listeners:
            with contextlib.suppress(OSError):  # there are no more connections
                while True:
                    connections.append(listener.accept()[0])
        for server in self.servers:
            server.close()
        for connection in connections:
            connection.setblocking(False)
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> Protocol:
        return Protocol(self.config, self.server_state, self.lifespan.state)

    def _end(self) -> None:
        self.should_exit = True
