"""A guard against steps whose loss or gradient is not finite, and a warning of losses that jump.

A step with such a loss or gradient would ruin the weights. `train.on_nan` says whether the run stops or the step is
skipped; the message names the documents of the step, but not which of them is the cause. A run that skips steps stops
after more than MOST_SKIPPED of them in a row. If the loss jumps, a warning is logged and the step is taken.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Literal

from spantune.core import RunError

WINDOW = 32  # the number of recent losses that a new loss is compared with
FEWEST = 8  # with fewer recent losses there is no warning of a jump
LEARNT = 0.1  # nats per token; there is no warning below it, since such a step hardly changes the weights
MOST_SKIPPED = 5  # the most steps that are skipped in a row
MOST_NAMED = 20  # the most documents that a message names

log = logging.getLogger(__name__)


class StepGuard:
    """Watches the losses and gradient norms of a run.

    Args:
        on_nan: `stop` the run at a step that is not finite, or `skip` the step.
        losses: the losses before a resume, oldest first.
    """

    def __init__(self, on_nan: Literal["stop", "skip"], losses: Iterable[float] = ()):
        self.on_nan = on_nan
        self._skipped = self._without_loss = 0
        self._skipped_in_a_row = 0
        self._recent: deque[float] = deque(losses, WINDOW)

    def accepts(self, loss: float, step: int, documents: Sequence[str]) -> bool:
        """Whether a step with this loss may change the weights; a loss far above the recent ones is logged.

        Args:
            loss: the loss per target token or example.
            step: the number of the step, for messages.
            documents: the ids of the step's documents, for messages.

        Raises:
            RunError: the loss is not finite, and `on_nan` is `stop` or too many such steps came in a row.
        """
        if not math.isfinite(loss):
            self._refuse(f"the loss became {loss}", step, documents)
            self._without_loss += 1
            return False
        typical = median(self._recent) if len(self._recent) >= FEWEST else math.inf
        spread = median(abs(recent - typical) for recent in self._recent) if math.isfinite(typical) else 0.0
        if loss > max(3 * typical, LEARNT) and loss - typical > 6 * spread:
            log.warning(
                "step %d: the loss jumped to %.4g; the median of the last %d steps is %.4g; documents: %s",
                step, loss, len(self._recent), typical, _names(documents),
            )  # fmt: skip
        self._recent.append(loss)
        return True

    def accepts_gradient(self, norm: float, step: int, documents: Sequence[str]) -> bool:
        """Whether a step with this gradient norm may change the weights.

        Raises:
            RunError: the norm is not finite, and `on_nan` is `stop` or too many such steps came in a row.
        """
        if not math.isfinite(norm):
            self._refuse(f"the gradient norm became {norm}", step, documents)
            return False
        self._skipped_in_a_row = 0
        return True

    def taken(self) -> tuple[int, int]:
        """Return how many steps were skipped since the last call, and how many of them had no finite loss."""
        counts = self._skipped, self._without_loss
        self._skipped = self._without_loss = 0
        return counts

    def _refuse(self, problem: str, step: int, documents: Sequence[str]) -> None:
        self._skipped_in_a_row += 1
        is_hopeless = self.on_nan == "skip" and self._skipped_in_a_row > MOST_SKIPPED
        if self.on_nan == "stop" or is_hopeless:
            before = f", as at the {MOST_SKIPPED} steps before" if is_hopeless else ""
            remedy = "" if is_hopeless else " or set train.on_nan=skip"
            raise RunError(
                f"{problem} at step {step}{before}; documents: {_names(documents)}; look at them, lower "
                f"train.learning_rate{remedy} in the config.yaml of the run, and resume from the last checkpoint"
            )
        self._skipped += 1
        log.warning("step %d is skipped: %s; documents: %s", step, problem, _names(documents))


def _names(documents: Sequence[str]) -> str:
    more = f" and {len(documents) - MOST_NAMED} more" if len(documents) > MOST_NAMED else ""
    return ", ".join(documents[:MOST_NAMED]) + more
