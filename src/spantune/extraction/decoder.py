"""The decoding loop: greedy, with continuous batching, and without a pass of its own for a token that a grammar forces.

Each step takes the most probable token that the row's grammar allows. The tokens that the grammar then forces are fed
together with the chosen token in the next pass. A pass has a bounded number of tokens: rows that are decoding come
first, prompts fill the rest. On a GPU the rows are in two groups: while the pass of one group runs, the grammars of the
other group advance. Few rows are in one group: two half passes would take nearly twice as long as one. When the cache
is full, the newest row is evicted and restarted later, with the same result.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from spantune.core import Document, ProblemKind, Status, first_line, number
from spantune.encoding import Encoder, common_prefix
from spantune.extraction.choosing import Chooser, Effort, Row, Rules
from spantune.extraction.grammar import Guide
from spantune.extraction.model_runner import Forward, Part
from spantune.models import CausalLM

FEW = 96  # rows that are in one group: their grammars then take less time than a second pass
RECENT = 64  # answers by whose length it is known how many rows the cache has room for
BURST = 32  # documents that are taken between two passes: the GPU does not wait while a whole batch is encoded
SPARE = 64  # free slots, besides those of its prompt, that a row needs to join
_PROBES = ("文本", "text", "\n", "1")  # the common prefix of their prompts is the instruction that all prompts share
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunningPass:
    """A pass that may still be running: the rows that get a token from it, and a function that waits for the tokens.

    `wait` returns the tokens and their log-probabilities.
    """

    rows: Sequence[Row]
    wait: Callable[[], tuple[list[int], list[float]]]


@dataclass
class _Group:
    """Rows that share passes, and the pass of them that may still be running."""

    rows: list[Row] = field(default_factory=list)
    running: RunningPass | None = None


class Decoder:
    """Decodes answers for documents, which are submitted one by one and end in any order.

    Args:
        model: the model.
        encoder: its tokenizer and the task.
        forward: runs its passes; used by one decoder.
        rules: how to decode.
        effort: where the cost is added.
    """

    def __init__(self, model: CausalLM, encoder: Encoder, forward: Forward, rules: Rules, effort: Effort):
        self._model, self._encoder, self._forward, self._rules, self._effort = model, encoder, forward, rules, effort
        self._chooser = Chooser(model, forward, rules, effort)
        self._groups = [_Group() for _ in range(min(2, forward.shape.rows) if forward.pipelined else 1)]
        self._waiting: deque[Row] = deque()
        self._ended: list[Row] = []
        self._lengths: deque[int] = deque(maxlen=RECENT)  # of the last answers
        self._submitted = 0
        self._taken = 0  # documents since the last pass
        self.takes_all = False
        """Whether all documents that there is work for are taken at once, so that it is known whether they are many."""

    @property
    def room(self) -> int:
        """How many more documents to take: of those that there is work for, a few between two passes.

        There is work for a batch, and for those that join when some of it end at once.
        """
        room = places(self._forward.shape.rows) - self._in_flight - len(self._waiting)
        return room if self.takes_all else min(room, BURST - self._taken)

    @property
    def waiting(self) -> int:
        """How many documents wait for the first pass; 0 while others are decoded."""
        return 0 if self._in_flight else len(self._waiting)

    def compile(self) -> None:
        """Compile the model's layers, as `Forward.compile`; no document may be decoded."""
        self._forward.compile()
        self.takes_all = False

    @property
    def _in_flight(self) -> int:
        return sum(len(group.rows) for group in self._groups)

    def submit(self, document: Document) -> int:
        """Add a document; returns the index of its row."""
        row = self._row(self._submitted, document, self._encoder.prompt_ids(document.text))
        self._submitted += 1
        self._taken += 1
        self._waiting.append(row)
        return row.index

    def _row(self, index: int, document: Document, prompt: list[int], *, is_alone: bool = False) -> Row:
        """Make a row at its beginning; its grammar is compiled while it waits."""
        row = Row(index, document, prompt, is_alone=is_alone)
        try:
            row.guide = self._guide(row)
        except Exception as error:  # in a grammar's making, which is of this text only
            row.fail(error)
        return row

    def cancel(self, index: int) -> None:
        """Free a row and its slots, whether it waits or is decoded; nothing happens where it has ended.

        A pass of it that is still running may be left to write into slots that are free: the pass that they are given
        to next runs after it.
        """
        for row in self._waiting:
            if row.index == index:
                self._waiting.remove(row)
                return
        for group in self._groups:
            for row in group.rows:
                if row.index == index:
                    row.is_cancelled = True
                    self._leave(group, row)
                    return

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Compute one pass of each group; returns the rows that have ended, in any order.

        A pass that fails, for want of memory or by an error in the model, ends no row: each of its rows is decoded once
        more, by itself, and a row that fails again has the status `failed`, and the `error`.
        """
        self._taken = 0
        if self._waiting and not self._in_flight and not self._forward.instruction:
            self._share()
        for group in self._groups:
            self._guarded(group, self._finish)
            self._join(group)
            if not self._unite(group):
                self._guarded(group, self._start_pass)
        ended, self._ended = self._ended, []
        return ended

    def _unite(self, group: _Group) -> bool:
        """Give the rows of a group to the first one, which computes them next, where few are left of all."""
        first = self._groups[0]
        if group is first or self._waiting or self._in_flight > FEW:
            return False
        first.rows += group.rows
        group.rows = []
        return True

    def _share(self) -> None:
        """Compute the instruction of all prompts once; where that fails, it fails for the first row that waits."""
        try:
            prompts = [self._encoder.prompt_ids(text) for text in _PROBES]
            self._forward.share(prompts[0][: min(common_prefix(prompts), min(map(len, prompts)) - 1)])
            self._effort.passes += 1
        except BaseException as error:
            self._forward.cut(0)
            if not isinstance(error, Exception):
                raise
            self._again([self._waiting.popleft()], error)

    def _guarded(self, group: _Group, work: Callable[[_Group], None]) -> None:
        """Do a part of a step for a group; where it fails, its rows begin again."""
        try:
            work(group)
        except BaseException as error:
            rows, group.running = list(group.rows), None
            for row in rows:
                self._leave(group, row)
            if not isinstance(error, Exception):  # an interruption says nothing about them
                for row in rows:
                    self._put_back(row)
                raise
            self._again(rows, error)

    def _again(self, rows: Sequence[Row], error: Exception) -> None:
        """Put rows back whose pass has failed, each to be decoded alone; a row that was alone ends."""
        _LOG.warning(
            "a pass over %s failed (%s); each is computed once more, by itself, and is reported if that fails too",
            number(len(rows), "document"),
            first_line(error),
        )
        for row in rows:
            if row.is_alone:
                self._ended.append(row)
                row.status, row.failure_kind, row.error = Status.FAILED, ProblemKind.INVALID, error
                row.failure = f"the model could not compute this text: {first_line(error)}"
            else:
                self._put_back(row, is_alone=True)

    def _put_back(self, row: Row, *, is_alone: bool = False) -> None:
        """Queue a row from its beginning: those that go alone come first, the others by their index."""
        again = self._row(row.index, row.document, row.prompt, is_alone=is_alone or row.is_alone)
        rows = sorted((*self._waiting, again), key=lambda waiting: (not waiting.is_alone, waiting.index))
        self._waiting = deque(rows)

    def _leave(self, group: _Group, row: Row) -> None:
        group.rows.remove(row)
        self._forward.cache.close(row.number)

    def _join(self, group: _Group) -> None:
        """Add documents to a group while there is room; a row that goes alone waits for all others, and they for it."""
        forward, rows = self._forward, self._forward.shape.rows
        half = max(FEW, -(-(self._in_flight + len(self._waiting)) // 2))
        most = min(rows // len(self._groups), half)
        while len(group.rows) < most and self._in_flight < rows and self._waiting:  # united rows may be more
            row, is_busy = self._waiting[0], bool(self._in_flight)
            if is_busy and (row.is_alone or any(other.is_alone for each in self._groups for other in each.rows)):
                return
            shared = min(common_prefix([row.prompt, forward.instruction]), len(row.prompt) - 1)
            if shared < len(forward.instruction):  # the tokenizer merged its end with this text
                if is_busy:
                    return
                forward.cut(shared)
            if is_busy and forward.cache.room < len(row.prompt) - shared + SPARE + self._growth:
                return
            self._waiting.popleft()
            row.number, row.position, row.pending = forward.cache.open(), shared, row.prompt[shared:]
            group.rows.append(row)

    @property
    def _growth(self) -> int:
        """The slots that a row and those in flight will take if their answers are as long as those that have ended."""
        return sum(self._lengths) // max(1, len(self._lengths)) * (1 + self._in_flight // 2)

    def _guide(self, row: Row) -> Guide | None:
        constraint, ordered = self._rules.constraint, self._rules.on_choices
        return Guide(constraint, self._encoder, row.document.text, ordered=ordered) if constraint else None

    def _start_pass(self, group: _Group) -> None:
        """Start the next pass of a group: rows that are decoding first, then as much of the prompts as fits."""
        forward, rows = self._forward, group.rows
        while min(forward.shape.tokens, sum(len(row.pending) for row in rows)) > forward.cache.room:
            newest = max(rows, key=lambda row: row.index)
            if newest.index == min(row.index for each in self._groups for row in each.rows):
                return  # the oldest row of all waits for the other group to free slots
            self._leave(group, newest)
            self._put_back(newest)
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
        if parts:
            self._effort.passes += 1
            output = forward.feed(parts, last_parts)
            group.running = RunningPass(choosing, self._chooser.choice(choosing, output)) if choosing else None

    def _finish(self, group: _Group) -> None:
        """Append the tokens of the pass of a group to its rows; those that end leave it."""
        if group.running is None:
            return
        tokens, logprobs = group.running.wait()
        rows, group.running = group.running.rows, None
        began = time.perf_counter()
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            if row.is_cancelled:
                continue
            try:
                row.status = self._advance(row, token, logprob)
            except Exception as error:  # in the grammar of this text
                row.fail(error)
                row.status = Status.FAILED
            if row.status:
                self._leave(group, row)
                self._ended.append(row)
                self._lengths.append(len(row.ids))
        self._effort.grammar_seconds += time.perf_counter() - began

    def _advance(self, row: Row, token: int, logprob: float) -> Status | None:
        """Append a token to a row; returns the status when that ends it."""
        if row.failure:
            return Status.FAILED
        if math.isnan(logprob):  # weights or a sum in the model that are not finite: its choice means nothing
            row.failure, row.failure_kind = "the model computed NaN for the next token", ProblemKind.INVALID
            return Status.FAILED
        if token == self._encoder.stop_id:
            return Status.STOPPED
        forced = row.guide.advance(token) if row.guide else []
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


def places(rows: int) -> int:
    """Return how many documents a decoder of so many rows has work for: half as many as it decodes wait to join."""
    return rows + rows // 2 + 1
