"""The service: one thread that runs the models' sessions, and the queue of documents in front of it.

The requests of a model are served in turn, one document of each, so that a request with many documents does not delay a
request with one text. An error in a document ends only that document.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from spantune.core import (
    ConfigError,
    DataError,
    Document,
    Extraction,
    Problem,
    ProblemKind,
    Status,
    TaskSpec,
    log_crash,
)
from spantune.encoding import TextEncoder
from spantune.extraction import Extractor, Options, Session
from spantune.serving.errors import ApiError, DeadlineExceeded, EngineDown, Overloaded, Stopping, UnknownModel
from spantune.serving.metrics import Metrics
from spantune.serving.settings import ServeSettings

log = logging.getLogger(__name__)
DEFAULT = Options()
MEMORY_SECONDS = 5.0
"""How often freed memory is returned to the system while models compute, in seconds."""


@dataclass(frozen=True)
class ServedRun:
    """A run that is served: its name, its task, and its fingerprint (see `fingerprint_of`)."""

    name: str
    task: TaskSpec
    fingerprint: str


@dataclass(eq=False)
class _Request:
    """A request: its documents, and how many of them were submitted to the session and how many are done."""

    model: str
    documents: Sequence[Document]
    options: Options
    loop: asyncio.AbstractEventLoop
    began: float = field(default_factory=time.monotonic)
    results: asyncio.Queue[tuple[int, Extraction] | ApiError] = field(default_factory=asyncio.Queue)
    submitted: int = 0
    done: int = 0
    is_over: bool = False

    def tell(self, result: tuple[int, Extraction] | ApiError) -> None:
        """Pass a result to the request's task in the event loop; called in the models' thread."""
        with contextlib.suppress(RuntimeError):  # the event loop has ended, and with it the client's connection
            self.loop.call_soon_threadsafe(self.results.put_nowait, result)


@dataclass(eq=False)
class _Lane:
    """A model: its session, the requests that have documents to submit, and the documents that were submitted."""

    run: ServedRun
    session: Session
    waiting: deque[_Request] = field(default_factory=deque)
    in_work: dict[int, tuple[_Request, int]] = field(default_factory=dict)
    """The request and the index of each document that the session has, by the session's ticket."""


