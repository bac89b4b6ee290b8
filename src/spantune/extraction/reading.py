"""Extraction by reading: packs of documents go through the model once, and its head scores every span.

A span whose score is over the threshold of its type is an entity; thresholds were chosen on dev and are a part of the
head. Where entities may not overlap, the one with the higher score is kept. Documents are read in their order, and the
next pack is encoded while the device computes the last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spantune.core import ConfigError, Document, Entity, Extraction, Status, config
from spantune.encoding import SpanEncoder, SpanExample
from spantune.extraction.decoder import Effort
from spantune.extraction.result import calibrated, without_overlaps
from spantune.metrics import Calibration
from spantune.models import CausalLM, SpanPack, layout_spans, require_head, span_logits

DOCUMENTS = {"cpu": 64, "cuda": 1024}  # that are read together by default, at most
TOKENS = {"cpu": 1024, "cuda": 16384}  # of a pack
LOWEST_LOGIT = -3.0
"""The logit under which a span is no candidate: a probability of 0.047."""
CANDIDATES = 2
"""Candidates that a document has at most for each of its characters; those of the lowest scores are left out."""


@dataclass(frozen=True)
class _Pending:
    """A pack that the device computes: its documents, the index of the first character of each, and its candidates."""

    documents: Sequence[Document]
    starts: Sequence[int]
    candidates: Tensor | None
    logits: Tensor | None


def require_reading(settings: config.Extract) -> None:
    """Check that the settings suit a task that is answered by reading.

    Raises:
        ConfigError: `extract.grounded` is false.
    """
    if not settings.grounded:
        raise ConfigError(
            "extract.grounded is false (--free), and the run reads spans (task.answer=spans): it writes no answer, so "
            "there is no grammar to do without; leave the setting out"
        )


class Reader:
    """Reads the entities of documents with a model that has a head.

    Args:
        model: a causal LM with a head.
        encoder: its tokenizer and the task.
        settings: `batch_size`, the most documents of a pack.
        effort: where passes and tokens are counted.
    """

    def __init__(self, model: CausalLM, encoder: SpanEncoder, settings: config.Extract, effort: Effort):
        self.model, self.encoder, self.effort = model, encoder, effort
        self.device = next(model.parameters()).device
        self.head = require_head(model)
        self.documents = settings.batch_size or DOCUMENTS[self.device.type]
        is_half = model.get_input_embeddings().weight.dtype == torch.bfloat16
        self._dtype = torch.bfloat16 if is_half else torch.float32

    @property
    def thresholds(self) -> Calibration:
        """The thresholds of the head as a calibration that leaves scores as they are."""
        values = torch.sigmoid(self.head.thresholds.double()).tolist()
        return Calibration(label_thresholds=dict(zip(self.encoder.task.codes, values, strict=True)))

    def run(self, texts: Iterator[Document]) -> Iterator[Extraction]:
        """Yield an Extraction with every candidate for each document, in order."""
        pending: _Pending | None = None
        for documents, examples in self._packs(texts):
            done = pending and self._candidates(pending)
            pending = self._launch(documents, examples)
            yield from done or ()
        if pending:
            yield from self._candidates(pending)

    def decide(
        self, extraction: Extraction, thresholds: Calibration, calibration: Calibration | None = None
    ) -> Extraction:
        """Keep the candidates that are entities.

        Args:
            extraction: with all candidates.
            thresholds: those of the head; reading them for each document would wait for the device.
            calibration: decides in their place, where there is one.
        """
        own = calibrated(extraction, thresholds)
        decided = own if calibration is None else calibrated(extraction, calibration)
        entities = decided.document.entities
        if not self.encoder.task.nested:
            entities = tuple(without_overlaps(entities)[0])
        passed = {(entity.start, entity.end, entity.label) for entity in own.document.entities}
        left_out = () if calibration is None else decided.below_threshold
        left_out = tuple(entity for entity in left_out if (entity.start, entity.end, entity.label) in passed)
        return replace(decided, document=decided.document.with_entities(entities), below_threshold=left_out)

    def _packs(self, texts: Iterator[Document]) -> Iterator[tuple[list[Document], list[SpanExample]]]:
        """Yield the documents of a pack and their examples; a document over the size of a pack has one to itself."""
        budget = TOKENS[self.device.type] - len(self.encoder.prefix)
        documents: list[Document] = []
        examples: list[SpanExample] = []
        size = 0
        for document in texts:
            example = self.encoder.read(document)
            length = len(example.ids) - len(self.encoder.prefix)
            if documents and (size + length > budget or len(documents) == self.documents):
                yield documents, examples
                documents, examples, size = [], [], 0
            documents.append(document)
            examples.append(example)
            size += length
        if documents:
            yield documents, examples

    @torch.inference_mode()
    def _launch(self, documents: Sequence[Document], examples: Sequence[SpanExample]) -> _Pending:
        pack = layout_spans(examples, self.encoder.prefix, self.encoder.settings)
        starts = pack.starts.tolist()
        if not pack.band.is_text.any():  # no document has a character
            return _Pending(documents, starts, None, None)
        pack = pack.to(self.device)
        self.effort.passes += 1
        self.effort.tokens += len(pack.ids)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            logits = span_logits(self.model, pack, self._dtype)
        return _Pending(documents, starts, *self._above(logits, pack))

    @staticmethod
    def _above(logits: Tensor, pack: SpanPack) -> tuple[Tensor, Tensor]:
        """Return which spans are candidates, and their logits, both still to be computed on a GPU."""
        return (logits > LOWEST_LOGIT) & pack.band.inside[:, :, None], logits

    @torch.inference_mode()
    def _candidates(self, pending: _Pending) -> list[Extraction]:
        """Return the Extraction of each document of a pack, once the device has computed it."""
        entities: list[list[Entity]] = [[] for _ in pending.documents]
        if pending.candidates is not None and pending.logits is not None:
            where = pending.candidates.nonzero()
            scores = torch.sigmoid(pending.logits[where.unbind(1)].double()).tolist()
            codes, starts = self.encoder.task.codes, torch.tensor(pending.starts)
            places = where.cpu()
            numbers = torch.searchsorted(starts, places[:, 0], right=True) - 1
            firsts = places[:, 0] - starts[numbers]
            columns = (numbers.tolist(), firsts.tolist(), places[:, 1].tolist(), places[:, 2].tolist(), scores)
            for number, first, more, label, score in zip(*columns, strict=True):
                entities[number].append(Entity(first, first + more + 1, codes[label], score))
        return [
            Extraction(document.with_entities(_best(found, len(document.text))), "", Status.STOPPED, ())
            for document, found in zip(pending.documents, entities, strict=True)
        ]


def _best(candidates: list[Entity], characters: int) -> list[Entity]:
    """Return the candidates with the highest scores, as many as a text of so many characters may have."""
    most = CANDIDATES * characters
    if len(candidates) <= most:
        return candidates
    return sorted(candidates, key=lambda entity: -(entity.score or 0.0))[:most]
