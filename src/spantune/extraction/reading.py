"""Extraction by reading: packs of documents go through the model once, and the span head scores every span.

A span is an entity if its score is at or above the threshold of its type. The thresholds were chosen on dev documents
and are saved with the head. Where entities may not overlap, the entity with the higher score is kept. Documents are
packed in the order in which they are submitted. On a GPU, documents are encoded while the GPU computes the pack before.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from spantune.core import (
    ConfigError,
    Document,
    Entity,
    Extraction,
    Problem,
    ProblemKind,
    Status,
    config,
    first_line,
    number,
)
from spantune.encoding import SpanEncoder, SpanExample
from spantune.extraction.choosing import Effort
from spantune.extraction.compiling import compile_checked, is_worth_compiling
from spantune.extraction.result import Ended, calibrated, failure, without_overlaps
from spantune.metrics import Calibration
from spantune.models import CausalLM, SpanPack, layout_spans, require_head, span_logits

DOCUMENTS = {"cpu": 64, "cuda": 1024}  # most documents of a pack, unless `extract.batch_size` says otherwise
TOKENS = {"cpu": 1024, "cuda": 16384}  # most tokens of a pack; a longer text has a pack to itself
LOWEST_LOGIT = -3.0
"""The logit above which a span is a candidate: a probability of 0.047."""
CANDIDATES = 2
"""The most candidates of a document for each of its characters; those with the lowest scores are dropped."""


_LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class _Text:
    """A document that waits or is being read; if its pack fails, it is read once more with `is_alone`."""

    number: int
    document: Document
    example: SpanExample
    is_alone: bool = False
    is_cancelled: bool = False


@dataclass(frozen=True)
class _Pending:
    """A pack that the device computes: its texts, and the index in the pack of the first character of each text.

    `candidates` [characters, width, types] says which spans are candidates, and `logits` has the logits of all spans in
    the same shape. `broken` [characters] is True for a character with a span whose logit is NaN. All three are None if
    no text of the pack has a character. On a GPU, `done` is the event after which they are computed.
    """

    texts: Sequence[_Text]
    starts: Sequence[int] = ()
    candidates: Tensor | None = None
    logits: Tensor | None = None
    broken: Tensor | None = None
    done: torch.cuda.Event | None = None


def require_reading(settings: config.Extract) -> None:
    """Check that the settings suit a task that reads spans.

    Raises:
        ConfigError: `extract.grounded` is False.
    """
    if not settings.grounded:
        raise ConfigError(
            "extract.grounded is false (--free), and the run reads spans (task.answer=spans): it writes no answer, so "
            "there is no grammar to do without; leave the setting out"
        )


class Reader:
    """Reads the entities of documents with a model that has a span head; documents are submitted one by one.

    Args:
        model: a causal LM with a span head.
        encoder: the tokenizer and the task.
        settings: the section `extract`; its `batch_size` is the most documents of a pack.
        effort: passes and tokens are added to this.
    """

    def __init__(self, model: CausalLM, encoder: SpanEncoder, settings: config.Extract, effort: Effort):
        self.model, self.encoder, self.effort = model, encoder, effort
        self.device = next(model.parameters()).device
        self.head = require_head(model)
        self.documents = settings.batch_size or DOCUMENTS[self.device.type]
        is_half = model.get_input_embeddings().weight.dtype == torch.bfloat16
        self._dtype = torch.bfloat16 if is_half else torch.float32
        self._waiting: deque[_Text] = deque()
        self._pending: _Pending | None = None
        self._submitted = 0
        self._size = 0  # tokens of the waiting texts, without the shared prefix
        self._budget = TOKENS[self.device.type] - len(encoder.prefix)
        self._settings, self._is_decided = settings, False  # whether compiling has been decided

    @property
    def thresholds(self) -> Calibration:
        """The thresholds of the span head, as a Calibration that does not change scores."""
        values = torch.sigmoid(self.head.thresholds.double()).tolist()
        return Calibration(label_thresholds=dict(zip(self.encoder.task.codes, values, strict=True)))

    @property
    def room(self) -> int:
        """1 while the waiting documents do not fill a pack, then 0."""
        return int(self._size <= self._budget and len(self._waiting) < self.documents)

    def wake(self) -> None:
        """Do nothing: nothing has to be allocated before the first document."""

    def rest(self) -> None:
        """Do nothing: nothing is kept after the last document."""

    def submit(self, text: Document) -> int:
        """Encode and add a text; return its number."""
        waiting = _Text(self._submitted, text, self.encoder.read(text))
        self._submitted += 1
        self._waiting.append(waiting)
        self._size += self._length(waiting)
        return waiting.number

    def cancel(self, number: int) -> None:
        """Drop a text, whether it waits or is being read; a text that has ended is ignored."""
        for text in self._waiting:
            if text.number == number:
                self._waiting.remove(text)
                self._size -= self._length(text)
                return
        for text in self._pending.texts if self._pending else ():
            text.is_cancelled |= text.number == number

    def step(self) -> list[Ended]:
        """Start the next pack; return the texts of the pack before it, once it is computed, with every candidate.

        On a CPU the texts of the same pack are returned. A pack fails if memory runs out or the model raises an error.
        Its texts are then read once more, each alone; a text that fails again has the status `failed` and the error. A
        pack that fails to start while another one is computed is first tried again when that one is done.
        """
        if self.device.type == "cpu":
            return self._step_at_once()
        ended: list[Ended] = []
        pending, self._pending = self._pending, None
        texts = self._next_pack()
        error = self._start(texts)
        if pending:
            try:
                ended += self._read(pending)
            except Exception as reading_error:
                ended += self._again(pending.texts, reading_error)
            error = self._start(texts) if error else None
        return ended if error is None else [*ended, *self._again(texts, error)]

    def _start(self, texts: Sequence[_Text]) -> Exception | None:
        """Start a pack; return the error if that fails, otherwise None."""
        try:
            self._pending = self._launch(texts) if texts else None
        except Exception as error:
            return error
        return None

    def _step_at_once(self) -> list[Ended]:
        """Read the next pack and return its texts at once, since a CPU computes nothing in the background.

        The clients of a service then get their results sooner and send their next texts sooner, which fills packs
        better.
        """
        texts = self._next_pack()
        try:
            return self._read(self._launch(texts)) if texts else []
        except Exception as error:
            return self._again(texts, error)

    def _length(self, text: _Text) -> int:
        return len(text.example.ids) - len(self.encoder.prefix)

    def _next_pack(self) -> list[_Text]:
        """Take the texts of the next pack; a text that is longer than a pack has a pack to itself."""
        texts: list[_Text] = []
        size = 0
        while self._waiting and len(texts) < self.documents:
            text = self._waiting[0]
            if texts and (text.is_alone or texts[0].is_alone or size + self._length(text) > self._budget):
                break
            texts.append(self._waiting.popleft())
            size += self._length(text)
        self._size -= size
        return texts

    def _again(self, texts: Sequence[_Text], error: Exception) -> list[Ended]:
        """Queue the texts of a failed pack to be read alone; return the results of those that were alone already."""
        _LOG.warning(
            "a pass over %s failed (%s); each is computed once more, by itself, and is reported if that fails too",
            number(len(texts), "document"),
            first_line(error),
        )
        problem = Problem(ProblemKind.INVALID, f"the model could not compute this text: {first_line(error)}")
        self._wait_alone([text for text in texts if not text.is_alone])
        return [
            Ended(text.number, failure(text.document, Status.FAILED, problem), error)
            for text in texts
            if text.is_alone and not text.is_cancelled
        ]

    def _wait_alone(self, texts: Sequence[_Text]) -> None:
        """Put texts at the front of the queue, each to be read alone."""
        again = [replace(text, is_alone=True) for text in texts if not text.is_cancelled]
        self._waiting.extendleft(reversed(again))
        self._size += sum(map(self._length, again))

    def decide(
        self,
        extraction: Extraction,
        thresholds: Calibration,
        calibration: Calibration | None = None,
        *,
        whole: bool = False,
    ) -> Extraction:
        """Keep the candidates that are entities.

        Args:
            extraction: an Extraction with all candidates as entities.
            thresholds: the thresholds of the head. They are an argument because reading them waits for the device.
            calibration: calibrates the scores, and its thresholds replace those of the head; None for no calibration.
            whole: whether `below_threshold` has every candidate below the threshold. If False, it has only those that
                pass the head's thresholds but not those of `calibration`.
        """
        own = calibrated(extraction, thresholds)
        decided = own if calibration is None else calibrated(extraction, calibration)
        entities = decided.document.entities
        if not self.encoder.task.nested:
            entities = tuple(without_overlaps(entities)[0])
        left_out = decided.below_threshold
        if not whole:
            passed = {(entity.start, entity.end, entity.label) for entity in own.document.entities}
            left_out = () if calibration is None else left_out
            left_out = tuple(entity for entity in left_out if (entity.start, entity.end, entity.label) in passed)
        return replace(decided, document=decided.document.with_entities(entities), below_threshold=left_out)

    @torch.inference_mode()
    def _launch(self, texts: Sequence[_Text]) -> _Pending:
        pack = layout_spans([text.example for text in texts], self.encoder.prefix, self.encoder.settings)
        starts = pack.starts.tolist()
        if not pack.band.is_text.any():  # no document has a character
            return _Pending(texts)
        pack = pack.to(self.device)
        self.effort.passes += 1
        self.effort.tokens += len(pack.ids)
        self._compile(pack, is_bulk=bool(self._waiting))
        above = self._above(self._logits(pack), pack)
        done = torch.cuda.Event() if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if done:
            done.record()
        return _Pending(texts, starts, *above, done)

    def _logits(self, pack: SpanPack) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            return span_logits(self.model, pack, self._dtype)

    def _compile(self, pack: SpanPack, *, is_bulk: bool) -> None:
        """Compile the layers once, if that saves time; the compiled layers are checked on `pack` against plain ones."""
        if not self._is_decided and is_worth_compiling(self.model, self._settings, is_bulk=is_bulk):
            self._is_decided = True
            compile_checked(self.model, lambda _: self._logits(pack), len(pack.ids))

    @staticmethod
    def _above(logits: Tensor, pack: SpanPack) -> tuple[Tensor, Tensor, Tensor]:
        """Return which spans are candidates, all logits, and which characters have NaN; a GPU computes them later."""
        inside = pack.band.inside
        return (logits > LOWEST_LOGIT) & inside[:, :, None], logits, (logits.isnan().any(-1) & inside).any(-1)

    def _read(self, pending: _Pending) -> list[Ended]:
        """Return the results of a pack once the device has computed it, without waiting for later passes."""
        if pending.done is None:
            return self._found(pending)
        with torch.cuda.stream(self._beside):
            self._beside.wait_event(pending.done)
            return self._found(pending)

    @cached_property
    def _beside(self) -> torch.cuda.Stream:
        """A second CUDA stream, since the model's stream may already have the next pack."""
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def _found(self, pending: _Pending) -> list[Ended]:
        """Return the result of each text of a computed pack.

        A text with NaN has failed if it was alone in its pack. Otherwise the NaN may come from another text, so the
        text is read once more, alone.
        """
        entities: list[list[Entity]] = [[] for _ in pending.texts]
        broken: set[int] = set()
        if pending.candidates is not None and pending.logits is not None and pending.broken is not None:
            where = pending.candidates.nonzero()
            scores = torch.sigmoid(pending.logits[where.unbind(1)].double()).tolist()
            codes, starts = self.encoder.task.codes, torch.tensor(pending.starts)
            places = where.cpu()
            numbers = torch.searchsorted(starts, places[:, 0], right=True) - 1
            firsts = places[:, 0] - starts[numbers]
            columns = (numbers.tolist(), firsts.tolist(), places[:, 1].tolist(), places[:, 2].tolist(), scores)
            for text, first, more, label, score in zip(*columns, strict=True):
                entities[text].append(Entity(first, first + more + 1, codes[label], score))
            characters = pending.broken.nonzero()[:, 0].cpu()
            broken.update((torch.searchsorted(starts, characters, right=True) - 1).tolist())
        again = [index for index in broken if len(pending.texts) > 1]
        self._wait_alone([pending.texts[index] for index in sorted(again)])
        return [
            Ended(text.number, self._extraction(text.document, found, is_broken=index in broken))
            for index, (text, found) in enumerate(zip(pending.texts, entities, strict=True))
            if not text.is_cancelled and index not in again
        ]

    @staticmethod
    def _extraction(document: Document, candidates: list[Entity], *, is_broken: bool) -> Extraction:
        if is_broken:
            problem = Problem(ProblemKind.INVALID, "the model computed NaN for the spans of this text")
            return failure(document, Status.FAILED, problem)
        return Extraction(document.with_entities(_best(candidates, len(document.text))), "", Status.STOPPED, ())


def _best(candidates: list[Entity], characters: int) -> list[Entity]:
    """Return the candidates with the highest scores, at most CANDIDATES for each of the text's `characters`."""
    most = CANDIDATES * characters
    if len(candidates) <= most:
        return candidates
    return sorted(candidates, key=lambda entity: -(entity.score or 0.0))[:most]
