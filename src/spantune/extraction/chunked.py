"""Cut documents into chunks that an engine can decode, and merge the results of the chunks, in order.

Only the documents that the engine has read ahead are held in memory. A document that cannot be decoded is an error, or
becomes an Extraction that states why.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from spantune.core import (
    ConfigError,
    DataError,
    Document,
    Extraction,
    Prediction,
    Problem,
    ProblemKind,
    Status,
    config,
    expect,
    number,
)
from spantune.data import Chunk, Cutter, merge
from spantune.encoding import Encoder, TextEncoder
from spantune.extraction.result import failure
from spantune.metrics import Calibration

_WIDEST = "\U0010fffd" * 4 + "\ufdfd"
"""A text with more tokens than any single character: characters of four bytes, and one that NFKC expands to 18."""


class Engine(Protocol):
    """What extracts entities: a model in this process, or a server. `calibration` is applied to its scores."""

    calibration: Calibration | None

    def stream(self, documents: Iterable[Prediction], *, strict: bool = True) -> Iterator[Extraction]:
        """Yield an Extraction for each document, in order; see `by_chunks` for `strict` and the errors."""


def as_documents(texts: Iterable[str | Prediction]) -> Iterator[Prediction]:
    """Return `texts` with each string as a Document, whose id is its index, from 0.

    Raises:
        ConfigError: `texts` is a single text or is not iterable. A member of a wrong type raises it when it is reached.
    """
    expected = "a list of texts or Documents"
    if isinstance(texts, str | Document | Extraction):
        raise ConfigError(f"texts: expected {expected}, found one; put it in a list, or call extract, which takes it")
    if isinstance(texts, bytes | Mapping) or not isinstance(texts, Iterable):  # their elements would not be texts
        expect(texts, (), "texts", expected)
    return _each_document(texts, expected)


def _each_document(texts: Iterable[str | Prediction], expected: str) -> Iterator[Prediction]:
    for index, text in enumerate(texts):
        if isinstance(text, str):
            yield Document(str(index), text)
        else:
            expect(text, (Document, Extraction), f"texts[{index}]", "a text or a Document")
            yield text


@dataclass(eq=False)
class Parts:
    """The chunks of a document, and the Extractions of the chunks that are done.

    Args:
        document: the whole document.
        source: yields its chunks, at least one.
        chunks: the chunks that were taken from `source`.
        done: the Extractions of chunks that are done, by the index of the chunk.

    Raises:
        DataError: as `Cutter.chunks`, for the first chunk.
    """

    document: Document
    source: Iterator[Chunk]
    chunks: list[Chunk] = field(default_factory=list)
    done: dict[int, Extraction] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._next: Chunk | None = next(self.source)

    @property
    def has_more(self) -> bool:
        """Whether there are chunks that were not taken yet."""
        return self._next is not None

    def take(self) -> Document:
        """Take the next chunk, and return it as a Document.

        Raises:
            DataError: as `Cutter.chunks`, for the chunk after this one.
        """
        chunk = self._next
        assert chunk is not None
        self._next = next(self.source, None)
        self.chunks.append(chunk)
        return chunk.document

    @property
    def complete(self) -> bool:
        """Whether every chunk is done."""
        return not self.has_more and len(self.done) == len(self.chunks)

    def joined(self) -> Extraction:
        """Merge the Extractions of all chunks into one for the whole document; its offsets are those of the whole text.

        Its status is the first one that is not `stopped`.
        """
        document, parts = self.document, [self.done[index] for index in range(len(self.chunks))]
        if len(parts) == 1:
            return replace(parts[0], document=document.with_entities(parts[0].document.entities))
        chunks = [replace(chunk, document=part.document) for chunk, part in zip(self.chunks, parts, strict=True)]
        merged = merge(document.with_entities(()), chunks)
        left_out = {
            entity.shifted(chunk.start)
            for chunk, part in zip(self.chunks, parts, strict=True)
            for entity in part.below_threshold
        }
        return Extraction(
            merged.document,
            answer="".join(part.answer for part in parts),
            status=next((part.status for part in parts if part.status is not Status.STOPPED), Status.STOPPED),
            problems=tuple(problem for part in parts for problem in part.problems),
            contradicted=merged.suppressed,
            below_threshold=tuple(sorted(left_out.difference(merged.document.entities, merged.suppressed))),
        )


def by_chunks(
    documents: Iterable[Prediction],
    cutter: Cutter,
    decode: Callable[[Iterator[Document]], Iterator[Extraction]],
    *,
    strict: bool,
) -> Iterator[Extraction]:
    """Yield an Extraction for each document, in order.

    Args:
        documents: what to extract from. An Extraction among them is passed through unchanged.
        cutter: cuts a document into chunks that the engine can decode.
        decode: the engine: takes an iterator of chunks and yields an Extraction for each, in order.
        strict: whether a document that cannot be cut is an error. If False, it becomes a `refused` Extraction.

    Raises:
        DataError: as `Cutter.cut`, with `strict`.
    """
    queue: deque[Parts | Extraction] = deque()

    def texts() -> Iterator[Document]:
        for document in documents:
            parts = parts_of(document, lambda whole: iter(cutter.cut(whole)), strict=strict)
            queue.append(parts)
            while isinstance(parts, Parts) and parts.has_more:
                yield parts.take()

    for extraction in decode(texts()):
        yield from _ready(queue)
        parts = queue[0]
        assert isinstance(parts, Parts)
        parts.done[len(parts.done)] = extraction
        if parts.complete:
            yield parts.joined()
            queue.popleft()
    yield from _ready(queue)
    assert not queue, "an engine yields an answer for every text"


def parts_of(document: Prediction, cut: Callable[[Document], Iterator[Chunk]], *, strict: bool) -> Parts | Extraction:
    """Cut a document with `cut`. An Extraction is returned unchanged.

    Raises:
        DataError: as `Cutter.chunks`, with `strict`. Otherwise such a document becomes a `refused` Extraction.
    """
    if isinstance(document, Extraction):
        return document
    try:
        return Parts(document, cut(document))
    except DataError as error:
        if strict:
            raise
        return refusal(document, error)


def refusal(document: Document, error: DataError) -> Extraction:
    """Return the `refused` Extraction of a document that cannot be cut because of `error`."""
    return failure(document, Status.REFUSED, Problem(ProblemKind.REFUSED, str(error)))


def cutter(encoder: TextEncoder, settings: config.Extract, window: int | None) -> Cutter:
    """Make the Cutter of an engine.

    Args:
        encoder: the tokenizer and the task.
        settings: the section `extract`: chunk size, overlap and limits.
        window: the most tokens that the model takes, or None if that is unknown.

    Raises:
        DataError: the tokens before a text, and the longest answer if one is written, leave no room for a text.
    """
    before = len(encoder.prompt_ids(""))
    answer = settings.max_new_tokens if isinstance(encoder, Encoder) else 0
    limit = most_tokens(encoder, settings, window)
    if limit is not None and limit <= before:
        raise _no_room(encoder, before, answer, window)
    return Cutter(
        lambda text: limit is None or len(encoder.prompt_ids(text)) <= limit,
        settings.overlap,
        settings.max_characters,
    )


def most_tokens(encoder: TextEncoder, settings: config.Extract, window: int | None) -> int | None:
    """Return the most tokens that a prompt with its text may have; None where nothing limits them.

    The limits are `train.max_tokens`, `extract.chunk_tokens`, and `window` without the longest answer if one is
    written.
    """
    limits = [] if encoder.max_tokens is None else [encoder.max_tokens]
    if settings.chunk_tokens is not None:
        limits.append(len(encoder.prompt_ids("")) + settings.chunk_tokens * encoder.copies)
    if window is not None:
        limits.append(window - (settings.max_new_tokens if isinstance(encoder, Encoder) else 0))
    return min(limits, default=None)


def _no_room(encoder: TextEncoder, before: int, answer: int, window: int | None) -> DataError:
    """Return the error where `before` tokens before a text and `answer` tokens after it leave no room for the text."""
    beside, remedy = f" and extract.max_new_tokens={answer}", "lower extract.max_new_tokens"
    if not answer:
        beside, remedy = "", "raise train.max_tokens, or leave spans.instruction out"
    return DataError(
        f"there is no room for a text beside the {number(before, 'token')} before it{beside}: train.max_tokens is "
        f"{encoder.max_tokens}, the model's window {window}; {remedy}"
    )


def refusals(
    documents: Iterable[Document], encoder: TextEncoder, settings: config.Extract, window: int | None
) -> Iterator[DataError]:
    """Yield the errors with which an engine would refuse `documents`, at most one for each; nothing is decoded.

    Args:
        documents: the documents. They are not read if there is no room for any text, which is then the only error.
        encoder: the tokenizer and the task.
        settings: the limits of extraction.
        window: as in `cutter`.
    """
    try:
        cuts = cutter(encoder, settings, window)
    except DataError as error:
        yield error
        return
    # If every character fits beside the instruction, any text can be cut, and need not be tokenised to know that.
    needs_cutting = not cuts.fits(_WIDEST)
    for document in documents:
        try:
            cuts.check(document)
            if needs_cutting:
                cuts.cut(document)
        except DataError as error:
            yield error


def _ready(queue: deque[Parts | Extraction]) -> Iterator[Extraction]:
    """Remove the Extractions at the front of the queue and yield them."""
    while queue and isinstance(first := queue[0], Extraction):
        queue.popleft()
        yield first
