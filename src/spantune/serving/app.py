"""The app: routes, limits, safety and errors put together around the service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI

from spantune.extraction import Extractor
from spantune.serving import chat, corrections_api, errors, extract_api, health, label_studio
from spantune.serving.corrections import Corrections
from spantune.serving.fingerprint import fingerprint_of
from spantune.serving.metrics import Metrics
from spantune.serving.service import Service
from spantune.serving.settings import ServeSettings

ROUTERS = (extract_api.router, corrections_api.router, chat.router, label_studio.router, health.router)


def create_app(extractors: Mapping[str, Extractor], settings: ServeSettings | None = None) -> FastAPI:
    """Return the app that serves runs; the first is the default.

        app = create_app({"demo": spantune.load("runs/demo")})

    Args:
        extractors: the extractor of each run, by the name that requests choose it by.
        settings: limits and who may ask; those of `ServeSettings()` when absent.

    Raises:
        ConfigError: there is no extractor, or no correction can be written into the folder for them.
    """
    settings = settings or ServeSettings()
    metrics = Metrics()
    fingerprints = {name: fingerprint_of(extractor) for name, extractor in extractors.items()}
    service = Service(extractors, settings, fingerprints, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.close()

    app = FastAPI(title="spantune", version="1", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = service
    app.state.corrections = None if settings.corrections is None else Corrections(settings.corrections)
    for router in ROUTERS:
        app.include_router(router)
    errors.install(app)
    return app
