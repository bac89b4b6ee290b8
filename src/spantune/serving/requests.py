"""Functions that handlers share: find the service, and work on an answer only while a client is connected."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from spantune.serving.service import Service

Answer = TypeVar("Answer")


class ClientGone(Exception):
    """The client has closed its connection before it got an answer."""


async def service_of(request: Request) -> Service:
    """Return the service of the request's app; async, since FastAPI calls other dependencies in a thread each."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


ServiceOf = Annotated[Service, Depends(service_of)]
"""The type of a handler's parameter that gets the service."""


async def while_connected(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """Return what `work` returns; cancel it if the client leaves before that.

    Raises:
        ClientGone: the client has left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    """Return when the client has left; the body must have been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
