"""The app: routes, limits, security and errors, put together around the service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from spantune.core import ConfigError
from spantune.extraction import Extractor
from spantune.serving import chat, corrections_api, errors, extract_api, health, label_studio, page
from spantune.serving.corrections import Corrections
from spantune.serving.envelope import Envelope
from spantune.serving.fingerprint import fingerprint_of
from spantune.serving.limits import Admission
from spantune.serving.metrics import Metrics
from spantune.serving.security import HostGate, TokenGate, allowed_hosts
from spantune.serving.service import Service
from spantune.serving.settings import ServeSettings

ROUTERS = (
    extract_api.router,
    corrections_api.router,
    chat.router,
    label_studio.router,
    health.router,
    page.router,
)
"""The routers of all API modules."""
QUEUED = frozenset({"/v1/extract", "/v1/chat/completions", "/predict", "/label-studio/{run}/predict"})
"""The routes whose requests need a place in the queue: they are answered 429 before their body is read."""


def create_app(extractors: Mapping[str, Extractor], settings: ServeSettings | None = None) -> FastAPI:
    """Return the app that serves runs; the first run is the default.

        app = create_app({"demo": spantune.load("runs/demo")})

    Args:
        extractors: the extractor of each run, by the name with which requests choose it.
        settings: the limits, and who may send requests; None takes `ServeSettings()`.

    Raises:
        ConfigError: there is no extractor, or the folder for corrections cannot be written.
    """
    if not extractors:
        raise ConfigError("no run to serve; name a run folder")
    settings = settings or ServeSettings()
    fingerprints = {name: fingerprint_of(extractor) for name, extractor in extractors.items()}
    service = Service(extractors, settings, fingerprints, Metrics())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.close()

    app = FastAPI(
        title="spantune",
        version="1",
        description="Entities of texts, by runs of spantune. Offsets are half-open and count Unicode code points.",
        docs_url=None,  # FastAPI's pages load scripts from other sites
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.service = service
    app.state.routes = [route for router in ROUTERS for route in router.routes if isinstance(route, Route)]
    app.state.corrections = None if settings.corrections is None else Corrections(settings.corrections)
    for router in ROUTERS:
        app.include_router(router, responses=errors.COMMON)
    errors.install(app)
    _wrap(app, service, settings)
    return app


def _wrap(app: FastAPI, service: Service, settings: ServeSettings) -> None:
    """Put the layers (middleware) around the routes, the innermost first."""
    paths = {route.path for route in app.state.routes}
    app.add_middleware(Admission, service=service, queued=QUEUED)
    if settings.token is not None:
        app.add_middleware(TokenGate, token=settings.token)
    if (hosts := allowed_hosts(settings)) is not None:
        app.add_middleware(HostGate, hosts=hosts)
    if settings.allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allow_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )
    app.add_middleware(Envelope, service=service, paths=paths | {"/openapi.json"})
