"""The routes for operators: `/health`, `/ready` and `/metrics`."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from spantune.serving.errors import EngineDown, Stopping, documented
from spantune.serving.metrics import CONTENT_TYPE
from spantune.serving.requests import ServiceOf
from spantune.serving.schemas import example_of

router = APIRouter()
_DOWN = documented(_503="It is not.")
_UP = {"status": "UP", "model_class": "spantune"}


@router.get("/health", responses=_DOWN | example_of(_UP))
@router.get("/healthz", include_in_schema=False)
async def health(service: ServiceOf) -> JSONResponse:
    """Say whether the service works; this is also answered while it is busy or being stopped."""
    if not service.is_up:
        return EngineDown().response()
    return JSONResponse(_UP)


@router.get("/ready", responses=_DOWN | example_of({"status": "READY"}))
@router.get("/readyz", include_in_schema=False)
async def ready(service: ServiceOf) -> JSONResponse:
    """Say whether new requests are accepted: all models are loaded, and the service is not being stopped."""
    if not service.is_up:
        return EngineDown().response()
    if not service.is_ready:
        return Stopping().response()
    return JSONResponse({"status": "READY"})


@router.get(
    "/metrics",
    response_class=Response,
    responses=example_of('spantune_documents_total{model="demo",status="stopped"} 3.0', kind=CONTENT_TYPE),
)
async def metrics(service: ServiceOf) -> Response:
    """Return the metrics of the service in Prometheus' text format."""
    return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})
