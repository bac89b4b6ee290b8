"""Cut documents into texts that an engine can decode, and merge its answers into Extractions, in order.

A long document is decoded in chunks that are merged again. Nothing is held in memory but what the engine reads ahead.
A document that cannot be decoded is an error, or an Extraction that says why.
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
"""More tokens than a single character of any text takes: characters of four bytes, and one that NFKC makes 18 of."""


class Engine(Protocol):
    """What extracts entities: a model in this process, or a server."""

    calibration: Calibration | None

    def stream(self, documents: Iterable[Prediction], *, strict: bool = True) -> Iterator[Extraction]:
        """Yield an Extraction for each document, in order; see `by_chunks`."""


def as_documents(texts: Iterable[str | Prediction]) -> Iterator[Prediction]:
    """Return `texts` with a Document for each that is a string, whose id is its number from 0.

    Raises:
        ConfigError: `texts` is a single text or cannot be gone through; a member of another type is found when it is
            reached.
    """
    expected = "a list of texts or Documents"
    if isinstance(texts, str | Document | Extraction):
        raise ConfigError(f"texts: expected {expected}, found one; put it in a list, or call extract, which takes it")
    if isinstance(texts, bytes | Mapping) or not isinstance(texts, Iterable):  # going through them gives no text
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
    """The chunks of a document, and the Extractions of those that are done, by their index.

    Args:
        document: the whole document.
        source: gives its chunks, one at least.
        chunks: those that were taken.
        done: the Extractions.

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
        """Whether there are chunks that were not taken."""
        return self._next is not None

    def take(self) -> Document:
        """Return the text of the next chunk.

        Raises:
            DataError: as `Cutter.chunks`, for the chunk after it.
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
        """Merge the Extractions of all chunks; offsets are those of the whole text."""
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
        documents: what to extract from; an Extraction among them is passed through in its place.
        cutter: cuts a document into chunks that the engine can decode.
        decode: the engine: yields an Extraction for each text, in order.
        strict: whether a document that cannot be cut is an error; otherwise it becomes a `refused` Extraction.

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
    """Cut a document by `cut`; an Extraction is returned as it is.

    Raises:
        DataError: as `Cutter.chunks`, with `strict`; otherwise such a document becomes a `refused` Extraction.
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
    """Return the Extraction of a document that cannot be cut."""
    return failure(document, Status.REFUSED, Problem(ProblemKind.REFUSED, str(error)))


def cutter(encoder: TextEncoder, settings: config.Extract, window: int | None) -> Cutter:
    """Make the Cutter of an engine; `window` is the model's limit of tokens, where it is known.

    Raises:
        DataError: what stands before a text, and the answer where one is written, leave no room for it.
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
    """Return the most tokens of a text with what stands before it that is read at once; None where nothing says it."""
    limits = [] if encoder.max_tokens is None else [encoder.max_tokens]
    if settings.chunk_tokens is not None:
        limits.append(len(encoder.prompt_ids("")) + settings.chunk_tokens * encoder.copies)
    if window is not None:
        limits.append(window - (settings.max_new_tokens if isinstance(encoder, Encoder) else 0))
    return min(limits, default=None)


def _no_room(encoder: TextEncoder, before: int, answer: int, window: int | None) -> DataError:
    """The error where `before` tokens before a text and the most tokens of an answer leave no room for the text."""
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
    """Yield the errors with which an engine would refuse `documents`, one for each; nothing is decoded.

    Args:
        documents: the documents; none is read further where there is no room for any text.
        encoder: the tokenizer and the task.
        settings: the limits of extraction.
        window: as in `cutter`.
    """
    try:
        cuts = cutter(encoder, settings, window)
    except DataError as error:
        yield error
        return
    # where any character fits beside the instruction, a text has chunks, and need not be tokenised to know it
    needs_cutting = not cuts.fits(_WIDEST)
    for document in documents:
        try:
            cuts.check(document)
            if needs_cutting:
                cuts.cut(document)
        except DataError as error:
            yield error


def _ready(queue: deque[Parts | Extraction]) -> Iterator[Extraction]:
    """Yield and remove the Extractions at the front of the queue."""
    while queue and isinstance(first := queue[0], Extraction):
        queue.popleft()
        yield first
