"""Extraction: batched greedy decoding under each document's grammar, with forced tokens for free.

The batch is one flat sequence (see `cache`): the instruction is computed once and shared, rows join and
leave as they finish, and the tokens that a grammar forces are fed together with the chosen one. Every
entity is a substring of its text at its offsets. What an answer says that cannot be anchored, an answer
that repeats itself or reaches its limit is reported with the document, never dropped in silence.
"""

from __future__ import annotations

import math
from bisect import bisect_left
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
from spantune.constrain import Constraint, Guide, vocabulary_size
from spantune.corpus import merge_pieces, split_long
from spantune.document import Document, Entity
from spantune.encode import Encoder
from spantune.errors import DataError, ModelError, RunError
from spantune.load import Loaded, load
from spantune.lora import load_adapter
from spantune.pack import PREFIX, common_prefix
from spantune.runs import read_config
from spantune.task import TaskSpec

WINDOW = 1024  # documents that are tokenised ahead
_PROBES = ("文本", "text", "\n", "1")  # texts whose prompts bound the shared prefix


@dataclass(frozen=True)
class Extraction:
    """What the model said of one document.

    `status` is `stopped`, `length` (the answer reached `extract.max_new_tokens`), `repeated` (it began to
    say what it had said) or `failed` (the grammar of this text could not be followed to the end).
    Entities carry as score the probability of their unforced tokens, calibrated where the extractor has a
    calibration; `left_out` are those that came under its threshold. The answer is as the model wrote it.
    """

    document: Document
    answer: str
    status: str
    problems: tuple[Problem, ...]
    left_out: tuple[Entity, ...] = ()


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

    def stream(self, documents: Iterable[Document]) -> Iterator[Extraction]:
        """Yield an Extraction for each document, in order; a text over the model's window is taken in pieces.

        Raises:
            DataError: a text without a sentence end to split it at is over the window.
        """
        window: list[Document] = []
        for document in documents:
            window.append(document)
            if len(window) == WINDOW:
                yield from self._stream(window)
                window = []
        yield from self._stream(window)

    def _stream(self, documents: Sequence[Document]) -> Iterator[Extraction]:
        pieces = [self._pieces(document) for document in documents]
        parts = iter(self._decode([part for group in pieces for part in group]))
        for document, group in zip(documents, pieces, strict=True):
            whole = _joined(document, [next(parts) for _ in group])
            if self.calibration:
                kept, left_out = self.calibration.apply(whole.document)
                whole = replace(whole, document=kept, left_out=left_out)
            yield whole

    def _pieces(self, document: Document) -> list[Document]:
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
        answer = self.encoder.decode(row.ids)
        parsed = self.encoder.format.parse(answer, row.document.text, self.task)

        def begin(index: int) -> int:
            return len(self.encoder.decode(row.ids[:index]))

        entities, tokens = [], range(len(row.ids))
        for item in parsed.resolved:  # an object begins and ends in ASCII, where `begin` rises
            first, end = (bisect_left(tokens, place, key=begin) for place in item.span)
            logprobs = [logprob for logprob in row.logprobs[first:end] if logprob is not None]
            entities.append(replace(item.entity, score=math.exp(sum(logprobs))))
        problems = parsed.problems
        if row.failure:
            problems = (*problems, Problem("grammar", row.failure))
        if status == "length" and problems and problems[-1].kind == "invalid":
            problems = (*problems[:-1], Problem("truncated", problems[-1].found))
        return Extraction(row.document.with_entities(entities), answer, status, problems)


def rates(extractions: Sequence[Extraction]) -> dict[str, float]:
    """Shares of documents whose answer was invalid, named something not in the text, or did not stop."""
    total = max(1, len(extractions))

    def share(*kinds: str) -> float:
        return sum(any(problem.kind in kinds for problem in item.problems) for item in extractions) / total

    return {
        "invalid_rate": share("invalid", "label"),
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
    loaded: Loaded = load(recipe.model.model_copy(update={"device": device}), tokenizer_folder=adapter)
    model = load_adapter(loaded.model, adapter, merge=not loaded.quantized)
    encoder = Encoder(loaded.tokenizer, task, recipe.train.max_tokens)
    return Extractor(model, encoder, settings or recipe.extract, among_allowed=recipe.train.loss_on == "choices")


def _joined(document: Document, parts: list[Extraction]) -> Extraction:
    """The Extraction of a document from those of its pieces, at offsets of the whole text."""
    if len(parts) == 1:
        return replace(parts[0], document=document.with_entities(parts[0].document.entities))
    merged = merge_pieces(document.with_entities(()), [part.document for part in parts])
    status = next((part.status for part in parts if part.status != "stopped"), "stopped")
    problems = tuple(problem for part in parts for problem in part.problems)
    return Extraction(merged, "".join(part.answer for part in parts), status, problems)
