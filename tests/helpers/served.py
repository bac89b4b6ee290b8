"""The annotation and extraction service on a free port of this process."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2
import uvicorn

from spantune.core import Extraction
from spantune.extraction import load_run
from spantune.serving import ServeSettings, create_app, server
from spantune.serving.service import Service


class Served:
    """The service of a run, served by uvicorn in a thread; the run is one model for each of `names`.

    `client` sends requests, `app` is the ASGI app, `service` does the work behind it, `server` is uvicorn's server and
    `listener` its socket.
    """

    def __init__(self, run: Path, settings: ServeSettings, names: Sequence[str] = ("toy",)):
        self.app = create_app({name: load_run(run, "cpu") for name in names}, settings)
        self.service: Service = self.app.state.service
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx2.Client(base_url=self.url, timeout=60)
        config = uvicorn.Config(
            self.app,
            http=server.Protocol,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=server.KEEP_ALIVE_SECONDS,
        )
        self.server = server.Server(config, self.service, self.url)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Served:
        self._thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.client.close()
        self.server.should_exit = True
        self._thread.join()

    def _run(self) -> None:
        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            await self.server.serve([self.listener])

        asyncio.run(serve())

    def extract(self, **body: Any) -> httpx2.Response:
        """Post `body` to `/v1/extract`."""
        return self.client.post("/v1/extract", json=body)

    def raw(self, sent: bytes) -> bytes:
        """Send these bytes; return all that comes back until the service closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(sent)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        return answer

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the models compute nothing inside the block."""
        gate = threading.Event()
        session = next(iter(self.service._lanes.values())).session
        step = session.step

        def wait_and_step() -> list[tuple[int, Extraction]]:
            gate.wait()
            return step()

        session.step = wait_and_step  # type: ignore[method-assign]
        try:
            yield
        finally:
            session.step = step  # type: ignore[method-assign]
            gate.set()

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds` returns True; fail after ten seconds."""
        for _ in range(1000):
            if holds():
                return
            time.sleep(0.01)
        raise AssertionError("it does not hold after ten seconds")
