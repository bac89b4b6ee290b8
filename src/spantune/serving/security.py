"""Who may send requests: the token, the host names of the service, and what browsers may do with its answers."""

from __future__ import annotations

import base64
import binascii
import hmac
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from spantune.serving.errors import ApiError
from spantune.serving.settings import LOOPBACK, ServeSettings

OPEN_PATHS = frozenset({"/health", "/healthz", "/ready", "/readyz"})
"""Paths for probes, answered without a token and under any host name; they only say that the service is there."""
CHALLENGES = ('Basic realm="spantune", charset="UTF-8"', "Bearer")
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
"""The headers of every response for browsers: nothing is loaded from other sites, framed, or taken for another type."""
_NAMED = re.compile(r"\A/label-studio/[^/]+/")


class TokenGate:
    """Passes requests on that carry the token, as a bearer token or as the password of HTTP Basic.

    The page needs no token: it asks the user for the token, and then sends it as a bearer token.
    """

    def __init__(self, app: ASGIApp, token: str):
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401."""
        if scope["type"] != "http" or _is_open(path_of(scope)) or self._knows(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        response = ApiError(
            401,
            "unauthorized",
            "the token is missing or wrong",
            "send it as Authorization: Bearer TOKEN, or as the password of HTTP Basic with any name",
        ).response()
        for challenge in CHALLENGES:
            response.headers.append("www-authenticate", challenge)
        await response(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        scheme, _, value = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return hmac.compare_digest(value.strip().encode("latin-1"), self._token)
        if scheme.lower() == "basic":
            try:
                password = base64.b64decode(value.strip(), validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                return False
            return hmac.compare_digest(password, self._token)
        return False


def _is_open(path: str) -> bool:
    """Whether a path needs no token: a path for probes, the page or one of its files."""
    return path in OPEN_PATHS or path == "/" or path.startswith("/static/")


class HostGate:
    """Passes requests on that call the service by one of its own host names.

    This prevents DNS rebinding: a page of another site whose name is pointed at this machine calls it by that name.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]):
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 400."""
        is_gated = scope["type"] == "http" and path_of(scope) not in OPEN_PATHS
        if is_gated and _name(Headers(scope=scope).get("host", "")) not in self._hosts:
            refused = ApiError(
                400,
                "unknown_host",
                "the service was called by a name that is not its own",
                "call it by localhost or 127.0.0.1, or start it with --allow-host NAME",
            )
            await refused.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)


def allowed_hosts(settings: ServeSettings) -> frozenset[str] | None:
    """Return the host names by which the service may be called; None if any will do, since a token is needed."""
    if not settings.is_loopback and not settings.allow_hosts:
        return None
    return frozenset(_name(host) for host in (*LOOPBACK[:2], "[::1]", settings.host, *settings.allow_hosts))


def path_of(scope: Scope) -> str:
    """Return the path of a request within the app, without the path at which the app is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "").rstrip("/"))


def route_of(scope: Scope) -> str:
    """Return the path of a request as routes are declared: with `{run}` in place of the name of a run."""
    return _NAMED.sub("/label-studio/{run}/", path_of(scope))


def _name(host: str) -> str:
    """Return a Host header without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host if host.count(":") > 1 else host.partition(":")[0]
