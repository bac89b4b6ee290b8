"""Extraction: from documents to entities with scores, through greedy decoding under each document's grammar.

`decode` writes the answers; here they are read. Every entity is a substring of its text at its offsets. What an answer
says that cannot be anchored, an answer that repeats itself or reaches its limit is reported with the document, never
dropped in silence. A model whose weights are frozen keeps its cache of the instruction from one stream to the next.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spantune import config
from spantune.answer import Problem
from spantune.calibration import Calibration
from spantune.constrain import Constraint, vocabulary_size
from spantune.corpus import merge_pieces, split_long
from spantune.decode import Decoder, Effort, Row, Rules
from spantune.document import Document, Entity
from spantune.encode import Encoder
from spantune.errors import DataError, RunError
from spantune.forward import Forward, Shape
from spantune.load import Loaded, load
from spantune.lora import load_adapter
from spantune.runs import read_config
from spantune.task import TASK_FILE, TaskSpec

ROWS = {"cpu": 16, "cuda": 256}  # documents that are decoded together where a recipe does not say
TOKENS = {"cpu": 1024, "cuda": 512}  # most tokens a pass


@dataclass(frozen=True)
class Extraction:
    """What the model said of one document.

    `status` is `stopped`, `length` (the answer reached `extract.max_new_tokens`), `repeated` (it began to
    say what it had said) or `failed` (the grammar of this text could not be followed to the end).
    Entities carry as score the probability of their unforced tokens, calibrated where the extractor has a
    calibration; `left_out` are those that came under its threshold. `label_scores` are the bare probabilities of the
    labels alone, given the mentions. The answer is as the model wrote it.
    """

    document: Document
    answer: str
    status: str
    problems: tuple[Problem, ...]
    left_out: tuple[Entity, ...] = ()
    label_scores: Mapping[Entity, float] = field(default_factory=dict)


class Extractor:
    """A model that extracts the entities of a task from texts.

    Args:
        model: a causal LM of transformers, with or without PEFT adapters.
        encoder: its tokenizer under the task.
        settings: batch size, limit and whether to decode under the grammar.
        calibration: how scores are to be read and which entities are kept; bare scores and all without it.
        among_allowed: whether scores are probabilities among what the grammar allows, which a model knows that was
            trained on choices; else they are those of the whole vocabulary.
    """

    def __init__(
        self,
        model: Any,
        encoder: Encoder,
        settings: config.Extract | None = None,
        calibration: Calibration | None = None,
        *,
        among_allowed: bool = False,
    ):
        self.model, self.encoder, self.among_allowed = model, encoder, among_allowed
        self.settings = settings or config.Extract()
        self.calibration = calibration
        self.effort = Effort()
        self._device = next(model.parameters()).device
        self._constraint = (
            Constraint(encoder.tokenizer, vocabulary_size(model), encoder.stop_id) if self.settings.grounded else None
        )
        self._idle: list[Forward] = []

    @property
    def task(self) -> TaskSpec:
        """The task that the answers follow."""
        return self.encoder.task

    def extract(self, texts: Iterable[str | Document]) -> list[Document]:
        """The given texts with the entities found in them, in the same order."""
        documents = (Document(str(i), text) if isinstance(text, str) else text for i, text in enumerate(texts))
        return [extraction.document for extraction in self.stream(documents)]

    def stream(self, documents: Iterable[Document]) -> Iterator[Extraction]:
        """Yield an Extraction for each document, in order; a text over the model's window is taken in pieces.

        Documents are taken as they are needed, a batch and one more ahead of the first that is still being decoded.

        Raises:
            DataError: a text without a sentence end to split it at is over the window.
        """
        groups: deque[tuple[Document, int]] = deque()

        def pieces() -> Iterator[Document]:
            for document in documents:
                parts = self._pieces(document)
                groups.append((document, len(parts)))
                yield from parts

        forward = self._forward()
        parts: list[Extraction] = []
        for row in self._decoder(forward).run(pieces()):
            parts.append(self._read(row))
            if len(parts) == groups[0][1]:
                whole = _joined(groups.popleft()[0], parts)
                parts = []
                yield self._calibrated(whole)
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            self._idle.append(forward)

    def _forward(self) -> Forward:
        """The passes of a stream: those of one that has ended, or new ones."""
        if self._idle:
            return self._idle.pop()
        kind = self._device.type
        window = self.model.config.max_position_embeddings
        longest = min(window, (self.encoder.max_tokens or window) + self.settings.max_new_tokens)
        shape = Shape(self.settings.batch_size or ROWS[kind], longest, TOKENS[kind])
        few = self.among_allowed and self._constraint is not None and kind == "cpu"
        return Forward(self.model, shape, states=few)

    def _decoder(self, forward: Forward) -> Decoder:
        rules = Rules(self.settings.max_new_tokens, self._constraint, self.among_allowed)
        return Decoder(self.model, self.encoder, forward, rules, self.effort)

    def _calibrated(self, whole: Extraction) -> Extraction:
        if self.calibration is None:
            return whole
        kept, left_out = self.calibration.apply(whole.document)
        return replace(whole, document=kept, left_out=left_out)

    def _pieces(self, document: Document) -> list[Document]:
        half = next((i for i, character in enumerate(document.text) if "\ud800" <= character <= "\udfff"), None)
        if half is not None:
            raise DataError(
                f"document {document.id!r}: half a surrogate pair at character {half}, which no encoding has; the text "
                "was decoded from something that is not UTF-8: decode it anew",
                field="text",
            )
        bare = document.with_entities(())
        limit = self.model.config.max_position_embeddings - self.settings.max_new_tokens
        if self.encoder.max_tokens is not None:
            limit = min(limit, self.encoder.max_tokens)

        def fits(piece: Document) -> bool:
            return bool(len(self.encoder.prompt_ids(piece.text)) <= limit)

        if limit < 1:
            raise DataError(
                f"extract.max_new_tokens={self.settings.max_new_tokens} leaves no room for a text in the model's "
                f"window of {self.model.config.max_position_embeddings} tokens; lower it"
            )
        return [bare] if fits(bare) else split_long(bare, fits)

    def _read(self, row: Row) -> Extraction:
        """What a row's answer says, with scores."""
        answer = self.encoder.decode(row.ids)
        parsed = self.encoder.format.parse(answer, row.document.text, self.task)
        tokens = range(len(row.ids))

        def begin(index: int) -> int:
            return len(self.encoder.decode(row.ids[:index]))

        def places(span: tuple[int, int]) -> set[int]:  # it begins and ends in ASCII, where `begin` rises
            return set(range(*(bisect_left(tokens, place, key=begin) for place in span)))

        def probability(indices: Iterable[int]) -> float:
            return math.exp(sum(row.logprobs[index] or 0.0 for index in indices))

        entities, label_scores = [], {}
        for item in parsed.resolved:
            label = places(item.label_span)
            entity = replace(item.entity, score=probability(places(item.span) | label))
            entities.append(entity)
            label_scores[entity] = probability(label)
        problems = parsed.problems
        if row.failure:
            problems = (*problems, Problem("grammar", row.failure))
        if row.status == "length" and problems and problems[-1].kind == "invalid":
            problems = (*problems[:-1], Problem("truncated", problems[-1].found))
        document = row.document.with_entities(entities)
        return Extraction(document, answer, row.status, problems, label_scores=label_scores)


