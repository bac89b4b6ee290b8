"""Extraction: batched greedy decoding under each document's grammar, with forced tokens for free.

The batch is one flat sequence (see `cache`): the instruction is computed once and shared, rows join and
leave as they finish, and the tokens that a grammar forces are fed together with the chosen one. Every
entity is a substring of its text at its offsets. What an answer says that cannot be anchored, an answer
that repeats itself or reaches its limit is reported with the document, never dropped in silence.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spantune import config
from spantune.answer import Problem
from spantune.attention import attention_mask, segments
from spantune.cache import FlatCache
from spantune.calibration import Calibration
from spantune.chunks import Cutter
from spantune.constrain import Constraint, Guide, vocabulary_size
from spantune.document import Document
from spantune.encode import Encoder
from spantune.errors import ModelError
from spantune.extraction import Extraction, Written, by_chunks, calibrated, cutter, rates, read_answer
from spantune.load import Loaded, load
from spantune.lora import load_adapter
from spantune.pack import PREFIX, common_prefix
from spantune.runs import read_adapter, read_config
from spantune.task import TaskSpec

__all__ = ["WINDOW", "Effort", "Extraction", "Extractor", "load_bare", "load_run", "rates"]

WINDOW = 1024  # documents that are tokenised ahead
_PROBES = ("文本", "text", "\n", "1")  # texts whose prompts bound the shared prefix


@dataclass
class Effort:
    """What decoding took: forward passes, tokens written, and how many of them the grammar forced."""

    passes: int = 0
    tokens: int = 0
    forced: int = 0


@dataclass
class _Row:
    """A document that is being decoded; `owner` marks its slots."""

    index: int
    owner: int
    document: Document
    guide: Guide | None
    pending: list[int]
    position: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    failure: str = ""


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
        self._dtype = model.get_input_embeddings().weight.dtype
        self._constraint = (
            Constraint(encoder.tokenizer, vocabulary_size(model), encoder.stop_id) if self.settings.grounded else None
        )

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

        What is an Extraction already keeps its place. With `strict` a document that cannot be taken is an error, else
        an Extraction that says so.

        Raises:
            DataError: a text is over `extract.max_characters`, with `strict`, or there is no room for any.
        """
        for extraction in by_chunks(documents, self._cutter(), self._windows, strict=strict):
            yield calibrated(extraction, self.calibration)

    def _windows(self, texts: Iterator[Document]) -> Iterator[Extraction]:
        while window := list(itertools.islice(texts, WINDOW)):
            yield from self._decode(window)

    def _cutter(self) -> Cutter:
        return cutter(self.encoder, self.settings, int(self.model.config.max_position_embeddings))

    @torch.inference_mode()
    def _decode(self, documents: Sequence[Document]) -> Iterator[Extraction]:
        """Decode all documents, `batch_size` at a time; yields in order."""
        prompts = [self.encoder.prompt_ids(document.text) for document in documents]
        every = prompts + [self.encoder.prompt_ids(text) for text in _PROBES]
        prefix = every[0][: min(common_prefix(every), min(map(len, every)) - 1)]
        cache = FlatCache(self._device)
        if prefix:
            self._forward(cache, [(PREFIX, 0, prefix)])
        rows: list[_Row] = []
        done: dict[int, Extraction] = {}
        upcoming, yielded = 0, 0
        while rows or upcoming < len(documents):
            while len(rows) < self.settings.batch_size and upcoming < len(documents):
                rows.append(self._row(upcoming, documents[upcoming], prompts[upcoming], len(prefix)))
                upcoming += 1
            logits = self._forward(cache, [(row.owner, row.position, row.pending) for row in rows])
            tokens, logprobs = self._choose(rows, logits)
            for row, token, logprob in zip(list(rows), tokens, logprobs, strict=True):
                status = self._advance(row, token, logprob)
                if status:
                    done[row.index] = self._finish(row, status)
                    cache.release(row.owner)
                    rows.remove(row)
            while yielded in done:
                yield done.pop(yielded)
                yielded += 1

    def _row(self, index: int, document: Document, prompt: list[int], shared: int) -> _Row:
        guide = Guide(self._constraint, self.encoder, document.text) if self._constraint else None
        return _Row(index, index + 1, document, guide, prompt[shared:], shared)

    def _forward(self, cache: FlatCache, parts: list[tuple[int, int, list[int]]]) -> Tensor:
        """Feed (owner, first position, ids) of each part; returns the logits [parts, vocabulary] of the next one."""
        ids = [token for _, _, part in parts for token in part]
        owners = [owner for owner, _, part in parts for _ in part]
        positions = [first + i for _, first, part in parts for i in range(len(part))]
        query = cache.place(owners, positions)
        key = cache.places()
        last = torch.tensor([len(part) for _, _, part in parts], device=self._device).cumsum(0) - 1
        self.effort.passes += 1
        logits: Tensor = self.model(
            input_ids=torch.tensor([ids], device=self._device),
            position_ids=query.position[None],
            attention_mask=attention_mask(self.model.config, query, key, self._dtype),
            segments=segments(query, key),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=last,
        ).logits[0]
        return logits

    def _choose(self, rows: list[_Row], logits: Tensor) -> tuple[list[int], list[float]]:
        """The most probable allowed token of each row and its log-probability."""
        logits = logits.float()
        masked = logits
        if self._constraint:
            masked = logits.clone()
            self._constraint.apply([row.guide.matcher for row in rows if row.guide], masked)
        tokens = masked.argmax(-1)
        total = (masked if self.among_allowed else logits).logsumexp(-1)
        logprobs = logits.gather(-1, tokens[:, None])[:, 0] - total
        return tokens.tolist(), logprobs.tolist()

    def _advance(self, row: _Row, token: int, logprob: float) -> str | None:
        """Take a token into a row; returns the status when that ends it."""
        row.position += len(row.pending)
        if token == self.encoder.stop_id:
            return "stopped"
        try:
            forced = row.guide.advance(token) if row.guide else []
        except ModelError as error:  # one text's grammar is too much for the engine: the others go on
            row.failure = str(error).splitlines()[0]
            return "failed"
        ended = bool(forced) and forced[-1] == self.encoder.stop_id
        forced = forced[:-1] if ended else forced
        row.pending = [token, *forced]
        row.ids.extend(row.pending)
        row.logprobs.extend([logprob, *([None] * len(forced))])
        self.effort.tokens += len(row.pending)
        self.effort.forced += len(forced)
        if ended or (row.guide and row.guide.finished):
            return "stopped"
        if row.guide.repeated if row.guide else self._repeats(row):
            return "repeated"
        return "length" if len(row.ids) >= self.settings.max_new_tokens else None

    def _repeats(self, row: _Row) -> bool:
        """Whether a free answer has just said what it had said."""
        answer = self.encoder.decode(row.ids)
        if not answer.endswith(self.encoder.format.end):
            return False
        return self.encoder.format.parse(answer, row.document.text, self.task).is_repeating

    def _finish(self, row: _Row, status: str) -> Extraction:
        written = Written(self.encoder.decode(row.ids), status, row.ids, row.logprobs)
        found = read_answer(row.document, written, self.encoder)
        if row.failure:
            found = replace(found, problems=(*found.problems, Problem("grammar", row.failure)))
        return found


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
    return Extractor(model, encoder, settings or recipe.extract, among_allowed=recipe.train.loss_on == "choices")