class Service:
    """The models that are served over HTTP.

    Args:
        extractors: the extractor of each run, by the run's name; the first is the default.
        settings: the limits.
        fingerprints: the fingerprint of each run, by its name.
        metrics: counts requests and documents.
    """

    def __init__(
        self,
        extractors: Mapping[str, Extractor],
        settings: ServeSettings,
        fingerprints: Mapping[str, str],
        metrics: Metrics,
    ):
        self.settings, self.metrics = settings, metrics
        self.started = int(time.time())
        """When the service was made, after the models were loaded, in seconds since 1970."""
        self._lanes = {
            name: _Lane(ServedRun(name, extractor.task, fingerprints[name]), extractor.session())
            for name, extractor in extractors.items()
        }
        self._encoders = {name: extractor.encoder for name, extractor in extractors.items()}
        metrics.watch("spantune_queue_documents", "Documents that wait for the model.", lambda: self.waiting)
        metrics.watch("spantune_documents_in_work", "Documents that the model works on.", lambda: self.in_work)
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._open: set[_Request] = set()
        self._accepted = 0
        self._is_closed = False
        self.is_stopping = False
        """Whether new requests are refused, and only the accepted ones are finished."""
        self.failure: BaseException | None = None
        """The error that ended the models' thread, if there was one."""
        self.on_failure: Callable[[], None] = lambda: None
        """Is called in the models' thread after a failure has ended it."""

    @property
    def runs(self) -> tuple[ServedRun, ...]:
        """The runs that are served, the default run first."""
        return tuple(lane.run for lane in self._lanes.values())

    def run(self, name: str | None = None) -> ServedRun:
        """Return the run with this name; the first run if `name` is None.

        Raises:
            UnknownModel: there is no run with this name.
        """
        return self._lane(name).run

    def encoder(self, name: str) -> TextEncoder:
        """Return the encoder of the run with this name.

        Raises:
            UnknownModel: there is no run with this name.
        """
        return self._encoders[self._lane(name).run.name]

    @property
    def unfinished(self) -> int:
        """The number of documents that were accepted and are not finished."""
        return self._accepted

    @property
    def waiting(self) -> int:
        """The number of documents that were accepted and not yet submitted to a session."""
        return max(0, self._accepted - self.in_work)

    @property
    def in_work(self) -> int:
        """The number of documents that the sessions have."""
        return sum(len(lane.in_work) for lane in self._lanes.values())

    @property
    def is_up(self) -> bool:
        """Whether the models' thread works."""
        return self.failure is None

    @property
    def is_ready(self) -> bool:
        """Whether new requests are accepted."""
        return self.failure is None and not self.is_stopping

    def require_ready(self, documents: int = 1) -> None:
        """Check that a request with this number of documents would be accepted now.

        Raises:
            Overloaded: the queue is full.
            Stopping: the service is being stopped.
            EngineDown: the models' thread has ended because of a bug.
        """
        if self.failure is not None:
            raise EngineDown
        if self.is_stopping:
            raise Stopping
        if self._accepted + documents > self.settings.max_queue:
            raise Overloaded(self.settings.max_queue)

    def start(self) -> None:
        """Start the models' thread, if it does not run yet."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="spantune-models", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Accept no new requests; the accepted ones are finished."""
        self.is_stopping = True

    def close(self) -> None:
        """End the models' thread after its current pass, and wait for it."""
        with self._changed:
            self.is_stopping = self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    async def extract(
        self, model: str | None, documents: Sequence[Document], options: Options = DEFAULT
    ) -> AsyncGenerator[tuple[int, Extraction]]:
        """Yield the index of each document and its Extraction, as they end. Leaving the loop cancels the rest.

        Raises:
            UnknownModel: there is no run with this name.
            Overloaded: the queue is full.
            Stopping: the service is being stopped.
            DeadlineExceeded: the request takes longer than `settings.timeout` seconds.
            EngineDown: the models' thread has ended because of a bug.
            ApiError: an option is invalid for this run.
        """
        lane = self._lane(model)
        request = _Request(lane.run.name, documents, options, asyncio.get_running_loop())
        self.start()
        with self._changed:
            self.require_ready(len(documents))
            self._accepted += len(documents)
            self._open.add(request)
            lane.waiting.append(request)
            self._changed.notify_all()
        try:
            for _ in documents:
                seconds_left = request.began + self.settings.timeout - time.monotonic()
                try:
                    async with asyncio.timeout(seconds_left):
                        result = await request.results.get()
                except TimeoutError:
                    raise DeadlineExceeded(self.settings.timeout) from None
                if isinstance(result, ApiError):
                    raise result
                yield result
        finally:
            self._leave(request)

    async def extract_all(
        self, model: str | None, documents: Sequence[Document], options: Options = DEFAULT
    ) -> list[Extraction]:
        """Return the Extraction of each document, in order; the errors are those of `extract`."""
        by_index: dict[int, Extraction] = {}
        async with contextlib.aclosing(self.extract(model, documents, options)) as results:
            async for index, extraction in results:
                by_index[index] = extraction
        return [by_index[index] for index in range(len(documents))]

    def _lane(self, name: str | None) -> _Lane:
        if name is None:
            return next(iter(self._lanes.values()))
        if name not in self._lanes:
            raise UnknownModel(name, list(self._lanes))
        return self._lanes[name]

    def _leave(self, request: _Request) -> None:
        """Drop the unfinished documents of a request that has ended or was left."""
        with self._changed:
            if not request.is_over:
                request.is_over = True
                self._open.discard(request)
                self._accepted -= len(request.documents) - request.done
                with contextlib.suppress(ValueError):  # all of its documents were submitted already
                    self._lanes[request.model].waiting.remove(request)
                self._changed.notify_all()

    # The methods below run in the models' thread.

    def _work(self) -> None:
        given_back = time.monotonic()
        try:
            while self._wait():
                for lane in self._lanes.values():
                    self._drop_what_is_over(lane)
                    self._submit(lane)
                    self._step(lane)
                if time.monotonic() - given_back > MEMORY_SECONDS:
                    give_back_memory()
                    given_back = time.monotonic()
        except BaseException as error:  # any error at all, since clients must not wait for a thread that has ended
            log_crash(error)
            self._fail(error)

    def _wait(self) -> bool:
        """Wait until there is something to do; return False when the service is closed."""
        with self._changed:
            while not self._is_closed and not any(lane.waiting or lane.in_work for lane in self._lanes.values()):
                self._changed.wait()
            return not self._is_closed

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self.failure = error
            open_requests = list(self._open)
        for request in open_requests:
            request.tell(EngineDown())
        self.on_failure()

    def _drop_what_is_over(self, lane: _Lane) -> None:
        for ticket, (request, _) in list(lane.in_work.items()):
            if request.is_over:
                del lane.in_work[ticket]
                lane.session.cancel(ticket)

    def _submit(self, lane: _Lane) -> None:
        """Submit documents while the session has room, one of each request in turn."""
        while lane.session.has_room:
            with self._changed:
                if not lane.waiting:
                    return
                request = lane.waiting.popleft()
                if request.is_over:
                    continue
                index = request.submitted
                request.submitted += 1
                if request.submitted < len(request.documents):
                    lane.waiting.append(request)
            self._submit_document(lane, request, index)

    def _submit_document(self, lane: _Lane, request: _Request, index: int) -> None:
        if request.is_over:
            return
        try:
            ticket = lane.session.submit(request.documents[index], request.options)
        except DataError as error:
            self._finish(lane, request, index, _without_answer(request.documents[index], Status.REFUSED, str(error)))
        except ConfigError as error:
            request.tell(ApiError(422, "invalid_option", str(error), "see /v1/task for the labels of the run"))
            self._leave(request)
        except Exception as error:
            log_crash(error)
            self._finish(lane, request, index, _of_bug(request.documents[index]))
        else:
            lane.in_work[ticket] = (request, index)

    def _step(self, lane: _Lane) -> None:
        if not lane.in_work:
            return
        try:
            ended = lane.session.step()
        except Exception as error:
            log_crash(error)
            for ticket, (request, index) in list(lane.in_work.items()):
                lane.session.cancel(ticket)
                self._finish(lane, request, index, _of_bug(request.documents[index]))
            lane.in_work.clear()
            return
        for ticket, extraction in ended:
            if ticket in lane.in_work:
                self._finish(lane, *lane.in_work.pop(ticket), extraction)

    def _finish(self, lane: _Lane, request: _Request, index: int, extraction: Extraction) -> None:
        with self._changed:
            if request.is_over:
                return
            request.done += 1
            self._accepted -= 1
        self.metrics.document(lane.run.name, extraction, time.monotonic() - request.began)
        request.tell((index, extraction))


def give_back_memory() -> None:
    """Return freed memory to the system, since passes of many sizes leave gaps in the heap that only grow.

    This works only with glibc. It takes some milliseconds, in which other threads can run.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _without_answer(document: Document, status: Status, message: str) -> Extraction:
    kind = ProblemKind.REFUSED if status is Status.REFUSED else ProblemKind.SERVER
    return Extraction(document.with_entities(()), status=status, problems=(Problem(kind, message),))


def _of_bug(document: Document) -> Extraction:
    return _without_answer(document, Status.FAILED, "the model failed on this text: a bug in spantune")
