"""Extraction: from documents to entities with scores, through greedy decoding under each document's grammar.

`decode` writes the answers; here they are read. Every entity is a substring of its text at its offsets. What an answer
says that cannot be anchored, an answer that repeats itself or reaches its limit is reported with the document, never
dropped in silence. A model whose weights are frozen keeps its cache of the instruction from one stream to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from spantune.core import Document, TaskSpec, config
from spantune.encoding import Encoder, Problem
from spantune.extraction.chunked import by_chunks, cutter
from spantune.extraction.decoder import Decoder, Effort, Rules
from spantune.extraction.grammar import constraint_of
from spantune.extraction.model_runner import Forward, Shape
from spantune.extraction.result import Extraction, Written, calibrated, read_answer
from spantune.metrics import Calibration
from spantune.models import Loaded, load, load_adapter, vocabulary_size
from spantune.runs import read_adapter, read_config

ROWS = {"cpu": 16, "cuda": 256}  # documents that are decoded together where a recipe does not say
TOKENS = {"cpu": 1024, "cuda": 512}  # most tokens a pass


class Extractor:
    """A model that extracts the entities of a task from texts.

    Args:
        model: a causal LM of transformers, with or without PEFT adapters.
        encoder: its tokenizer under the task.
        settings: batch size, limit and whether to decode under the grammar.
        calibration: how scores are to be read and which entities are kept; bare scores and all without it.
        on_choices: whether the model was trained on choices: its scores are probabilities among what the grammar
            allows, and its answers keep the order that it was trained in; else they are those of the whole vocabulary,
            and any entity may follow another.
    """

    def __init__(
        self,
        model: Any,
        encoder: Encoder,
        settings: config.Extract | None = None,
        calibration: Calibration | None = None,
        *,
        on_choices: bool = False,
    ):
        self.model, self.encoder, self.on_choices = model, encoder, on_choices
        self.settings = settings or config.Extract()
        self.calibration = calibration
        self.effort = Effort()
        self._device = next(model.parameters()).device
        self._constraint = (
            constraint_of(encoder.tokenizer, vocabulary_size(model), encoder.stop_id)
            if self.settings.grounded
            else None
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

    def stream(self, documents: Iterable[Document | Extraction], *, strict: bool = True) -> Iterator[Extraction]:
        """Yield an Extraction for each document, in order; a text over the model's window is taken in chunks.

        Documents are taken as they are needed, a batch and one more ahead of the first that is still being decoded.
        What is an Extraction already keeps its place. With `strict` a document that cannot be taken is an error, else
        an Extraction that says so.

        Raises:
            DataError: a text is over `extract.max_characters`, with `strict`, or there is no room for any.
        """
        cuts = cutter(self.encoder, self.settings, int(self.model.config.max_position_embeddings))
        for extraction in by_chunks(documents, cuts, self._decode, strict=strict):
            yield calibrated(extraction, self.calibration)

    def _decode(self, texts: Iterator[Document]) -> Iterator[Extraction]:
        forward = self._forward()
        for row in self._decoder(forward).run(texts):
            written = Written(self.encoder.decode(row.ids), row.status, row.ids, row.logprobs)
            found = read_answer(row.document, written, self.encoder)
            yield replace(found, problems=(*found.problems, Problem("grammar", row.failure))) if row.failure else found
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
        few = self.on_choices and self._constraint is not None and kind == "cpu"
        return Forward(self.model, shape, states=few)

    def _decoder(self, forward: Forward) -> Decoder:
        rules = Rules(self.settings.max_new_tokens, self._constraint, self.on_choices)
        return Decoder(self.model, self.encoder, forward, rules, self.effort)


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
    adapter, task = read_adapter(folder)
    loaded: Loaded = load(recipe.model.model_copy(update={"device": device}), tokenizer_folder=adapter)
    model = load_adapter(loaded.model, adapter, merge=not loaded.quantized)
    encoder = Encoder(loaded.tokenizer, task, recipe.train.max_tokens)
    return Extractor(model, encoder, settings or recipe.extract, on_choices=recipe.train.on_choices)
