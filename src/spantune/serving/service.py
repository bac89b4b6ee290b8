"""The service: one thread that owns the models' sessions, and the queue of documents before it.

The requests of a model are served in turn, a document each, so that a request of many documents holds up nobody's
single text. What goes wrong with a document ends that document alone.
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
"""How often freed memory is given back to the system while models compute."""


@dataclass(frozen=True)
class ServedRun:
    """A run that is served: its name, its task, and the hash by which its answers can be told from another run's."""

    name: str
    task: TaskSpec
    fingerprint: str


@dataclass(eq=False)
class _Request:
    """A request: its documents, how many of them are given to the session and how many are done."""

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
        """Hand a result to the client's task, from the thread of the models."""
        with contextlib.suppress(RuntimeError):  # its loop has ended, and with it the client
            self.loop.call_soon_threadsafe(self.results.put_nowait, result)


@dataclass(eq=False)
class _Lane:
    """A model: its session, the requests with documents that wait for it, and the documents that it works on."""

    run: ServedRun
    session: Session
    waiting: deque[_Request] = field(default_factory=deque)
    in_work: dict[int, tuple[_Request, int]] = field(default_factory=dict)
    """The requests and the indices of the documents that the session holds, by their tickets."""


class Service:
    """The models behind HTTP.

    Args:
        extractors: the extractor of each run, by name.
        settings: the limits.
        fingerprints: the hash of each run.
        metrics: what is counted.
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
        """When the models were ready, in seconds since 1970."""
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
        """Whether new requests are refused, and only those are finished that were accepted."""
        self.failure: BaseException | None = None
        """What ended the thread of the models, if anything did."""
        self.on_failure: Callable[[], None] = lambda: None
        """Called in the thread of the models when it has ended by a failure."""

    @property
    def runs(self) -> tuple[ServedRun, ...]:
        """The runs that are served, the default first."""
        return tuple(lane.run for lane in self._lanes.values())

    def run(self, name: str | None = None) -> ServedRun:
        """Return the run with this name, the first where it is None.

        Raises:
            UnknownModel: there is none.
        """
        return self._lane(name).run

    def encoder(self, name: str) -> TextEncoder:
        """Return what makes the prompts of the run with this name.

        Raises:
            UnknownModel: there is none.
        """
        return self._encoders[self._lane(name).run.name]

    @property
    def unfinished(self) -> int:
        """How many documents are accepted and not finished."""
        return self._accepted

    @property
    def waiting(self) -> int:
        """How many documents are accepted and not given to a session yet."""
        return max(0, self._accepted - self.in_work)

    @property
    def in_work(self) -> int:
        """How many documents the sessions hold."""
        return sum(len(lane.in_work) for lane in self._lanes.values())

    @property
    def is_up(self) -> bool:
        """Whether the models answer."""
        return self.failure is None

    @property
    def is_ready(self) -> bool:
        """Whether new requests are accepted."""
        return self.failure is None and not self.is_stopping

    def require_ready(self, documents: int = 1) -> None:
        """Check that a request of so many documents would be accepted now.

        Raises:
            Overloaded: the queue is full.
            Stopping: the service is being stopped.
            EngineDown: the models do not answer any more.
        """
        if self.failure is not None:
            raise EngineDown
        if self.is_stopping:
            raise Stopping
        if self._accepted + documents > self.settings.max_queue:
            raise Overloaded(self.settings.max_queue)

    def start(self) -> None:
        """Start the thread of the models, if it does not run yet."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="spantune-models", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Accept no new requests; those that were accepted are finished."""
        self.is_stopping = True

    def close(self) -> None:
        """End the thread of the models after its current pass."""
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
            UnknownModel: there is no run of this name.
            Overloaded: the queue is full.
            Stopping: the service is being stopped.
            DeadlineExceeded: it takes longer than a request may.
            EngineDown: the models do not answer any more.
            ApiError: the options make no sense for this run.
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
        """Return the Extraction of each document, in order; raises as `extract`."""
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
        """Let the documents of a request that is over go, those in work too."""
        with self._changed:
            if not request.is_over:
                request.is_over = True
                self._open.discard(request)
                self._accepted -= len(request.documents) - request.done
                with contextlib.suppress(ValueError):  # where all of its documents are in work
                    self._lanes[request.model].waiting.remove(request)
                self._changed.notify_all()

    # From here on: the thread of the models.

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
        except BaseException as error:  # whatever it is, clients must not wait for a thread that has ended
            log_crash(error)
            self._fail(error)

    def _wait(self) -> bool:
        """Wait until there is something to do; False when the service is closed."""
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
        """Give the session documents as long as it has room, one of each request in turn."""
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
    """Give memory that was freed back to the system: passes of many sizes leave gaps in the heap that only grow.

    Only glibc can be told so; it takes some milliseconds, in which other threads run.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _without_answer(document: Document, status: Status, message: str) -> Extraction:
    kind = ProblemKind.REFUSED if status is Status.REFUSED else ProblemKind.SERVER
    return Extraction(document.with_entities(()), status=status, problems=(Problem(kind, message),))


def _of_bug(document: Document) -> Extraction:
    return _without_answer(document, Status.FAILED, "the model failed on this text: a bug in spantune")
