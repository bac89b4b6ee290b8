"""The errors of the HTTP interface: each is `{"error": {"code", "message", "remedy"}}` with its HTTP status.

No message contains a path of this machine, a text or a token. A bug of spantune becomes a 500 whose traceback is in the
log file of crashes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from spantune.core import SpantuneError, encodable, log_crash, nearest

log = logging.getLogger(__name__)


class ApiError(SpantuneError):
    """An error that is sent to the client.

    Args:
        status: the HTTP status.
        code: a short name for programs, in snake case.
        message: what was found and what was expected.
        remedy: what the client can do.
        headers: further headers of the response.
    """

    def __init__(
        self, status: int, code: str, message: str, remedy: str = "", *, headers: Mapping[str, str] | None = None
    ):
        self.status, self.code, self.remedy = status, code, remedy
        self.message = encodable(message)
        self.headers = dict(headers or {})
        super().__init__(f"{message}; {remedy}" if remedy else message)

    @property
    def body(self) -> dict[str, dict[str, str]]:
        """The body of the response."""
        return {"error": {"code": self.code, "message": self.message, "remedy": self.remedy}}

    def response(self) -> JSONResponse:
        """Return the response with this error."""
        return JSONResponse(self.body, self.status, headers=self.headers)


class Overloaded(ApiError):
    """The queue is full."""

    def __init__(self, limit: int, seconds: int = 1):
        super().__init__(
            429,
            "overloaded",
            f"{limit} documents are being worked on, which is the limit of this service",
            "ask again after the seconds that the header Retry-After says",
            headers={"Retry-After": str(seconds)},
        )


class DeadlineExceeded(ApiError):
    """The request took longer than the limit of `seconds`."""

    def __init__(self, seconds: float):
        super().__init__(
            503,
            "deadline_exceeded",
            f"the request was not done within {seconds:g} seconds, which is the limit of this service",
            "send fewer or shorter documents, or ask again when less is going on",
            headers={"Retry-After": "5"},
        )


class Stopping(ApiError):
    """The service is being stopped and accepts no new requests."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "stopping",
            "the service is being stopped and accepts no new requests",
            "ask again, when it has been started again",
            headers={"Retry-After": "5"},
        )


class EngineDown(ApiError):
    """The thread that runs the models has ended because of a bug."""

    def __init__(self) -> None:
        super().__init__(
            503, "engine_down", "the models do not answer any more, because of a bug in spantune", "restart the service"
        )


class UnknownModel(ApiError):
    """A request names a run that is not served."""

    def __init__(self, name: str, served: Sequence[str]):
        shown = name if len(name) <= 100 else f"{name[:97]}..."
        super().__init__(
            404,
            "unknown_model",
            f"the model {shown!r} is not served",
            f"name one of: {', '.join(served)}; or leave model out for the first",
        )


class ErrorBody(BaseModel):
    """What went wrong, and what to do about it."""

    code: str
    message: str
    remedy: str


class ErrorOut(BaseModel):
    """The body of every error."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "code": "unknown_model",
                        "message": "the model 'dmo' is not served",
                        "remedy": "name one of: demo; or leave model out for the first",
                    }
                }
            ]
        }
    )
    error: ErrorBody


def documented(**descriptions: str) -> dict[int | str, dict[str, Any]]:
    """Return the errors of a route for OpenAPI: `documented(_404="The model is not served.")`."""
    return {
        int(status.lstrip("_")): {"model": ErrorOut, "description": description}
        for status, description in descriptions.items()
    }


COMMON = documented(
    _400="The body is not JSON in UTF-8, or the Host header has no name of this service.",
    _401="The token is missing or wrong.",
    _422="A field is missing, unknown or wrong.",
    _500="A bug.",
)
"""The errors that every route may answer with."""
QUEUE = documented(
    _404="The model is not served.",
    _408="The body did not arrive in time.",
    _413="The body is too large, or there are too many documents.",
    _415="The body is not of the type application/json.",
    _429="The queue is full; ask again after the seconds of Retry-After.",
    _503="The service is being stopped, or the request took too long.",
)
"""The errors that a route that extracts may answer with."""


def bug(error: BaseException) -> ApiError:
    """Write the traceback of a bug into the log file of crashes, and return the error for the client."""
    path = log_crash(error)
    log.error("a bug in spantune (%s); its traceback is in %s; please report it", type(error).__name__, path)
    return ApiError(500, "internal_error", "a bug in spantune", "report it with the value of the header X-Request-ID")


def install(app: FastAPI) -> None:
    """Install the handlers that answer every error of `app` in this form."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error.response()


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer which field of the request is wrong, without its value."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    first = found[0]
    if first["type"] == "json_invalid":
        invalid = ApiError(400, "invalid_json", "the body is not JSON", "send one JSON object in UTF-8")
        return invalid.response()
    place = ".".join(str(part) for part in first["loc"][1:])[:200]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        said = "an unknown field"
        if len(first["loc"]) == 2 and (names := _fields(request)):
            said += f"; {nearest(place, names)}"
    return ApiError(
        422,
        "invalid_request",
        f"{place or first['loc'][0]}: {said}{more}",
        "see /openapi.json for what is expected",
    ).response()


def _fields(request: Request) -> tuple[str, ...]:
    """Return the field names that the body of this request may have; empty if its route does not declare them."""
    body = getattr(request.scope.get("route"), "body_field", None)
    model = getattr(getattr(body, "field_info", None), "annotation", None)
    return tuple(getattr(model, "model_fields", ()))


_HTTP = {
    400: ("bad_request", "the request cannot be read", "send one JSON object in UTF-8"),
    404: ("not_found", "there is no such address here", "see /openapi.json for the addresses"),
    405: ("method_not_allowed", "this address does not take this method", "see /openapi.json for the methods"),
}


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code, message, remedy = _HTTP.get(error.status_code, ("http_error", "the request was refused", ""))
    headers = {**(error.headers or {})}
    if error.status_code == 405:  # Starlette names the methods of one route, but two routes may have the same address
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    return ApiError(error.status_code, code, message, remedy, headers=headers).response()


def _methods(request: Request) -> set[str]:
    """Return the methods that the address of a request accepts."""
    routes: Sequence[Route] = request.app.state.routes
    fitting = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    methods = {method for route in fitting for method in route.methods or ()}
    return methods | ({"HEAD"} if "GET" in methods else set())
