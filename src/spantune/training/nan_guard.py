"""What to do about a step whose loss is not a number, or far above what it was.

A step that is not finite would ruin the weights: the run stops, or the step is left out, as `train.on_nan` says; both
name the documents of its batch. A run whose every step is broken stops either way. A spike is only warned of: whether
a loss is too high is for people to judge. Documents are named as a batch: which of them is at fault is not found out.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Literal

from spantune.core import RunError

WINDOW = 32  # losses that a new one is compared with
FEWEST = 8  # of them, before anything is called a spike
MOST_LEFT_OUT = 5  # steps in a row
NAMED = 20  # documents in a message

log = logging.getLogger(__name__)


class StepGuard:
    """Watches the losses of a run.

    Args:
        on_nan: `stop` the run at a step that is not finite, or `skip` the step.
        losses: those before a resume, oldest first.
    """

    def __init__(self, on_nan: Literal["stop", "skip"], losses: Iterable[float] = ()):
        self.on_nan = on_nan
        self._left_out = self._unknown = 0
        self._in_a_row = 0
        self._recent: deque[float] = deque(losses, WINDOW)

    def accepts(self, loss: float, step: int, documents: Sequence[str]) -> bool:
        """Whether the step may change the weights; a finite loss far above the recent ones is warned of.

        Raises:
            RunError: it is not finite and the run is to stop, or nothing but such steps came.
        """
        if not math.isfinite(loss):
            self._refuse(f"the loss became {loss}", step, documents)
            self._unknown += 1
            return False
        middle = median(self._recent) if len(self._recent) >= FEWEST else math.inf
        spread = median(abs(other - middle) for other in self._recent) if math.isfinite(middle) else 0.0
        if loss > 3 * middle and loss - middle > 6 * spread:
            log.warning(
                "step %d: the loss jumped to %.4g; the median of the last %d steps is %.4g; documents: %s",
                step, loss, len(self._recent), middle, _names(documents),
            )  # fmt: skip
        self._recent.append(loss)
        return True

    def accepts_gradient(self, norm: float, step: int, documents: Sequence[str]) -> bool:
        """Whether a step with this gradient norm may change the weights; raises as `accepts`."""
        if not math.isfinite(norm):
            self._refuse(f"the gradient norm became {norm}", step, documents)
            return False
        self._in_a_row = 0
        return True

    def taken(self) -> tuple[int, int]:
        """How many steps were left out since the last call, and how many of them had no finite loss."""
        counts, self._left_out, self._unknown = (self._left_out, self._unknown), 0, 0
        return counts

    def _refuse(self, found: str, step: int, documents: Sequence[str]) -> None:
        self._in_a_row += 1
        many = self.on_nan == "skip" and self._in_a_row > MOST_LEFT_OUT
        if self.on_nan == "stop" or many:
            before = f", as at the {MOST_LEFT_OUT} steps before" if many else ""
            remedy = "" if many else " or set train.on_nan=skip"
            raise RunError(
                f"{found} at step {step}{before}; documents: {_names(documents)}; look at them, lower "
                f"train.learning_rate{remedy} in the config.yaml of the run, and resume from the last checkpoint"
            )
        self._left_out += 1
        log.warning("step %d is left out: %s; documents: %s", step, found, _names(documents))


def _names(documents: Sequence[str]) -> str:
    more = f" and {len(documents) - NAMED} more" if len(documents) > NAMED else ""
    return ", ".join(documents[:NAMED]) + more
