"""The page at `/`: its files, which are read once, their entity tags, and a strict content security policy.

If the service answers 401, the page asks the user for the token. So its own files need no token; they contain no text
of a user. Nothing is loaded from other sites. The style of the drawings is that of the reports, `core.drawing_style`.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from importlib import resources

from fastapi import APIRouter, HTTPException, Request, Response

from spantune.core import drawing_style

router = APIRouter(include_in_schema=False)

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""The content security policy of the page, which is stricter than that of other answers (`security.HEADERS`).

No script can turn a text into markup, since `trusted-types 'none'` forbids innerHTML.
"""

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_INDEX = "index.html"


@dataclass(frozen=True)
class _File:
    """A file of the page: its content, its media type and its entity tag."""

    content: bytes
    kind: str
    tag: str


@router.get("/")
async def index(request: Request) -> Response:
    """Return the page."""
    return _answer(request, _INDEX)


@router.get("/static/{name}")
async def static(request: Request, name: str) -> Response:
    """Return a file of the page.

    Raises:
        HTTPException: 404, there is no such file.
    """
    if name == _INDEX or name not in _files():
        raise HTTPException(404, "There is no such file.")
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    """Return a file, or 304 if the browser has the same version."""
    file = _files()[name]
    headers = {
        "ETag": file.tag,
        "Cache-Control": "no-cache",  # stored, but checked each time, since another version of spantune may serve here
        "Content-Security-Policy": POLICY,
    }
    known_tags = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.tag in known_tags or "*" in known_tags:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.kind, headers=headers)


@functools.cache
def _files() -> dict[str, _File]:
    """Return the files by name: those of the folder `page`, and the style of the drawings."""
    folder = resources.files("spantune.serving") / "page"
    contents = {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.name.rpartition(".")[2] in _TYPES}
    contents["drawing.css"] = drawing_style().encode()
    return {name: _file(name, content) for name, content in contents.items()}


def _file(name: str, content: bytes) -> _File:
    tag = f'"{hashlib.sha256(content).hexdigest()[:24]}"'
    return _File(content, _TYPES[name.rpartition(".")[2]], tag)
