"""The decoding loop: rows join and leave as they please, and tokens that a grammar forces are fed for free.

Greedy: each step takes the most probable token that the row's grammar allows. What a row then must write is fed
together with the chosen token in its next pass. A pass has a bounded number of tokens: rows that are writing come
first, prompts fill the rest. On a GPU the rows are in two groups: while one group's pass runs, the other's grammars
advance. When the cache is full, the youngest row gives its place up and begins again later: it will write the same.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spantune.core import Document, ModelError
from spantune.encoding import Encoder, common_prefix
from spantune.extraction.grammar import Constraint, Guide
from spantune.extraction.model_runner import Forward, Part
from spantune.models import few_logits

SPARE = 64  # slots that a row should find free besides those of its prompt when it joins
_PROBES = ("文本", "text", "\n", "1")  # texts whose prompts bound the instruction that all prompts share


@dataclass
class Effort:
    """What decoding took: passes, tokens written, how many of them were forced, and the loop's seconds in grammars."""

    passes: int = 0
    tokens: int = 0
    forced: int = 0
    grammar_seconds: float = 0.0


@dataclass(frozen=True)
class Rules:
    """How to decode: under `constraint` or freely, `limit` tokens an answer at the most.

    `on_choices`: whether the model was trained on choices: its log-probabilities are among what the grammar allows, and
    its answers keep the order that it was trained in; else they are those of the whole vocabulary, and any entity may
    follow another.
    """

    limit: int
    constraint: Constraint | None = None
    on_choices: bool = False


@dataclass(eq=False)
class Row:
    """A document that is being decoded, and what was written for it so far.

    `status` is "" until the row ends; `logprobs` are None where a token was forced.
    """

    index: int
    document: Document
    prompt: list[int]
    number: int = 0  # of its row in the cache
    position: int = 0
    pending: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    guide: Guide | None = None
    status: str = ""
    failure: str = ""


@dataclass(frozen=True)
class Flight:
    """A pass under way: the rows that choose a token by it, and what gives the tokens and their log-probabilities."""

    rows: Sequence[Row]
    land: Callable[[], tuple[list[int], list[float]]]


