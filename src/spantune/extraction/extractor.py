"""Extraction by a model in this process: it writes entities under each document's grammar, or reads spans.

Every entity is a substring of its text at its offsets, and has a score. A part of an answer that cannot be anchored to
the text is reported with the document, and so is an answer that repeats itself or reaches its limit. Nothing is dropped
silently. If the model's weights are frozen, the key-value cache of the instruction is kept from one stream to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import torch

from spantune.core import (
    ConfigError,
    Document,
    Extraction,
    ModelError,
    Prediction,
    TaskSpec,
    config,
    expect,
    number,
    prefer_label_order,
)
from spantune.encoding import Encoder, SpanEncoder, TextEncoder
from spantune.extraction.choosing import Effort, Rules
from spantune.extraction.chunked import as_documents
from spantune.extraction.grammar import constraint_of, require_grammar
from spantune.extraction.reading import Reader, require_reading
from spantune.extraction.result import without_overlaps
from spantune.extraction.session import Scheduler, Session, Terms
from spantune.extraction.writing import Writer
from spantune.metrics import Calibration, best_thresholds
from spantune.models import (
    CausalLM,
    vocabulary_size,
)


class Extractor:
    """A model that extracts the entities of a task from texts.

    Args:
        model: a causal LM of transformers, with or without PEFT adapters. A task that reads spans needs a span head on
            the model.
        encoder: the tokenizer and the task.
        settings: the section `extract` of a recipe: batch size, limits and whether to decode under the grammar. None
            takes the defaults.
        calibration: calibrates the scores and drops entities below a threshold. None keeps the scores and the entities
            as the model gave them.
        on_choices: whether the model was trained with `train.loss_on=choices`; see `Rules`.

    Raises:
        ConfigError: an argument is of a wrong type, or as `require_grammar` and `require_reading`.
        ModelError: the model has no embedding for a token of the prompt, or no span head where spans are read.
    """

    def __init__(
        self,
        model: CausalLM,
        encoder: TextEncoder,
        settings: config.Extract | None = None,
        calibration: Calibration | None = None,
        *,
        on_choices: bool = False,
    ):
        expect(
            encoder,
            (Encoder, SpanEncoder),
            "Extractor",
            "an Encoder as the second argument; spantune.load makes both from a run",
        )
        expect(model, torch.nn.Module, "Extractor", "a causal LM of transformers as the first argument")
        require_settings(settings)
        self.model, self.encoder, self.on_choices = model, encoder, on_choices
        self.settings = settings or config.Extract()
        require_grammar(self.settings, on_choices=on_choices)
        self.calibration = calibration
        self.keeps_candidates = False
        """Whether every candidate span is returned as an entity with its score, whatever the thresholds are."""
        self.run: Path | None = None
        prefer_label_order(encoder.task.codes)
        self.effort = Effort()
        self._device = next(model.parameters()).device
        _require_embeddings(model, encoder)
        self._reader: Reader | None = None
        if isinstance(encoder, SpanEncoder):
            require_reading(self.settings)
            self._reader = Reader(model, encoder, self.settings, self.effort)
        self.scheduler = Scheduler(self._reader or self._writer())
        """Runs the model's forward passes for all sessions and streams."""

    def __repr__(self) -> str:
        model = getattr(self.model.config, "model_type", type(self.model).__name__)
        kind = f"{self.task.answer}, {number(len(self.task.codes), 'label')}, on {self._device}"
        return f"Extractor({f'{str(self.run)!r}, ' if self.run else ''}model {model}, {kind})"

    def _writer(self) -> Writer:
        encoder = self.encoder
        assert isinstance(encoder, Encoder)
        constraint = None
        if self.settings.grounded:
            constraint = constraint_of(encoder.tokenizer, vocabulary_size(self.model), encoder.stop_id)
        rules = Rules(self.settings.max_new_tokens, constraint, self.on_choices)
        return Writer(self.model, encoder, self.settings, rules, self.effort)

    @property
    def task(self) -> TaskSpec:
        """The task: the labels, the instruction and the answer format."""
        return self.encoder.task

    @property
    def on_gpu(self) -> bool:
        """Whether the model is on a GPU."""
        return self._device.type == "cuda"

    @property
    def thresholds(self) -> dict[str, float] | None:
        """The lowest uncalibrated score of an entity, for each label; None where answers are written."""
        return self._reader.thresholds.label_thresholds if self._reader is not None else None

    def candidates(self, extractions: Sequence[Extraction]) -> list[Document]:
        """Return documents with all candidates that some threshold could keep; thresholds are chosen on these.

        Where entities may not overlap, a candidate is left out if it overlaps a better one, since no threshold would
        keep it.
        """
        documents = [extraction.document for extraction in extractions]
        if self.task.nested:
            return documents
        return [document.with_entities(without_overlaps(document.entities)[0]) for document in documents]

    def choose_thresholds(self, gold: Sequence[Document], candidates: Sequence[Extraction]) -> list[Extraction]:
        """Set the head's thresholds to those with the best F1 on `gold`, and apply them to `candidates`.

        A label gets a threshold of its own where that improves F1 on held-out documents (see `best_thresholds`). The
        thresholds do not change if there is no candidate.

        Args:
            gold: annotated documents that the model was not trained on.
            candidates: the Extractions of these documents, made while `keeps_candidates` is True.

        Returns:
            The Extractions with the entities that pass the new thresholds and the calibration, in the same order.

        Raises:
            ConfigError: the run writes answers, so it has no span head.
            DataError: `gold` and `candidates` are not the same documents, or a score is missing.
        """
        if self._reader is None:
            raise ConfigError(
                "choose_thresholds is for runs that read spans, and this one writes answers; its thresholds are chosen "
                "by spantune.calibrate"
            )
        chosen = best_thresholds(gold, self.candidates(candidates))
        if chosen is not None:
            self._reader.head.set_thresholds(chosen.overall, chosen.labels)
        thresholds = self._reader.thresholds
        return [self._reader.decide(extraction, thresholds, self.calibration) for extraction in candidates]

    @overload
    def extract(self, texts: str | Document) -> Document: ...  # type: ignore[overload-overlap]  # a str is an iterable

    @overload
    def extract(self, texts: Iterable[str | Document]) -> list[Document]: ...

    def extract(self, texts: str | Document | Iterable[str | Document]) -> Document | list[Document]:
        """Return one text as a Document with its entities, or several texts as a list of Documents in the same order.

            document = extractor.extract("患者因急性阑尾炎行腹腔镜手术。")
            documents = extractor.extract(["胸片示右下肺炎。", "未见异常。"])

        Raises:
            ConfigError: `texts` is neither a text nor an iterable of texts or Documents.
            DataError: as `stream` with `strict`.
        """
        if isinstance(texts, str | Document):
            return next(self.stream([texts])).document
        return [extraction.document for extraction in self.stream(texts)]

    def stream(self, documents: Iterable[str | Prediction], *, strict: bool = True) -> Iterator[Extraction]:
        """Yield an Extraction for each document, in order; a text longer than the model's window is cut into chunks.

        Documents are read as the model needs them: usually one batch and half a batch that waits. If the first of them
        takes long, up to 4,096 documents are read ahead of it, so that the batch stays full.

        Args:
            documents: texts or Documents to extract from. An Extraction among them is passed through unchanged.
            strict: whether a text that cannot be decoded is an error. If False, it becomes a `refused` Extraction.

        Raises:
            ConfigError: `documents` is a single text, or has a member that is neither a text nor a Document.
            DataError: with `strict`, a text has more than `extract.max_characters` characters or half a surrogate pair;
                or the instruction and the answer leave no room for any text.
            RuntimeError: with `strict`, the error of the model for a document that was computed alone.
        """
        return self._stream(as_documents(documents), strict)

    def _stream(self, documents: Iterator[Prediction], strict: bool) -> Iterator[Extraction]:
        yield from self.session().run(documents, strict=strict)

    def session(self) -> Session:
        """Return a Session, which takes documents one by one; all sessions and streams share one batch.

        Raises:
            DataError: the instruction and the answer leave no room for any text.
        """
        window = int(self.model.config.max_position_embeddings)
        terms = Terms(
            self.encoder, self.settings, window, self.calibration, self._reader, keeps_candidates=self.keeps_candidates
        )
        return Session(self.scheduler, terms)


def require_settings(settings: object) -> None:
    """Check that `settings` is a section `extract` or None.

    Raises:
        ConfigError: `settings` is of another type.
    """
    expect(settings, (config.Extract, type(None)), "settings", "the section extract of a recipe, or None")


def _require_embeddings(model: CausalLM, encoder: TextEncoder) -> None:
    """Check that the model has embeddings for the stop token and for the tokens that surround a text in the prompt."""
    stop = [encoder.stop_id] if isinstance(encoder, Encoder) else []
    ids, rows = [*encoder.prompt_ids(""), *stop], len(model.get_input_embeddings().weight)
    if not 0 <= min(ids) <= max(ids) < rows:
        wrong = next(index for index in ids if not 0 <= index < rows)
        raise ModelError(
            f"the prompt or the stop token has the token id {wrong}, and the model has embeddings for {rows}; take the "
            "tokenizer and chat template that the model came with"
        )
