"""The routes for whoever runs the service: `/health`, `/ready` and `/metrics`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from spantune.serving.errors import EngineDown, Stopping, documented
from spantune.serving.metrics import CONTENT_TYPE
from spantune.serving.requests import ServiceOf

router = APIRouter()
_DOWN = documented(_503="It is not.")


def _answers(example: object, kind: str = "application/json") -> dict[int | str, dict[str, Any]]:
    """Return an example of an answer for OpenAPI."""
    return {200: {"content": {kind: {"example": example}}}}


@router.get(
    "/health",
    responses={
        **_DOWN,
        200: {"content": {"application/json": {"example": {"status": "UP", "model_class": "spantune"}}}},
    },
)
@router.get("/healthz", include_in_schema=False)
async def health(service: ServiceOf) -> JSONResponse:
    """Say whether the service works; answered while it is busy or being stopped, too."""
    if not service.is_up:
        return EngineDown().response()
    return JSONResponse({"status": "UP", "model_class": "spantune"})


@router.get("/ready", responses=_DOWN | _answers({"status": "READY"}))
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
    responses=_answers('spantune_documents_total{model="demo",status="stopped"} 3.0', CONTENT_TYPE),
)
async def metrics(service: ServiceOf) -> Response:
    """Return the metrics of the service in Prometheus' text format."""
    return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})
