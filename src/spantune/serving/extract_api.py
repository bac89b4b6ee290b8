"""The routes of extraction: `/v1/extract`, `/v1/task` and `/v1/models`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from spantune.core import LABEL_COLORS, Document, Extraction, json_text, label_colors
from spantune.serving.errors import QUEUE, ApiError, documented
from spantune.serving.requests import ServiceOf, while_connected
from spantune.serving.schemas import (
    EVENT,
    ExtractedDocuments,
    ExtractedText,
    ExtractIn,
    LabelOut,
    ModelOut,
    ModelsOut,
    TaskOut,
    extracted,
)
from spantune.serving.service import ServedRun, Service

router = APIRouter()
NDJSON, SSE = "application/x-ndjson", "text/event-stream"
_ENTITY = {"start": 2, "end": 7, "label": "dis", "text": "急性阑尾炎", "score": 0.97}
_EXAMPLE = {"entities": [_ENTITY], "status": "stopped", "problems": []}
_DOCUMENT = {"id": "a", **_EXAMPLE}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The entities; documents as they end with the Accept header application/x-ndjson or "
        "text/event-stream.",
        "content": {
            "application/json": {
                "examples": {
                    "text": {"value": {**_EXAMPLE, "model": "demo"}},
                    "documents": {"value": {"documents": [_DOCUMENT], "model": "demo"}},
                }
            },
            NDJSON: {"schema": {"type": "string"}, "example": json_text({**_DOCUMENT, "index": 0}) + "\n"},
            SSE: {
                "schema": EVENT,
                "example": f"event: document\ndata: {json_text({**_DOCUMENT, 'index': 0})}\n\n",
            },
        },
    }
}


@router.post("/v1/extract", response_model=ExtractedText | ExtractedDocuments, responses={**QUEUE, **_ANSWERS})
async def extract(asked: ExtractIn, request: Request, service: ServiceOf) -> Response:
    """Extract the entities of a text, or of several documents."""
    run = service.run(asked.model)
    documents = _documents(asked, service)
    kind = wanted_type(request)
    if kind in (NDJSON, SSE):
        results = service.extract(run.name, documents, asked.options)
        first = await while_connected(request, anext(results))  # so that an error at the start becomes an HTTP status
        lines = _stream(first, results, asked.all_scores)
        body = (f"{line}\n" async for line in lines) if kind == NDJSON else _events(lines, run)
        return StreamingResponse(body, media_type=kind, headers={"Cache-Control": "no-store"})
    extractions = await while_connected(request, service.extract_all(run.name, documents, asked.options))
    records = [extracted(extraction, whole=asked.all_scores) for extraction in extractions]
    if asked.text is not None:
        return JSONResponse({**records[0], "model": run.name})
    named = [{"id": document.id, **record} for document, record in zip(documents, records, strict=True)]
    return JSONResponse({"documents": named, "model": run.name})


@router.get("/v1/task", responses=documented(_404="The model is not served."))
async def task(service: ServiceOf, model: str | None = None) -> TaskOut:
    """Return the task of a run: its labels, their colours on the page, and the instruction of the model."""
    run = service.run(model)
    colors = label_colors(run.task.codes)
    labels = [
        LabelOut(
            code=label.code,
            name=label.name,
            description=label.description,
            colour=LABEL_COLORS[colors[label.code]],
        )
        for label in run.task.labels
    ]
    return TaskOut(
        model=run.name,
        answer=run.task.answer,
        instruction=run.task.instruction,
        language=run.task.language,
        nested=run.task.nested,
        labels=labels,
    )


@router.get("/v1/models")
async def models(service: ServiceOf) -> ModelsOut:
    """Return the runs that are served, the default run first."""
    return ModelsOut(
        data=[
            ModelOut(id=run.name, created=service.started, fingerprint=run.fingerprint, answer=run.task.answer)
            for run in service.runs
        ]
    )


def wanted_type(request: Request) -> str:
    """Return the first media type of the Accept header that this service offers; JSON if there is none."""
    for part in request.headers.get("accept", "").split(","):
        kind = part.partition(";")[0].strip().lower()
        if kind in (NDJSON, SSE, "application/json"):
            return kind
    return "application/json"


def _documents(asked: ExtractIn, service: Service) -> list[Document]:
    """Return the documents of a request; a document without an id gets its index.

    Raises:
        ApiError: there are too many documents.
    """
    if asked.text is not None:
        return [Document("0", asked.text)]
    limit = service.settings.max_documents
    if len(asked.documents or ()) > limit:
        raise ApiError(
            413,
            "too_many_documents",
            f"the request has {len(asked.documents or ())} documents, and the limit of this service is {limit}",
            "send them in several requests",
        )
    return [
        Document(str(index) if each.id is None else each.id, each.text)
        for index, each in enumerate(asked.documents or ())
    ]


async def _stream(
    first: tuple[int, Extraction], results: AsyncGenerator[tuple[int, Extraction]], whole: bool
) -> AsyncIterator[str]:
    """Yield one line of JSON for each document as it ends; if an error occurs in between, it is the last line."""
    async with contextlib.aclosing(results):
        try:
            yield _line(first, whole)
            async for result in results:
                yield _line(result, whole)
        except ApiError as error:
            yield json_text(error.body)


def _line(result: tuple[int, Extraction], whole: bool) -> str:
    index, extraction = result
    return json_text({"id": extraction.document.id, "index": index, **extracted(extraction, whole=whole)})


async def _events(lines: AsyncIterator[str], run: ServedRun) -> AsyncIterator[str]:
    """Yield server-sent events: `document` for each document, then `done`; `error` if the lines end with an error."""
    count = 0
    async for line in lines:
        if line.startswith('{"error"'):
            yield f"event: error\ndata: {line}\n\n"
            return
        count += 1
        yield f"event: document\ndata: {line}\n\n"
    yield f"event: done\ndata: {json_text({'documents': count, 'model': run.name})}\n\n"
