"""The routes of corrections: `POST /v1/corrections` saves one, `GET /v1/corrections` downloads all."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from spantune.core import DataError, Document, Entity
from spantune.serving.corrections import FILE, Correction, Corrections, Source, checked
from spantune.serving.errors import QUEUE, ApiError, documented
from spantune.serving.extract_api import NDJSON
from spantune.serving.requests import ServiceOf
from spantune.serving.schemas import SHORT, Strict, example_of

router = APIRouter()
NO_FOLDER = documented(_409="The service was started without a folder for corrections.")
_ID = Field(max_length=256)
_LINE = (
    '{"id": "text-1c5b0e2a9d47", "text": "胸片示右下肺炎。", "entities": [{"start": 3, "end": 7, "label": "dis", '
    '"text": "右下肺炎"}], "meta": {"model": "demo", "fingerprint": "baed9d7d15b1", '
    '"time": "2026-11-28T15:37:22.006Z", "source": "page"}}\n'
)


class EntityIn(Strict):
    """An entity: half-open offsets in Unicode code points; if its text is given, it is compared with the document."""

    start: StrictInt
    end: StrictInt
    label: Annotated[StrictStr, SHORT]
    text: StrictStr | None = None
    score: float | None = Field(None, ge=0, le=1)


class CorrectedIn(Strict):
    """A text with all of its entities, as a person annotated them."""

    id: Annotated[StrictStr, _ID] | None = None
    text: StrictStr
    entities: tuple[EntityIn, ...]


class CorrectionIn(Strict):
    """A correction, with the entities that the model predicted."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "document": {"text": "胸片示右下肺炎。", "entities": [{"start": 3, "end": 7, "label": "dis"}]},
                    "predicted": [{"start": 5, "end": 7, "label": "dis", "score": 0.41}],
                }
            ]
        }
    )
    model: Annotated[str, SHORT] | None = Field(None, description="A name of /v1/models; the first run if absent.")
    document: CorrectedIn
    predicted: tuple[EntityIn, ...] | None = None


class SavedOut(BaseModel):
    """How many corrections were saved."""

    saved: int


def store_of(request: Request) -> Corrections:
    """Return the store of corrections of the request's app.

    Raises:
        ApiError: the service was started without a folder for corrections.
    """
    store = request.app.state.corrections
    if store is None:
        raise ApiError(
            409,
            "no_corrections_folder",
            "the service keeps no corrections, since it was not told where",
            "start it with --corrections FOLDER",
        )
    assert isinstance(store, Corrections)
    return store


@router.post(
    "/v1/corrections", status_code=201, responses={**QUEUE, **NO_FOLDER, **example_of({"saved": 1}, status=201)}
)
async def save(sent: CorrectionIn, request: Request, service: ServiceOf) -> SavedOut:
    """Save a document as a person annotated it, as one line of `corrections.jsonl`, which training can read."""
    run, store = service.run(sent.model), store_of(request)
    try:
        document = Document(
            sent.document.id or "", sent.document.text, _entities(sent.document.entities, sent, "document.entities")
        )
        predicted = None if sent.predicted is None else _entities(sent.predicted, sent, "predicted")
        correction = Correction(checked(document, run.task), run.name, run.fingerprint, _source(request), predicted)
    except DataError as error:
        raise ApiError(
            422, "invalid_correction", str(error), "offsets count Unicode code points of the text, end exclusive"
        ) from None
    await saved(store, [correction])
    return SavedOut(saved=1)


@router.get(
    "/v1/corrections",
    response_class=StreamingResponse,
    responses=NO_FOLDER | example_of(_LINE, kind=NDJSON),
)
async def download(request: Request) -> StreamingResponse:
    """Return all saved corrections as native JSONL."""
    headers = {"Content-Disposition": f'attachment; filename="{FILE}"', "Cache-Control": "no-store"}
    return StreamingResponse(store_of(request).stream(), media_type=NDJSON, headers=headers)


async def saved(store: Corrections, corrections: list[Correction]) -> None:
    """Save all corrections or none, without blocking other requests.

    Raises:
        ApiError: the disk is full or cannot be written.
    """
    try:
        await asyncio.to_thread(store.append, corrections)
    except DataError as error:
        raise ApiError(
            503, "not_saved", str(error), "send it again when the disk can be written", headers={"Retry-After": "10"}
        ) from None


def _entities(rows: tuple[EntityIn, ...], sent: CorrectionIn, field: str) -> tuple[Entity, ...]:
    """Return the entities of a request; if an entity states its text, that is compared with the document's text.

    Raises:
        DataError: an entity is empty or outside the text, or its text differs from the document's.
    """
    text = sent.document.text
    for index, row in enumerate(rows):
        place = f"{field}[{index}]"
        if not 0 <= row.start < row.end <= len(text):
            raise DataError(
                f"[{row.start}, {row.end}) is empty or outside the text of {len(text)} characters", field=place
            )
        if row.text is not None and row.text != text[row.start : row.end]:
            raise DataError(f"its text is not that of the document at [{row.start}, {row.end})", field=place)
    return tuple(Entity(row.start, row.end, row.label, row.score) for row in rows)


def _source(request: Request) -> Source:
    """Return whether a request comes from the page, which browsers state in a header, or from another program."""
    return "page" if request.headers.get("sec-fetch-site") == "same-origin" else "api"
