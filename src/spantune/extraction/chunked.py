"""What a model said of documents, whichever engine asked it: long ones taken in chunks, in order, with what went wrong.

An engine decodes texts that fit; here documents become such texts and its answers become documents again. Nothing is
held but what the engine reads ahead. A document that cannot be taken is an error, or, where the engine is told to go
on, an Extraction that says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from spantune.core import DataError, Document, config
from spantune.data import Chunk, Cutter, merge
from spantune.encoding import Encoder, Problem
from spantune.extraction.result import Extraction, failure
from spantune.metrics import Calibration


class Engine(Protocol):
    """What extracts: a model here, or a server."""

    calibration: Calibration | None

    def stream(self, documents: Iterable[Document | Extraction], *, strict: bool = True) -> Iterator[Extraction]:
        """Yield an Extraction for each document, in order; see `by_chunks`."""


@dataclass
class _Waiting:
    """A document whose chunks are being decoded."""

    document: Document
    chunks: list[Chunk]
    parts: list[Extraction] = field(default_factory=list)


def by_chunks(
    documents: Iterable[Document | Extraction],
    cutter: Cutter,
    decode: Callable[[Iterator[Document]], Iterator[Extraction]],
    *,
    strict: bool,
) -> Iterator[Extraction]:
    """Yield an Extraction for each document, in order, from an engine that decodes one text after another, in order.

    What is an Extraction already keeps its place. With `strict` a document that cannot be taken is an error, else a
    `refused` Extraction.

    Raises:
        DataError: as `Cutter.cut`, with `strict`.
    """
    queue: deque[_Waiting | Extraction] = deque()

    def texts() -> Iterator[Document]:
        for item in documents:
            if isinstance(item, Extraction):
                queue.append(item)
                continue
            try:
                chunks = cutter.cut(item)
            except DataError as error:
                if strict:
                    raise
                queue.append(failure(item, "refused", Problem("refused", str(error))))
                continue
            queue.append(_Waiting(item, chunks))
            yield from (chunk.document for chunk in chunks)

    for part in decode(texts()):
        yield from _ready(queue)
        waiting = queue[0]
        assert isinstance(waiting, _Waiting)
        waiting.parts.append(part)
        if len(waiting.parts) == len(waiting.chunks):
            yield _joined(waiting)
            queue.popleft()
    yield from _ready(queue)
    assert not queue, "an engine owes an answer for every text"


def cutter(encoder: Encoder, settings: config.Extract, window: int | None) -> Cutter:
    """Cuts documents to what an engine takes at once, with a model's `window` of so many tokens, where one is known.

    Raises:
        DataError: there is no room for a text beside the instruction and the answer.
    """
    instruction = len(encoder.prompt_ids(""))
    limits = [] if encoder.max_tokens is None else [encoder.max_tokens]
    if settings.chunk_tokens is not None:
        limits.append(instruction + settings.chunk_tokens)
    if window is not None:
        limits.append(window - settings.max_new_tokens)
    limit = min(limits, default=None)
    if limit is not None and limit <= instruction:
        raise DataError(
            f"the instruction's {instruction} tokens and extract.max_new_tokens={settings.max_new_tokens} leave no "
            f"room for a text: train.max_tokens is {encoder.max_tokens}, the model's window {window}; lower "
            "extract.max_new_tokens"
        )
    return Cutter(
        lambda text: limit is None or len(encoder.prompt_ids(text)) <= limit,
        settings.overlap,
        settings.max_characters,
    )


def _ready(queue: deque[_Waiting | Extraction]) -> Iterator[Extraction]:
    """Yield and remove what is at the front of the queue and needs no decoding."""
    while queue and isinstance(item := queue[0], Extraction):
        queue.popleft()
        yield item


def _joined(waiting: _Waiting) -> Extraction:
    """The Extraction of a document from those of its chunks, at offsets of the whole text."""
    document, parts = waiting.document, waiting.parts
    if len(parts) == 1:
        return replace(parts[0], document=document.with_entities(parts[0].document.entities))
    filled = [replace(chunk, document=part.document) for chunk, part in zip(waiting.chunks, parts, strict=True)]
    merged = merge(document.with_entities(()), filled)
    status = next((part.status for part in parts if part.status != "stopped"), "stopped")
    problems = tuple(problem for part in parts for problem in part.problems)
    answer = "".join(part.answer for part in parts)
    kept = {(entity, entity.score) for entity in merged.document.entities}
    labels = {
        whole: part.label_scores[entity]
        for chunk, part in zip(waiting.chunks, parts, strict=True)
        for entity in part.document.entities
        if entity in part.label_scores and ((whole := entity.shifted(chunk.start)), whole.score) in kept
    }
    return Extraction(merged.document, answer, status, problems, overruled=merged.suppressed, label_scores=labels)
