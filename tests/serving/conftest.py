"""A service of the toy run, behind a real uvicorn on a free port, started once for all tests of serving."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

pytest.importorskip("fastapi")

import uvicorn

from spantune.extraction import Extractor, load_run
from spantune.serving import ServeSettings, create_app
from spantune.serving.service import Service


class Served:
    """A service that listens, in a thread.

    `client` asks it, `service` is what it is made of.
    """

    def __init__(self, extractors: dict[str, Extractor], settings: ServeSettings):
        self.app = create_app(extractors, settings)
        self.service: Service = self.app.state.service
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(self.app, http="h11", ws="none", log_config=None, access_log=False, server_header=False)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.client = httpx2.Client(base_url=self.url, timeout=60)

    def extract(self, **body: Any) -> httpx2.Response:
        """Ask `/v1/extract`."""
        return self.client.post("/v1/extract", json=body)

    def stop(self) -> None:
        """End the service."""
        self.client.close()
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture(scope="session")
def toy(trained: Any) -> Extractor:
    """The extractor of the toy run, which one service at a time may use."""
    return load_run(trained.folder, "cpu")


@pytest.fixture(scope="session")
def served(toy: Extractor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service of the run `toy` with ordinary settings, which saves corrections in `settings.corrections`."""
    corrections = tmp_path_factory.mktemp("corrections")
    service = Served({"toy": toy}, ServeSettings(corrections=corrections))
    yield service
    service.stop()


@pytest.fixture
def serve_with(toy: Extractor) -> Callable[..., Any]:
    """Starts a service of the toy run with other settings: `with serve_with(token="t") as served`."""

    @contextmanager
    def start(**settings: Any) -> Iterator[Served]:
        service = Served({"toy": toy}, ServeSettings(**settings))
        try:
            yield service
        finally:
            service.stop()

    return start
