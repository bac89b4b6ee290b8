"""Sessions take documents one by one, at any time, and compute them together.

    session = extractor.session()
    ticket = session.submit(Document("1", "患者因急性阑尾炎行腹腔镜手术。"), Options(min_score=0.5))
    while session.pending:
        for ticket, extraction in session.step():
            print(ticket, extraction.document.entities)

All sessions and streams of an extractor share one `Scheduler`, and so one key-value cache and one batch: a step of any
session computes for all of them. The chunks of several documents take turns, so that a short text does not wait until a
long text has ended. Sessions are not thread-safe: one thread must make all the calls for one extractor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from spantune.core import (
    ConfigError,
    DataError,
    Document,
    Entity,
    Extraction,
    Prediction,
    config,
    expect,
    nearest,
)
from spantune.data import Cutter
from spantune.encoding import TextEncoder
from spantune.extraction.chunked import Parts, cutter, parts_of, refusal
from spantune.extraction.reading import Reader
from spantune.extraction.result import Ended, calibrated, failed
from spantune.metrics import Calibration

AHEAD = 4096
"""The most documents that a stream reads ahead of the first unfinished document, while later ones end before it."""


@dataclass(frozen=True)
class Options:
    """The options of one request; None takes the run's value.

    Args:
        min_score: drop entities with a lower score, a probability, instead of by the run's thresholds; 0 drops none.
        labels: keep only entities with these labels.
        chunk_tokens: as `extract.chunk_tokens`.
        overlap: as `extract.overlap`.
        whole: where spans are read, whether `Extraction.below_threshold` has every candidate below the threshold.
    """

    min_score: float | None = None
    labels: tuple[str, ...] | None = None
    chunk_tokens: int | None = None
    overlap: int | None = None
    whole: bool = False


class Worker(Protocol):
    """The interface of `Writer` and `Reader`: both compute texts that are submitted one by one."""

    @property
    def room(self) -> int:
        """How many more texts to submit now."""

    def wake(self) -> None:
        """Allocate what the first text needs, such as the key-value cache."""

    def rest(self) -> None:
        """Free what must not be kept while no text is being computed."""

    def submit(self, text: Document) -> int:
        """Add a text; return its number."""

    def cancel(self, number: int) -> None:
        """Drop the text with this number."""

    def step(self) -> list[Ended]:
        """Compute one forward pass; return the results of the texts that have ended, in any order."""


@dataclass(eq=False)
class _Job:
    """A document of a session; `finish` is called once all of its chunks are done.

    `numbers` maps the worker's number of a chunk that is being computed to the index of the chunk in the document.
    """

    parts: Parts
    finish: Callable[[_Job], None]
    numbers: dict[int, int] = field(default_factory=dict)
    error: Exception | None = None

    def end(self, index: int, extraction: Extraction, error: Exception | None) -> None:
        """Record the result of the chunk `index`."""
        self.parts.done[index] = extraction
        self.error = self.error or error
        if self.parts.complete:
            self.finish(self)


class Scheduler:
    """Passes the chunks of all documents to a worker while it has room, and its results back to the documents.

    Args:
        worker: computes the chunks. Only this scheduler may use it.
    """

    def __init__(self, worker: Worker):
        self._worker = worker
        self.activate: Callable[[], None] | None = None
        """Is called before the worker computes a pass, if the worker's model is shared with other workers."""
        self._queue: deque[_Job] = deque()
        self._running: dict[int, _Job] = {}

    @property
    def has_room(self) -> bool:
        """Whether the worker could start on another document at once."""
        return not self._queue and self._worker.room > 0

    def wake(self) -> None:
        """Prepare the worker for its first document.

        Raises:
            ModelError: as `Writer.wake`.
        """
        self._worker.wake()

    def add(self, job: _Job) -> None:
        """Take a document; it may end before this returns, if it cannot be cut or encoded."""
        self._queue.append(job)
        self._feed()

    def cancel(self, job: _Job) -> None:
        """Drop a document; the cache slots of its chunks are freed."""
        if job in self._queue:
            self._queue.remove(job)
        self._drop(job)
        self._rest()

    def _drop(self, job: _Job) -> None:
        """Drop those chunks of a document that the worker has."""
        for number in job.numbers:
            del self._running[number]
            self._worker.cancel(number)

    def step(self) -> None:
        """Submit what there is room for, and compute one pass."""
        self._feed()
        if self._running:
            if self.activate is not None:
                self.activate()
            for ended in self._worker.step():
                job = self._running.pop(ended.number)
                job.end(job.numbers.pop(ended.number), ended.extraction, ended.error)
        self._rest()

    def _feed(self) -> None:
        """Submit chunks while the worker has room, one chunk of each document in turn."""
        while self._queue and self._worker.room > 0:
            job = self._queue.popleft()
            index = len(job.parts.chunks)
            try:
                text = job.parts.take()
            except Exception as error:  # the rest of this document cannot be cut
                self._drop(job)
                job.error = error
                job.finish(job)
                continue
            if job.parts.has_more:
                self._queue.append(job)
            try:
                number = self._worker.submit(text)
            except Exception as error:  # this chunk cannot be encoded
                job.end(index, failed(text, error), error)
                continue
            self._running[number] = job
            job.numbers[number] = index

    def _rest(self) -> None:
        if not self._running and not self._queue:
            self._worker.rest()


