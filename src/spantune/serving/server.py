"""The process of the service: it loads the runs, listens, and ends in order when it is told to.

The first SIGTERM or SIGINT is a request: nothing new is accepted, what was accepted is answered, and the process ends
with 0. A second one ends it at once.
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
"""The exit code where the models do not answer any more: EX_SOFTWARE of sysexits.h, that of every bug of ours."""
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""The variables of PyTorch's caches of CPU kernels, of which each length of a pass needs its own: 1,024 by default."""
KERNELS = "64"
"""How many kernels each keeps: more than a pass uses."""
KEEP_ALIVE_SECONDS = 15
HEAD_SECONDS = 30.0
"""How long a request's headers may take to arrive, from when its connection is opened or its first byte comes."""
SWITCH_SECONDS = 0.0005
"""How long a thread that runs Python may keep one that waits, 0.005 by default: the thread of the models waits at each
operation of a pass while requests are answered, and then for this long."""
QUIET_SECONDS = 1.0
"""How long nobody must have asked before a service that ends stops listening, and nothing must have come over an idle
connection before it is closed: a request that arrives meanwhile is answered with 503."""
PARTING_SECONDS = 5.0
"""How long it goes on listening and refusing after the last answer, where clients do not cease to ask."""
LAST_SECONDS = 5
"""How long a client may take to read its answer, beyond the time of a request, before the service ends without it."""


def serve(runs: Sequence[str | Path], settings: ServeSettings | None = None) -> int:
    """Serve finished runs over HTTP until SIGTERM or SIGINT; return the exit code: 0, or 70 where a bug ended it.

    Args:
        runs: the run folders, the default first; each is called as its folder.
        settings: as `create_app`.

    Raises:
        ConfigError: the port is taken, or two folders have the same name.
        RunError: a folder is not a run, or has no adapter yet.
        ModelError: a base model or adapter cannot be loaded.
    """
    settings = settings or ServeSettings()
    listener = _listener(settings)  # so that a port that is taken is known before the models are loaded
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
    """Keep few kernels for CPUs, so that memory does not grow by hundreds of MB; call it before a model computes.

    A limit that the user has set stays.
    """
    for name in KERNEL_CACHES:
        os.environ.setdefault(name, KERNELS)


def address_of(listener: socket.socket) -> str:
    """Return the address of the page for a browser."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _listener(settings: ServeSettings) -> socket.socket:
    """Bind the port without listening yet: clients are refused until the models are loaded.

    Raises:
        ConfigError: the port is taken, or the host is not of this machine.
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
    """uvicorn's HTTP, which closes connections whose next request does not arrive: silent ones would pile up."""

    _head_timer: asyncio.TimerHandle | None = None
    _active_at = 0.0
    """When something came over the connection, or went over it, by the clock of the loop."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._active_at = self.loop.time()
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        self._active_at = self.loop.time()
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._active_at = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        super().connection_lost(exc)
        self._unwatch_head()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request of HTTP/1.1, as every error is told; where an answer was begun, only close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            remedy = "send one, with headers of at most 16 KiB"
            refused = ApiError(400, "bad_request", "what was sent is not a request of HTTP/1.1", remedy).response()
            headers = [*refused.headers.items(), *HEADERS.items(), ("connection", "close")]
            start = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            for event in (start, h11.Data(data=bytes(refused.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def close_if_quiet(self) -> None:
        """Close the connection where no answer is owed, nothing came for a while, and nothing is there to be read.

        Closing before would reset a connection over which a request is under way, and its client would not be told.
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
    """Whether the kernel has bytes of this connection, or its end, which the loop has not read."""
    with selectors.DefaultSelector() as selector:
        selector.register(transport.get_extra_info("socket"), selectors.EVENT_READ)
        return bool(selector.select(0))


class Server(uvicorn.Server):
    """uvicorn's server, which ends when what was accepted is answered, and what came after that is refused."""

    def __init__(self, config: uvicorn.Config, service: Service, address: str):
        super().__init__(config)
        self._service, self._address = service, address
        self._signal: int | None = None
        self._worked_at = self._asked_at = 0.0
        """When a document was unfinished and when a request was answered the last time, since the signal."""
        self._requests = 0
        service.on_failure = self._end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say where it listens, once it does."""
        await super().startup(sockets)
        names = ", ".join(f"{run.name} ({run.task.answer}, {run.fingerprint})" for run in self._service.runs)
        say(f"serving {names}")
        say(f"the page and the API are at {self._address} (Ctrl-C ends this)")

    async def main_loop(self) -> None:
        """Serve until a signal comes, every accepted document is answered, and nobody asks any more."""
        while not self.should_exit:
            await self.on_tick(0)
            await asyncio.sleep(0.1)
            if self._signal is not None and self._has_parted(time.monotonic()):
                self._end()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and close each connection when it is quiet: until then what comes over it is answered."""
        await self._accept_the_last(sockets or [])
        end = time.monotonic() + (self.config.timeout_graceful_shutdown or 0)
        await asyncio.sleep(0.05)  # connections that were accepted just before become protocols
        while self.server_state.connections and time.monotonic() < end:
            for connection in list(self.server_state.connections):
                assert isinstance(connection, Protocol)
                connection.close_if_quiet()
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take the first signal as a request, and a second one as an order."""
        if self._signal is not None:
            os._exit(128 + sig)
        self._worked_at = self._asked_at = time.monotonic()
        self._signal = sig
        self._service.stop()
        os.write(
            2, f"\n{signal.Signals(sig).name}: ending after what was accepted; a second signal ends now\n".encode()
        )

    def _has_parted(self, now: float) -> bool:
        """Whether all is answered, and nobody has asked for a moment or they have been refused for long enough."""
        if self._service.unfinished:
            self._worked_at = now
        if self.server_state.total_requests != self._requests:
            self._requests, self._asked_at = self.server_state.total_requests, now
        is_quiet = now > max(self._worked_at, self._asked_at) + QUIET_SECONDS
        return is_quiet or now > self._worked_at + PARTING_SECONDS

    async def _accept_the_last(self, listeners: list[socket.socket]) -> None:
        """Stop listening, and take the connections that the kernel has accepted: closing would reset them."""
        connections: list[socket.socket] = []
        for listener in listeners:
            with contextlib.suppress(OSError):  # there are no more
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