def rates(extractions: Sequence[Extraction]) -> dict[str, float]:
    """Shares of documents whose answer was invalid, mended, named something not in the text, or did not stop."""
    total = max(1, len(extractions))

    def share(*kinds: str) -> float:
        return sum(any(problem.kind in kinds for problem in item.problems) for item in extractions) / total

    return {
        "invalid_rate": share("invalid", "label"),
        "repaired_rate": share("repaired"),
        "ungrounded_rate": share("ungrounded"),
        "non_stop_rate": sum(item.status != "stopped" for item in extractions) / total,
    }


def load_run(
    run: str | Path, device: str = "auto", settings: config.Extract | None = None, min_score: float | None = None
) -> Extractor:
    """The Extractor of a finished run, its adapter merged into the base model.

    The calibration that the run stores applies. `min_score` takes the place of its thresholds: entities with a lower
    score are left out, and 0 keeps all.

    Raises:
        ConfigError: `min_score` is no probability.
        RunError: the folder is no run, has no adapter yet, or its calibration is damaged.
        ModelError: the base model cannot be had.
    """
    calibration = Calibration.load(Path(run))
    if min_score is not None:
        calibration = (calibration or Calibration()).with_min_score(min_score)
    extractor = load_bare(run, device, settings)
    extractor.calibration = calibration
    return extractor


def load_bare(run: str | Path, device: str = "auto", settings: config.Extract | None = None) -> Extractor:
    """As `load_run`, but whatever calibration the run has: scores as the model gave them, and nothing left out."""
    folder = Path(run)
    recipe = read_config(folder)
    adapter = folder / "adapter"
    if not adapter.is_dir():
        raise RunError(f"{folder}: no adapter here yet; finish the run with spantune train --resume {folder}")
    task = TaskSpec.load(adapter)
    if (known := TaskSpec.load(folder)).codes != task.codes:
        raise RunError(
            f"{folder}: the run's labels ({', '.join(known.codes)}) are not those that its adapter was trained on "
            f"({', '.join(task.codes)}); restore {TASK_FILE}, or put the adapter of this run back"
        )
    loaded: Loaded = load(recipe.model.model_copy(update={"device": device}), tokenizer_folder=adapter)
    model = load_adapter(loaded.model, adapter, merge=True)
    encoder = Encoder(loaded.tokenizer, task, recipe.train.max_tokens)
    return Extractor(model, encoder, settings or recipe.extract, among_allowed=recipe.train.loss_on == "choices")


def _joined(document: Document, parts: list[Extraction]) -> Extraction:
    """The Extraction of a document from those of its pieces, at offsets of the whole text."""
    if len(parts) == 1:
        return replace(parts[0], document=document.with_entities(parts[0].document.entities))
    merged = merge_pieces(document.with_entities(()), [part.document for part in parts])
    status = next((part.status for part in parts if part.status != "stopped"), "stopped")
    problems = tuple(problem for part in parts for problem in part.problems)
    labels = {
        entity.shifted(part.document.meta["offset"]): score
        for part in parts
        for entity, score in part.label_scores.items()
    }
    return Extraction(merged, "".join(part.answer for part in parts), status, problems, label_scores=labels)
