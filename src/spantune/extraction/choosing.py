"""The rows of a decoding batch, and the choice of their next tokens: the most probable tokens that the grammars allow.

On a GPU the allowed tokens are computed in a thread, since llguidance releases Python's lock. The tokens are chosen on
a second CUDA stream, because the model's own stream is by then busy with the pass of the other group of rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spantune.core import Document, ProblemKind, Status, first_line
from spantune.extraction.grammar import Allowed, Constraint, Guide
from spantune.extraction.model_runner import Forward
from spantune.models import CausalLM, few_logits


@dataclass
class Effort:
    """The cost of decoding: forward passes, decoded tokens, how many of them were forced, and seconds in grammars."""

    passes: int = 0
    tokens: int = 0
    forced: int = 0
    grammar_seconds: float = 0.0


@dataclass(frozen=True)
class Rules:
    """How to decode.

    Args:
        limit: the most tokens of an answer.
        constraint: makes the grammars; None decodes without a grammar.
        on_choices: whether the model was trained with `train.loss_on=choices`. If so, log-probabilities are normalised
            over the tokens that the grammar allows, and the grammar allows entities only in the order of training.
            Otherwise they are normalised over the whole vocabulary, and any entity may follow another.
    """

    limit: int
    constraint: Constraint | None = None
    on_choices: bool = False


@dataclass(eq=False)
class Row:
    """A document that is being decoded, and its answer so far.

    `number` is the row's number in the key-value cache. `position` is the position of the first of the
    `pending` tokens, which are fed next. `ids` are the tokens of the answer; their `logprobs` are None where a token
    was forced. `status` is None until the row ends. If a pass fails, its rows are decoded again with `is_alone`;
    `error` is what that second pass raised.
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
    is_alone: bool = False
    is_cancelled: bool = False
    error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """Record why this text cannot be decoded; other texts are not affected."""
        self.failure = first_line(error)


class Chooser:
    """Chooses the next tokens of rows after their forward pass.

    Args:
        model: a causal LM.
        forward: runs the passes of the model.
        rules: how to decode.
        effort: the seconds that grammars take are added to this.
    """

    def __init__(self, model: CausalLM, forward: Forward, rules: Rules, effort: Effort):
        self._model, self._forward, self._rules, self._effort = model, forward, rules, effort
        self._end_only = rules.constraint.matcher('start: ""') if rules.constraint else None
        self._thread = ThreadPoolExecutor(1) if forward.pipelined and rules.constraint else None
        self._beside: torch.cuda.Stream | None = None

    def choice(self, rows: Sequence[Row], output: Tensor) -> Callable[[], tuple[list[int], list[float]]]:
        """Choose each row's most probable allowed token; call this once the pass of the rows is launched.

        Args:
            rows: the rows. Their grammars must not advance before the returned function has been called.
            output: their logits [rows, vocabulary], or their last hidden states [rows, size] if `forward.states`.

        Returns:
            A function that waits for the pass, and returns the tokens and their log-probabilities.
        """
        find = partial(self.allowed, rows)
        masks = find if self._thread is None else self._thread.submit(find).result
        if output.device.type != "cuda":
            return lambda: self._chosen(masks(), output)
        kept = output.clone()  # the output of the next pass may be written to the same memory
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        beside = self._beside = self._beside or torch.cuda.Stream(output.device, priority=-1)  # type: ignore[no-untyped-call]

        def wait() -> tuple[list[int], list[float]]:
            allowed = masks()
            with torch.cuda.stream(beside):
                beside.wait_event(done)
                return self._chosen(allowed, kept)

        return wait

    def _chosen(self, allowed: Allowed | None, output: Tensor) -> tuple[list[int], list[float]]:
        if allowed is None:
            values = output.float()
            chosen = values.argmax(-1, keepdim=True)
            tokens, total = chosen, values.logsumexp(-1)
        else:
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
        both = torch.stack([tokens[:, 0].double(), logprobs.double()]).tolist()  # one copy; a double is exact for ids
        return [int(token) for token in both[0]], both[1]

    def allowed(self, rows: Sequence[Row]) -> Allowed | None:
        """Return the tokens that the grammars allow next; None where there are no grammars.

        A row whose grammar has failed may only end.
        """
        if self._rules.constraint is None:
            return None
        began = time.perf_counter()
        matchers = []
        for row in rows:
            try:
                matchers.append(row.guide.matcher if row.guide else self._end_only)
            except Exception as error:  # for example, the grammar exceeds llguidance's limits
                row.fail(error)
                matchers.append(self._end_only)
        allowed = self._rules.constraint.allowed(matchers)
        self._effort.grammar_seconds += time.perf_counter() - began
        return allowed


def _sent(values: NDArray[np.int64] | NDArray[np.bool_], device: torch.device) -> Tensor:
    """Copy an array to `device` without waiting for the GPU."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