@dataclass(frozen=True)
class Terms:
    """How an extractor treats every document, unless a request has other `Options`.

    Args:
        encoder: the tokenizer and the task.
        settings: the section `extract`.
        window: the most tokens that the model takes.
        calibration: as in `Extractor`.
        reader: decides which candidates are entities; None where answers are written.
        keeps_candidates: whether all candidates are entities.
    """

    encoder: TextEncoder
    settings: config.Extract
    window: int
    calibration: Calibration | None = None
    reader: Reader | None = None
    keeps_candidates: bool = False


class Session:
    """Documents that are submitted one by one, and end in any order.

    A session uses the calibration and the thresholds that the extractor had when the session was made.

    Args:
        scheduler: computes the documents of all sessions of the extractor.
        terms: how documents are treated where a request does not say otherwise.
    """

    def __init__(self, scheduler: Scheduler, terms: Terms):
        self._scheduler, self._terms = scheduler, terms
        self._thresholds = terms.reader.thresholds if terms.reader is not None else None
        self._cutter = cutter(terms.encoder, terms.settings, terms.window)
        self._jobs: dict[int, _Job] = {}
        self._ended: list[tuple[int, Extraction, Exception | None]] = []
        self._tickets = 0

    @property
    def pending(self) -> int:
        """The number of documents that were submitted, and that were neither returned by `step` nor cancelled."""
        return len(self._jobs) + len(self._ended)

    @property
    def has_room(self) -> bool:
        """Whether another document would be computed at once instead of waiting."""
        return self._scheduler.has_room

    def submit(self, document: Document, options: Options = Options()) -> int:
        """Add a document; return its ticket, a number that `step` returns with the result.

        Raises:
            DataError: the text is too long, has half a surrogate pair, or does not fit beside the instruction.
            ConfigError: an option is invalid: an unknown label, a score that is not a probability, or a wrong type.
            ModelError: the GPU has not enough memory for the key-value cache.
        """
        expect(document, Document, "submit", "a Document")
        expect(options, Options, "submit", "Options as the second argument")
        self._check(options)
        parts = parts_of(document, self._cutter_of(options).chunks, strict=True)
        assert isinstance(parts, Parts)
        return self._add(parts, options)

    def cancel(self, ticket: int) -> None:
        """Drop a document and free its cache slots; an unknown or finished ticket is ignored."""
        job = self._jobs.pop(ticket, None)
        if job is not None:
            self._scheduler.cancel(job)
        self._ended = [ended for ended in self._ended if ended[0] != ticket]

    def step(self) -> list[tuple[int, Extraction]]:
        """Compute one pass; return the ticket and the Extraction of each document that has ended, in any order.

        A document whose grammar or forward pass fails, or for which the model computes NaN, has the status `failed`.
        Other documents are not affected.
        """
        return [(ticket, extraction) for ticket, extraction, _ in self._advance()]

    def run(self, documents: Iterable[Prediction], *, strict: bool) -> Iterator[Extraction]:
        """Yield an Extraction for each document, in order; see `Extractor.stream`.

        Raises:
            DataError: a document cannot be extracted from and `strict` is True.
        """
        source = iter(documents)
        order: deque[int | Extraction] = deque()
        done: dict[int, tuple[Extraction, Exception | None]] = {}
        is_more = True
        try:
            while order or is_more:
                while is_more and len(order) < AHEAD and self._scheduler.has_room:
                    document = next(source, None)
                    if document is None:
                        is_more = False
                        break
                    parts = parts_of(document, self._cutter.chunks, strict=strict)
                    order.append(self._add(parts, Options()) if isinstance(parts, Parts) else parts)
                while order and (isinstance(order[0], Extraction) or order[0] in done):
                    first = order.popleft()
                    extraction, error = (first, None) if isinstance(first, Extraction) else done.pop(first)
                    if error is not None and strict:
                        raise error
                    yield extraction
                if order or is_more:
                    done |= {ticket: (extraction, error) for ticket, extraction, error in self._advance()}
        finally:  # the caller may stop early
            for ticket in order:
                if isinstance(ticket, int):
                    self.cancel(ticket)

    def _advance(self) -> list[tuple[int, Extraction, Exception | None]]:
        """Return the documents of this session that have ended; compute a pass first if there are none."""
        if not self._ended:
            self._scheduler.step()
        ended, self._ended = self._ended, []
        return ended

    def _add(self, parts: Parts, options: Options) -> int:
        self._scheduler.wake()
        ticket, calibration = self._tickets, self._terms.calibration
        self._tickets += 1
        if options.min_score is not None:
            calibration = (calibration or Calibration()).with_min_score(options.min_score)

        def finish(job: _Job) -> None:
            self._jobs.pop(ticket, None)
            error = job.error
            try:
                extraction = self._decided(job, calibration, options)
            except Exception as exception:  # merging or deciding failed for this document only
                extraction, error = failed(job.parts.document, exception), exception
            self._ended.append((ticket, extraction, error))

        job = self._jobs[ticket] = _Job(parts, finish)
        self._scheduler.add(job)
        return ticket

    def _decided(self, job: _Job, calibration: Calibration | None, options: Options) -> Extraction:
        """Merge the chunks of a document and apply thresholds; where spans are read, they are applied to each chunk."""
        parts, reader, thresholds = job.parts, self._terms.reader, self._thresholds
        if not parts.complete and job.error is not None:
            return (
                refusal(parts.document, job.error)
                if isinstance(job.error, DataError)
                else failed(parts.document, job.error)
            )
        if reader is None or thresholds is None:
            extraction = calibrated(parts.joined(), calibration)
        elif self._terms.keeps_candidates:
            extraction = parts.joined()
        else:
            for index, candidates in parts.done.items():
                parts.done[index] = reader.decide(candidates, thresholds, calibration, whole=options.whole)
            extraction = parts.joined()
        return extraction if options.labels is None else _of_labels(extraction, options.labels)

    def _cutter_of(self, options: Options) -> Cutter:
        asked = {"chunk_tokens": options.chunk_tokens, "overlap": options.overlap}
        asked = {name: value for name, value in asked.items() if value is not None}
        if not asked:
            return self._cutter
        return cutter(self._terms.encoder, self._terms.settings.model_copy(update=asked), self._terms.window)

    def _check(self, options: Options) -> None:
        """Check the options of a request.

        Raises:
            ConfigError: an option is invalid for this task.
        """
        if options.min_score is not None:
            expect(options.min_score, (int, float), "min_score", "a probability from 0 to 1, or None")
            Calibration().with_min_score(options.min_score)
        for name, lowest in (("chunk_tokens", 1), ("overlap", 0)):
            value = getattr(options, name)
            expect(value, (int, type(None)), name, "a whole number, or None")
            if value is not None and value < lowest:
                raise ConfigError(f"{name} is {value}; expected a whole number from {lowest} on")
        codes = self._terms.encoder.task.codes
        if options.labels is not None and not expect(options.labels, tuple, "labels", "a tuple of labels, or None"):
            raise ConfigError(f"labels is empty; expected one or more of {', '.join(codes)}, or None for all")
        for label in options.labels or ():
            if label not in codes:
                raise ConfigError(f"the run has no label {label!r}; {nearest(str(label), codes)}")


def _of_labels(extraction: Extraction, labels: tuple[str, ...]) -> Extraction:
    """Return `extraction` with only the entities that have one of `labels`."""

    def kept(entities: Iterable[Entity]) -> tuple[Entity, ...]:
        return tuple(entity for entity in entities if entity.label in labels)

    return replace(
        extraction,
        document=extraction.document.with_entities(kept(extraction.document.entities)),
        below_threshold=kept(extraction.below_threshold),
        contradicted=kept(extraction.contradicted),
    )