class Decoder:
    """Writes answers for documents.

    Args:
        model: the model.
        encoder: its tokenizer under the task.
        forward: its passes, at most one decoder's at a time.
        rules: how to decode.
        effort: where the effort is added.
    """

    def __init__(self, model: Any, encoder: Encoder, forward: Forward, rules: Rules, effort: Effort):
        self._model, self._encoder, self._forward, self._rules, self._effort = model, encoder, forward, rules, effort
        self._ended = rules.constraint.matcher('start: ""') if rules.constraint else None

    @torch.inference_mode()
    def run(self, documents: Iterable[Document]) -> Iterator[Row]:
        """Yield an ended Row for each document, in order; documents are taken as rows get free."""
        if not self._forward.instruction:
            self._share()
        waiting = _Waiting(documents, self._encoder)
        groups: list[list[Row]] = [
            [] for _ in range(min(2, self._forward.shape.rows) if self._forward.pipelined else 1)
        ]
        flights: list[Flight | None] = [None] * len(groups)
        done: dict[int, Row] = {}
        upcoming = 0
        try:
            while waiting.peek() or any(groups):
                for number, rows in enumerate(groups):
                    for row in self._land(flights[number]):
                        rows.remove(row)
                        self._forward.cache.close(row.number)
                        done[row.index] = row
                    self._join(rows, groups, waiting)
                    flights[number] = self._launch(rows, groups, waiting)
                while upcoming in done:
                    yield done.pop(upcoming)
                    upcoming += 1
        finally:  # the caller may not want the rest
            for row in chain(*groups):
                self._forward.cache.close(row.number)

    def _share(self) -> None:
        """Compute once the instruction that prompts begin with, as far as it is the same for all."""
        prompts = [self._encoder.prompt_ids(text) for text in _PROBES]
        self._forward.share(prompts[0][: min(common_prefix(prompts), min(map(len, prompts)) - 1)])
        self._effort.passes += 1

    def _join(self, rows: list[Row], groups: Sequence[Sequence[Row]], waiting: _Waiting) -> None:
        """Let documents join a group while there is room."""
        forward = self._forward
        while len(rows) < forward.shape.rows // len(groups) and (row := waiting.peek()):
            shared = min(common_prefix([row.prompt, forward.instruction]), len(row.prompt) - 1)
            if shared < len(forward.instruction):  # the tokenizer joined its end with this text
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

    def _launch(self, rows: list[Row], groups: Sequence[Sequence[Row]], waiting: _Waiting) -> Flight | None:
        """Begin the next pass of a group: rows that are writing first, then as much of the prompts as fits."""
        forward = self._forward
        while min(forward.shape.tokens, sum(len(row.pending) for row in rows)) > forward.cache.room:
            youngest = max(rows, key=lambda row: row.index)
            if youngest.index == min(row.index for row in chain(*groups)):
                return None  # the oldest waits for the other group
            rows.remove(youngest)
            forward.cache.close(youngest.number)
            waiting.put_back(youngest)
        parts, chosen, wanted, left = [], [], [], forward.shape.tokens
        for row in sorted(rows, key=lambda row: len(row.pending)):
            ids, row.pending = row.pending[:left], row.pending[left:]
            if ids:
                parts.append(Part(row.number, row.position, ids))
            if ids and not row.pending:
                chosen.append(row)
                wanted.append(len(parts) - 1)
            row.position += len(ids)
            left -= len(ids)
        if not parts:
            return None
        self._effort.passes += 1
        found = forward.feed(parts, wanted)
        return Flight(chosen, self._choose(chosen, found)) if chosen else None

    def _choose(self, rows: Sequence[Row], found: Tensor) -> Callable[[], tuple[list[int], list[float]]]:
        """Choose each row's most probable allowed token by its logits, or state; returns what waits for the result."""
        if self._rules.constraint is None:
            values = found.float()
            chosen = values.argmax(-1, keepdim=True)
            tokens, total = chosen, values.logsumexp(-1)
        else:
            allowed = self._allowed(rows)
            ids, inside = _sent(allowed.ids, found.device), _sent(allowed.inside, found.device)
            if self._forward.states:
                union, places = np.unique(allowed.ids, return_inverse=True)
                few = few_logits(self._model, found, torch.from_numpy(union))
                values = few.gather(1, torch.from_numpy(places.reshape(allowed.ids.shape))).float()
            else:
                values = found.gather(1, ids).float()
            values = values.masked_fill(~inside, float("-inf"))
            chosen = values.argmax(-1, keepdim=True)
            tokens = ids.gather(1, chosen)
            total = (values if self._rules.on_choices else found.float()).logsumexp(-1)
        logprobs = values.gather(1, chosen)[:, 0] - total
        return _fetched(tokens[:, 0], logprobs)

    def _allowed(self, rows: Sequence[Row]) -> Any:
        """What the grammars allow now; a row whose grammar has failed may only end."""
        assert self._rules.constraint is not None
        began = time.perf_counter()
        matchers = []
        for row in rows:
            try:
                assert row.guide is not None
                matchers.append(row.guide.matcher)
            except ModelError as error:  # one text's grammar is too much for the engine: the others go on
                row.failure = str(error).splitlines()[0]
                matchers.append(self._ended)
        allowed = self._rules.constraint.allowed(matchers)
        self._effort.grammar_seconds += time.perf_counter() - began
        return allowed

    def _land(self, flight: Flight | None) -> Iterator[Row]:
        """Take the chosen tokens of a pass into its rows; yields the rows that end."""
        if flight is None:
            return
        tokens, logprobs = flight.land()
        began = time.perf_counter()
        for row, token, logprob in zip(flight.rows, tokens, logprobs, strict=True):
            row.status = self._advance(row, token, logprob)
        self._effort.grammar_seconds += time.perf_counter() - began
        yield from (row for row in flight.rows if row.status)

    def _advance(self, row: Row, token: int, logprob: float) -> str:
        """Take a token into a row; returns the status when that ends it."""
        if row.failure:
            return "failed"
        if token == self._encoder.stop_id:
            return "stopped"
        try:
            forced = row.guide.advance(token) if row.guide else []
        except ModelError as error:
            row.failure = str(error).splitlines()[0]
            return "failed"
        ended = bool(forced) and forced[-1] == self._encoder.stop_id
        forced = forced[:-1] if ended else forced
        row.pending = [token, *forced]
        row.ids.extend(row.pending)
        row.logprobs.extend([logprob, *([None] * len(forced))])
        self._effort.tokens += len(row.pending)
        self._effort.forced += len(forced)
        if row.guide.circling if row.guide else self._circles(row):
            return "repeated"
        if ended or (row.guide and row.guide.finished):
            return "stopped"
        return "length" if len(row.ids) >= self._rules.limit else ""

    def _circles(self, row: Row) -> bool:
        """Whether a free answer goes round in circles."""
        if self._encoder.format.mark not in self._encoder.decode(row.ids[-1:]):
            return False
        answer = self._encoder.decode(row.ids)
        return self._encoder.format.parse(answer, row.document.text, self._encoder.task).is_looping


class _Waiting:
    """Documents that have not joined yet, tokenised one ahead."""

    def __init__(self, documents: Iterable[Document], encoder: Encoder):
        self._source, self._encoder = enumerate(documents), encoder
        self._rows: deque[Row] = deque()

    def peek(self) -> Row | None:
        """The next one; None where there is none."""
        if not self._rows:
            for index, document in self._source:
                self._rows.append(Row(index, document, self._encoder.prompt_ids(document.text)))
                break
        return self._rows[0] if self._rows else None

    def take(self) -> None:
        """Strike out the next one."""
        self._rows.popleft()

    def put_back(self, row: Row) -> None:
        """Let a row begin again before those that wait."""
        self._rows.append(Row(row.index, row.document, row.prompt))
        self._rows = deque(sorted(self._rows, key=lambda waiting: waiting.index))


def _sent(values: Any, device: torch.device) -> Tensor:
    """An array on `device`, without waiting for what the GPU is at."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _fetched(tokens: Tensor, logprobs: Tensor) -> Callable[[], tuple[list[int], list[float]]]:
    """What waits for two results and gives them as lists; the GPU may have been given more to do meanwhile."""
    if tokens.device.type != "cuda":
        return lambda: (tokens.tolist(), logprobs.tolist())
    here = [torch.empty(len(tokens), dtype=one.dtype, pin_memory=True) for one in (tokens, logprobs)]
    for target, one in zip(here, (tokens, logprobs), strict=True):
        target.copy_(one, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()

    def wait() -> tuple[list[int], list[float]]:
        event.synchronize()
        return here[0].tolist(), here[1].tolist()

    return wait
