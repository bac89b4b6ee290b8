"""The service of the toy run, behind a real uvicorn on a free port, started once for all tests of serving."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

pytest.importorskip("fastapi")

from helpers.served import Served
from spantune.extraction import Extractor, load_run
from spantune.serving import ServeSettings


@pytest.fixture(scope="session")
def offline(trained: Any) -> Extractor:
    """The extractor of the toy run for the test's own thread; no service uses it."""
    return load_run(trained.folder, "cpu")


@pytest.fixture(scope="session")
def served(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service of the run `toy` with default settings, which saves corrections in `service.settings.corrections`."""
    with Served(trained.folder, ServeSettings(corrections=tmp_path_factory.mktemp("corrections"))) as served:
        yield served


@pytest.fixture
def serve_with(trained: Any) -> Callable[..., AbstractContextManager[Served]]:
    """A function that starts a service of the toy run with other settings: `with serve_with(token="t") as served`."""

    @contextmanager
    def start(names: Sequence[str] = ("toy",), **settings: Any) -> Iterator[Served]:
        with Served(trained.folder, ServeSettings(**settings), names) as served:
            yield served

    return start
