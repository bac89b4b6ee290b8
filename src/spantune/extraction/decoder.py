"""The decoding loop: greedy, with continuous batching, and without a separate pass for tokens that a grammar forces.

Each step takes the most probable token that the row's grammar allows. The tokens that the grammar then forces are fed
together with the chosen token in the next pass. A pass has a limited number of tokens: rows that are decoding come
first, and prompts fill the rest. On a GPU the rows are divided into two groups: while the pass of one group runs, the
grammars of the other group advance. A small number of rows forms one group, because two passes over half of them would
take nearly twice as long as one pass. When the key-value cache is full, the newest row is evicted and restarted later,
with the same result.
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

FEW = 96  # up to this number of rows form one group: their grammars take less time than a second pass
RECENT = 64  # how many of the last answers are averaged to predict the cache slots that a row will need
BURST = 32  # most documents to take between two passes, so that the GPU does not wait while a whole batch is encoded
SPARE = 64  # free slots that must be left, besides those of its prompt, when a row joins
_PROBES = ("文本", "text", "\n", "1")  # texts whose prompts have only the instruction in common at their beginning
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunningPass:
    """A forward pass that may still be running.

    `rows` are the rows that get a token from the pass. `wait` waits for it, and returns one token and one
    log-probability for each row.
    """

    rows: Sequence[Row]
    wait: Callable[[], tuple[list[int], list[float]]]


@dataclass
class _Group:
    """Rows that share passes; `running` is their pass that may still be running."""

    rows: list[Row] = field(default_factory=list)
    running: RunningPass | None = None


class Decoder:
    """Decodes answers for documents, which are submitted one by one and end in any order.

    Args:
        model: a causal LM.
        encoder: the tokenizer and the task.
        forward: runs the passes of the model. Only this decoder may use it.
        rules: how to decode.
        effort: the cost is added to this.
    """

    def __init__(self, model: CausalLM, encoder: Encoder, forward: Forward, rules: Rules, effort: Effort):
        self._model, self._encoder, self._forward, self._rules, self._effort = model, encoder, forward, rules, effort
        self._chooser = Chooser(model, forward, rules, effort)
        self._groups = [_Group() for _ in range(min(2, forward.shape.rows) if forward.pipelined else 1)]
        self._waiting: deque[Row] = deque()
        self._ended: list[Row] = []
        self._lengths: deque[int] = deque(maxlen=RECENT)  # tokens of the last answers
        self._submitted = 0
        self._taken = 0  # documents submitted since the last pass
        self.takes_all = False
        """Whether `room` ignores BURST, so that the number of waiting documents is known before the first pass."""

    @property
    def room(self) -> int:
        """How many more documents to submit now.

        The decoder takes a full batch and half a batch that waits, but at most BURST documents between two passes.
        """
        room = places(self._forward.shape.rows) - self._in_flight - len(self._waiting)
        return room if self.takes_all else min(room, BURST - self._taken)

    @property
    def waiting(self) -> int:
        """How many documents wait for the first pass; 0 once some are being decoded."""
        return 0 if self._in_flight else len(self._waiting)

    def compile(self) -> None:
        """Compile the model's layers, as `Forward.compile`; no document may be in decoding."""
        self._forward.compile()
        self.takes_all = False

    @property
    def _in_flight(self) -> int:
        return sum(len(group.rows) for group in self._groups)

    def submit(self, document: Document) -> int:
        """Add a document; return the index of its row."""
        row = self._row(self._submitted, document, self._encoder.prompt_ids(document.text))
        self._submitted += 1
        self._taken += 1
        self._waiting.append(row)
        return row.index

    def _row(self, index: int, document: Document, prompt: list[int], *, is_alone: bool = False) -> Row:
        """Make a row at its beginning; its grammar is compiled in a thread while the row waits."""
        row = Row(index, document, prompt, is_alone=is_alone)
        try:
            row.guide = self._guide(row)
        except Exception as error:  # the grammar of this text cannot be made
            row.fail(error)
        return row

    def cancel(self, index: int) -> None:
        """Free a row and its slots, whether it waits or is being decoded; a row that has ended is ignored.

        A pass of the row may still be running and write into the freed slots. That does no harm, since the next pass
        that uses these slots runs after it.
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
        """Compute one pass of each group; return the rows that have ended, in any order.

        A pass fails if memory runs out or the model raises an error. Each of its rows is then decoded once more, alone.
        A row that fails again ends with the status `failed` and the `error`.
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
        """Move the rows of a group to the first group if only few rows are left; return whether they were moved."""
        first = self._groups[0]
        if group is first or self._waiting or self._in_flight > FEW:
            return False
        first.rows += group.rows
        group.rows = []
        return True

    def _share(self) -> None:
        """Compute the instruction of all prompts once; if that fails, the first waiting row's pass has failed."""
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
        """Do a part of a step for a group; if it fails, decode the rows of the group again."""
        try:
            work(group)
        except BaseException as error:
            rows, group.running = list(group.rows), None
            for row in rows:
                self._leave(group, row)
            if not isinstance(error, Exception):  # an interruption, such as Ctrl-C, is no fault of the rows
                for row in rows:
                    self._put_back(row)
                raise
            self._again(rows, error)

    def _again(self, rows: Sequence[Row], error: Exception) -> None:
        """Queue rows whose pass has failed, to be decoded alone; end the rows that were alone already."""
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
        """Queue a row from its beginning: rows to be decoded alone come first, the others by their index."""
        again = self._row(row.index, row.document, row.prompt, is_alone=is_alone or row.is_alone)
        rows = sorted((*self._waiting, again), key=lambda waiting: (not waiting.is_alone, waiting.index))
        self._waiting = deque(rows)

    def _leave(self, group: _Group, row: Row) -> None:
        group.rows.remove(row)
        self._forward.cache.close(row.number)

    def _join(self, group: _Group) -> None:
        """Add waiting documents to a group while there is room.

        A row to be decoded alone joins only when no other row is in flight, and no row joins it.
        """
        forward, rows = self._forward, self._forward.shape.rows
        half = max(FEW, -(-(self._in_flight + len(self._waiting)) // 2))
        most = min(rows // len(self._groups), half)
        while len(group.rows) < most and self._in_flight < rows and self._waiting:  # united groups may be above `most`
            row, is_busy = self._waiting[0], bool(self._in_flight)
            if is_busy and (row.is_alone or any(other.is_alone for each in self._groups for other in each.rows)):
                return
            shared = min(common_prefix([row.prompt, forward.instruction]), len(row.prompt) - 1)
            if shared < len(forward.instruction):  # the tokenizer merged the instruction's end with this text
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
        """The slots that a new row and half of those in flight will need, by the mean length of recent answers."""
        return sum(self._lengths) // max(1, len(self._lengths)) * (1 + self._in_flight // 2)

    def _guide(self, row: Row) -> Guide | None:
        constraint, ordered = self._rules.constraint, self._rules.on_choices
        return Guide(constraint, self._encoder, row.document.text, ordered=ordered) if constraint else None

    def _start_pass(self, group: _Group) -> None:
        """Start the next pass of a group: rows that are decoding come first, then as much of the prompts as fits."""
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
        """Append the tokens of the group's pass to its rows, and remove the rows that end."""
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
            except Exception as error:  # the grammar of this text has failed
                row.fail(error)
                row.status = Status.FAILED
            if row.status:
                self._leave(group, row)
                self._ended.append(row)
                self._lengths.append(len(row.ids))
        self._effort.grammar_seconds += time.perf_counter() - began

    def _advance(self, row: Row, token: int, logprob: float) -> Status | None:
        """Append a token to a row; return the status if the row ends with it, otherwise None."""
        if row.failure:
            return Status.FAILED
        if math.isnan(logprob):  # weights or activations are not finite, so the chosen token means nothing
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
        """Whether an answer without a grammar only repeats itself, which is tested when an entity ends."""
        if self._encoder.format.mark not in self._encoder.decode(row.ids[-1:]):
            return False
        answer = self._encoder.decode(row.ids)
        return self._encoder.format.parse(answer, row.document.text, self._encoder.task).is_looping


def places(rows: int) -> int:
    """Return how many documents a decoder of `rows` rows takes: a full batch, and half as many that wait to join."""
    return rows + rows // 2 + 1
