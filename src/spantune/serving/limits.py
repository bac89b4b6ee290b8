"""Limits of requests: the body is read here, up to its limit, before a handler gets the request.

A client that sends its body too slowly gets 408. A client that sends a request while the queue is full gets 429 before
its body is read.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spantune.serving.errors import ApiError
from spantune.serving.requests import ClientGone
from spantune.serving.security import route_of
from spantune.serving.service import Service

BODY_SECONDS = 30.0
"""The most seconds in which a body must arrive; the request itself may take longer."""
_WITHOUT_BODY = ("GET", "HEAD", "OPTIONS")


class Admission:
    """Reads the body of a request within the limits, and passes the request on with the whole body.

    Args:
        app: the ASGI app to which requests are passed.
        service: its settings have the limits.
        queued: the routes whose requests need a place in the queue.
    """

    def __init__(self, app: ASGIApp, service: Service, queued: frozenset[str]):
        self._app, self._service, self._queued = app, service, queued
        self._limit = service.settings.max_body
        self._seconds = min(service.settings.timeout, BODY_SECONDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its whole body, or answer with the error."""
        if scope["type"] != "http" or scope["method"] in _WITHOUT_BODY:
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
            async with asyncio.timeout(self._seconds):
                body = await self._body(receive)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        except TimeoutError:
            late = ApiError(
                408,
                "body_too_slow",
                f"the body did not arrive within {self._seconds:g} seconds",
                "send it at once",
                headers={"Connection": "close"},
            )
            await late.response()(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    def _check(self, scope: Scope) -> None:
        """Check what can be known before the body is read: the queue, the length and the media type."""
        if route_of(scope) in self._queued:
            self._service.require_ready()
        headers = Headers(scope=scope)
        stated = headers.get("content-length", "")
        if stated.isdecimal() and int(stated) > self._limit:
            raise self._too_large()
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        has_body = stated not in ("", "0") or "transfer-encoding" in headers
        if has_body and kind != "application/json" and not kind.endswith("+json"):
            raise ApiError(
                415,
                "unsupported_media_type",
                "the body is not of the type application/json",
                "send JSON with the header Content-Type: application/json",
            )

    async def _body(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            if size > self._limit:
                raise self._too_large()
            parts.append(part)
            more = message.get("more_body", False)
        return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            "body_too_large",
            f"the body is larger than {self._limit} bytes, which is the limit of this service",
            "send fewer or shorter documents in a request",
            headers={"Connection": "close"},
        )


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that first gives the whole body, and later what the client sends: that it has left."""
    is_given = False

    async def give() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return give
