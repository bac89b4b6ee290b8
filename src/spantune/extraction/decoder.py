"""The decoding loop: greedy, with continuous batching, and without a pass of its own for a token that a grammar forces.

Each step takes the most probable token that the row's grammar allows. The tokens that the grammar then forces are fed
together with the chosen token in the next pass. A pass has a bounded number of tokens: rows that are decoding come
first, prompts fill the rest. On a GPU the rows are in two groups: while the pass of one group runs, the grammars of the
other group advance. When the cache is full, the newest row is evicted and restarted later, with the same result.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spantune.core import Document, ModelError, ProblemKind, Status
from spantune.encoding import Encoder, common_prefix
from spantune.extraction.grammar import Allowed, Constraint, Guide
from spantune.extraction.model_runner import Forward, Part
from spantune.models import CausalLM, few_logits

SPARE = 64  # free slots, besides those of its prompt, that a row needs to join
_PROBES = ("文本", "text", "\n", "1")  # the common prefix of their prompts is the instruction that all prompts share


@dataclass
class Effort:
    """The cost of decoding: passes, decoded tokens, forced tokens among them, and seconds spent in grammars."""

    passes: int = 0
    tokens: int = 0
    forced: int = 0
    grammar_seconds: float = 0.0


@dataclass(frozen=True)
class Rules:
    """How to decode.

    Args:
        limit: the maximum number of tokens of an answer.
        constraint: makes the grammars; None decodes without a grammar.
        on_choices: whether the model was trained on choices: log-probabilities are then normalised over the tokens
            that the grammar allows, and entities are decoded in the order of training; otherwise they are normalised
            over the whole vocabulary, and any entity may follow another.
    """

    limit: int
    constraint: Constraint | None = None
    on_choices: bool = False


@dataclass(eq=False)
class Row:
    """A document that is being decoded, and its answer so far.

    `number` is the row's number in the cache. `status` is None until the row ends; `logprobs` are None where a token
    was forced.
    """

    index: int
    document: Document
    prompt: list[int]
    number: int = 0
    position: int = 0
    pending: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    guide: Guide | None = None
    status: Status | None = None
    failure: str = ""
    failure_kind: ProblemKind = ProblemKind.GRAMMAR


@dataclass(frozen=True)
class RunningPass:
    """A pass that may still be running: the rows that get a token from it, and a function that waits for the tokens.

    `wait` returns the tokens and their log-probabilities.
    """

    rows: Sequence[Row]
    wait: Callable[[], tuple[list[int], list[float]]]


class Decoder:
    """Decodes answers for documents.

    Args:
        model: the model.
        encoder: its tokenizer and the task.
        forward: runs its passes; used by one decoder at a time.
        rules: how to decode.
        effort: where the cost is added.
    """

    def __init__(self, model: CausalLM, encoder: Encoder, forward: Forward, rules: Rules, effort: Effort):
        self._model, self._encoder, self._forward, self._rules, self._effort = model, encoder, forward, rules, effort
        self._end_only = rules.constraint.matcher('start: ""') if rules.constraint else None

    @torch.inference_mode()
    def run(self, documents: Iterable[Document]) -> Iterator[Row]:
        """Yield a finished Row for each document, in order; documents are taken when rows become free."""
        if not self._forward.instruction:
            self._share()
        waiting = _Waiting(documents, self._encoder)
        groups: list[list[Row]] = [
            [] for _ in range(min(2, self._forward.shape.rows) if self._forward.pipelined else 1)
        ]
        passes: list[RunningPass | None] = [None] * len(groups)
        done: dict[int, Row] = {}
        upcoming = 0
        try:
            while waiting.peek() or any(groups):
                for number, rows in enumerate(groups):
                    for row in self._finished(passes[number]):
                        rows.remove(row)
                        self._forward.cache.close(row.number)
                        done[row.index] = row
                    self._join(rows, groups, waiting)
                    passes[number] = self._start_pass(rows, groups, waiting)
                while upcoming in done:
                    yield done.pop(upcoming)
                    upcoming += 1
        finally:  # the caller may stop early
            for row in chain(*groups):
                self._forward.cache.close(row.number)

    def _share(self) -> None:
        """Compute the instruction that all prompts begin with once."""
        prompts = [self._encoder.prompt_ids(text) for text in _PROBES]
        self._forward.share(prompts[0][: min(common_prefix(prompts), min(map(len, prompts)) - 1)])
        self._effort.passes += 1

    def _join(self, rows: list[Row], groups: Sequence[Sequence[Row]], waiting: _Waiting) -> None:
        """Add documents to a group while there is room."""
        forward = self._forward
        while len(rows) < forward.shape.rows // len(groups) and (row := waiting.peek()):
            shared = min(common_prefix([row.prompt, forward.instruction]), len(row.prompt) - 1)
            if shared < len(forward.instruction):  # the tokenizer merged its end with this text
                if any(groups):
                    return
                forward.cut(shared)
            if any(groups) and forward.cache.room < len(row.prompt) - shared + SPARE:
                return
            waiting.take()
            row.number, row.position, row.pending = forward.cache.open(), shared, row.prompt[shared:]
            row.guide = self._guide(row)
            rows.append(row)

    def _guide(self, row: Row) -> Guide | None:
        constraint, ordered = self._rules.constraint, self._rules.on_choices
        return Guide(constraint, self._encoder, row.document.text, ordered=ordered) if constraint else None

    def _start_pass(self, rows: list[Row], groups: Sequence[Sequence[Row]], waiting: _Waiting) -> RunningPass | None:
        """Start the next pass of a group: rows that are decoding first, then as much of the prompts as fits."""
        forward = self._forward
        while min(forward.shape.tokens, sum(len(row.pending) for row in rows)) > forward.cache.room:
            newest = max(rows, key=lambda row: row.index)
            if newest.index == min(row.index for row in chain(*groups)):
                return None  # the oldest row of all waits for the other group to free slots
            rows.remove(newest)
            forward.cache.close(newest.number)
            waiting.put_back(newest)
        parts, choosing, last_parts, budget = [], [], [], forward.shape.tokens
        for row in sorted(rows, key=lambda row: len(row.pending)):
            ids, row.pending = row.pending[:budget], row.pending[budget:]
            if ids:
                parts.append(Part(row.number, row.position, ids))
            if ids and not row.pending:
                choosing.append(row)
                last_parts.append(len(parts) - 1)
            row.position += len(ids)
            budget -= len(ids)
        if not parts:
            return None
        self._effort.passes += 1
        output = forward.feed(parts, last_parts)
        return RunningPass(choosing, self._choose(choosing, output)) if choosing else None

    def _choose(self, rows: Sequence[Row], output: Tensor) -> Callable[[], tuple[list[int], list[float]]]:
        """Choose each row's most probable allowed token.

        Args:
            rows: the rows that get a token.
            output: their logits [rows, vocabulary], or their last hidden states where the forward gives states.

        Returns:
            A function that waits for the tokens and their log-probabilities.
        """
        if self._rules.constraint is None:
            values = output.float()
            chosen = values.argmax(-1, keepdim=True)
            tokens, total = chosen, values.logsumexp(-1)
        else:
            allowed = self._allowed(rows)
            ids, inside = _sent(allowed.ids, output.device), _sent(allowed.inside, output.device)
            if self._forward.states:
                union, places = np.unique(allowed.ids, return_inverse=True)
                logits = few_logits(self._model, output, torch.from_numpy(union))
                values = logits.gather(1, torch.from_numpy(places.reshape(allowed.ids.shape))).float()
            else:
                values = output.gather(1, ids).float()
            values = values.masked_fill(~inside, float("-inf"))
            chosen = values.argmax(-1, keepdim=True)
            tokens = ids.gather(1, chosen)
            total = (values if self._rules.on_choices else output.float()).logsumexp(-1)
        logprobs = values.gather(1, chosen)[:, 0] - total
        return _fetched(tokens[:, 0], logprobs)

    def _allowed(self, rows: Sequence[Row]) -> Allowed:
        """Return the tokens that the grammars allow next; a row whose grammar has failed may only end."""
        assert self._rules.constraint is not None
        began = time.perf_counter()
        matchers = []
        for row in rows:
            try:
                assert row.guide is not None
                matchers.append(row.guide.matcher)
            except (
                ModelError
            ) as error:  # one text's grammar exceeds the engine's limits: the other texts are not affected
                row.failure = str(error).splitlines()[0]
                matchers.append(self._end_only)
        allowed = self._rules.constraint.allowed(matchers)
        self._effort.grammar_seconds += time.perf_counter() - began
        return allowed

    def _finished(self, running: RunningPass | None) -> Iterator[Row]:
        """Append the tokens of a pass to its rows; yields the rows that end."""
        if running is None:
            return
        tokens, logprobs = running.wait()
        began = time.perf_counter()
        for row, token, logprob in zip(running.rows, tokens, logprobs, strict=True):
            row.status = self._advance(row, token, logprob)
        self._effort.grammar_seconds += time.perf_counter() - began
        yield from (row for row in running.rows if row.status)

    def _advance(self, row: Row, token: int, logprob: float) -> Status | None:
        """Append a token to a row; returns the status when that ends it."""
        if row.failure:
            return Status.FAILED
        if math.isnan(logprob):  # weights or a sum in the model that are not finite: its choice means nothing
            row.failure, row.failure_kind = "the model computed NaN for the next token", ProblemKind.INVALID
            return Status.FAILED
        if token == self._encoder.stop_id:
            return Status.STOPPED
        try:
            forced = row.guide.advance(token) if row.guide else []
        except ModelError as error:
            row.failure = str(error).splitlines()[0]
            return Status.FAILED
        ended = bool(forced) and forced[-1] == self._encoder.stop_id
        forced = forced[:-1] if ended else forced
        row.pending = [token, *forced]
        row.ids.extend(row.pending)
        row.logprobs.extend([logprob, *([None] * len(forced))])
        self._effort.tokens += len(row.pending)
        self._effort.forced += len(forced)
        if row.guide.is_circling if row.guide else self._is_circling(row):
            return Status.REPEATED
        if ended or (row.guide and row.guide.finished):
            return Status.STOPPED
        return Status.LENGTH if len(row.ids) >= self._rules.limit else None

    def _is_circling(self, row: Row) -> bool:
        """Whether an answer without a grammar only repeats itself."""
        if self._encoder.format.mark not in self._encoder.decode(row.ids[-1:]):
            return False
        answer = self._encoder.decode(row.ids)
        return self._encoder.format.parse(answer, row.document.text, self._encoder.task).is_looping


class _Waiting:
    """Documents that have not joined yet; one of them is tokenised ahead."""

    def __init__(self, documents: Iterable[Document], encoder: Encoder):
        self._source, self._encoder = enumerate(documents), encoder
        self._rows: deque[Row] = deque()

    def peek(self) -> Row | None:
        """Return the next row; None where there is none."""
        if not self._rows:
            for index, document in self._source:
                self._rows.append(Row(index, document, self._encoder.prompt_ids(document.text)))
                break
        return self._rows[0] if self._rows else None

    def take(self) -> None:
        """Remove the next row."""
        self._rows.popleft()

    def put_back(self, row: Row) -> None:
        """Queue a row again, before those with a higher index."""
        self._rows.append(Row(row.index, row.document, row.prompt))
        self._rows = deque(sorted(self._rows, key=lambda waiting: waiting.index))


def _sent(values: NDArray[np.int64] | NDArray[np.bool_], device: torch.device) -> Tensor:
    """Copy an array to `device` without waiting for the GPU."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _fetched(tokens: Tensor, logprobs: Tensor) -> Callable[[], tuple[list[int], list[float]]]:
    """Return a function that waits for two tensors [rows] and gives them as lists; the GPU can be given more work."""
    if tokens.device.type != "cuda":
        return lambda: (tokens.tolist(), logprobs.tolist())
    copies = [torch.empty(len(tensor), dtype=tensor.dtype, pin_memory=True) for tensor in (tokens, logprobs)]
    for copy, tensor in zip(copies, (tokens, logprobs), strict=True):
        copy.copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()

    def wait() -> tuple[list[int], list[float]]:
        event.synchronize()
        return copies[0].tolist(), copies[1].tolist()

    return wait
