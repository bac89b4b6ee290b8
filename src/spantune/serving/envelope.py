"""What every request gets: an id, security headers, a line in the log, an entry in the metrics, and always an answer.

A line of the log is a JSON object on stderr. It names the route instead of the address as it was sent, and contains no
text and no token. A bug becomes a 500, and its traceback is in the log file of crashes.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import Collection
from datetime import UTC, datetime

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spantune.core import json_text, say
from spantune.serving.errors import ApiError, bug
from spantune.serving.requests import ClientGone
from spantune.serving.security import HEADERS, route_of
from spantune.serving.service import Service

GONE = 499
"""The status in log and metrics of a request whose client left before it was answered."""
SLOWEST_READER = 60.0
"""How many seconds a client may take to read a part of the answer before its connection is closed."""
DISCARD_SECONDS, DISCARDED_PARTS = 0.5, 1000
"""For how many seconds, and how many parts, the rest of a body is read before an answer that closes the connection."""
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Envelope:
    """The outermost layer of the app.

    Args:
        app: the ASGI app inside.
        service: its metrics count the requests.
        paths: the routes that log and metrics name; every other address is called `other`.
    """

    def __init__(self, app: ASGIApp, service: Service, paths: Collection[str]):
        self._app, self._service, self._paths = app, service, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        asked_id = Headers(scope=scope).get("x-request-id", "")
        request_id = asked_id if _ID.fullmatch(asked_id) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0
        has_more_body = True

        async def receive_all() -> Message:
            nonlocal has_more_body
            message = await receive()
            has_more_body = message.get("more_body", False)
            return message

        async def send_all(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
                if self._service.is_stopping:
                    headers["connection"] = "close"  # so that the client connects elsewhere for its next request
                if (
                    has_more_body
                    and headers.get("connection", "").lower() == "close"
                    and "expect" not in Headers(scope=scope)
                ):
                    await _discard(receive)
            try:
                async with asyncio.timeout(SLOWEST_READER):
                    await send(message)
            except TimeoutError:
                raise ClientGone from None

        # HEAD is answered like GET: uvicorn leaves the body out, since its own scope still says HEAD.
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await self._app(inner, receive_all, send_all)
        except (ClientGone, ClientDisconnect):
            status = GONE
        except Exception as error:
            internal = error if isinstance(error, ApiError) else bug(error)
            if not status:
                await internal.response()(scope, receive_all, send_all)
        finally:
            self._record(scope, request_id, status or GONE, time.perf_counter() - began)

    def _record(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route, method = route_of(scope), scope["method"]
        if route not in self._paths:
            route = "/static" if route.startswith("/static/") else "other"
        method = method if method in _METHODS else "other"
        self._service.metrics.request(route, method, status, seconds)
        client = scope.get("client")
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": request_id,
            "client": client[0] if client else None,
            "method": method,
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
        }
        say(json_text(line))


async def _discard(receive: Receive) -> None:
    """Read and discard for a moment what a client still sends, since most clients read no answer before they sent all.

    If a connection is closed with unread bytes, it is reset, and its client may lose an answer that has already
    arrived.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            for _ in range(DISCARDED_PARTS):
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
