"""The figures of a training line in `metrics.jsonl`, which covers the steps since the line before it.

Tokens and splits for want of memory are those of all processes that train together; memory is that of rank 0.
"""

from __future__ import annotations

import math
import resource
import sys

import torch

from spantune.training.memory import GIB
from spantune.training.schedule import Clock
from spantune.training.step import StepResult, StepRunner


class TrainingLine:
    """Collects the figures of the steps since the last training line.

    Args:
        runner: takes the steps.
        clock: counts the seconds of training.
    """

    def __init__(self, runner: StepRunner, clock: Clock):
        self.runner, self.clock = runner, clock
        self._loss = torch.zeros((), device=runner.device)
        self._result: StepResult | None = None
        self._steps_seen, self._warm_since = 0, 0.0
        self.positions = (runner.tokens, runner.padding)
        """Positions without padding and positions of padding that all processes have computed so far."""
        self.begin(0)

    def begin(self, step: int) -> None:
        """Begin a line after `step` steps, now."""
        self._step, self._seconds = step, self.clock.seconds
        self._positions = self.positions

    def add(self, result: StepResult, positions: tuple[int, int]) -> None:
        """Add a step; `positions` are the positions and the padding that all processes have computed after it."""
        self._loss += result.loss
        self._result = result
        self._steps_seen += 1
        self.positions = positions

    def first_steps(self, warm: int, measured: int) -> float | None:
        """Return the mean seconds of the `measured` steps after the first `warm` steps.

        The caller asks after every step; the answer is None except after the last of these steps.
        """
        if self._steps_seen not in (warm, warm + measured):
            return None
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = self.clock.seconds
        if self._steps_seen == warm:
            self._warm_since = now
            return None
        return (now - self._warm_since) / measured

    def taken(self, step: int, epoch: float, batch_examples: int) -> dict[str, float]:
        """Return the figures of the line after step number `step`, and begin the next line.

        Args:
            step: the number of the step.
            epoch: the number of epochs that are over.
            batch_examples: the examples of a step.
        """
        assert self._result is not None
        steps = step - self._step
        seconds = max(1e-9, self.clock.seconds - self._seconds)
        tokens, padding = (now - before for now, before in zip(self.positions, self._positions, strict=True))
        skipped, unknown = self.runner.guard.taken()
        loss = self._loss.item() / steps
        if skipped:  # the mean is over the steps with a finite loss
            loss = loss * steps / (steps - unknown) if steps > unknown else math.nan
        values = {
            "loss": loss,
            "learning_rate": self._result.learning_rate,
            "grad_norm": self._result.gradient_norm,
            "epoch": epoch,
            **({"left_out": float(skipped)} if skipped else {}),
            "examples_per_s": round(steps * batch_examples / seconds, 3),
            "step_ms": round(1000 * seconds / steps, 1),
            "tokens_per_s": round(tokens / seconds, 1),
            "padding_share": round(padding / max(1, tokens + padding), 4),
            **_peak_memory(),
        }
        if self.runner.memory_splits:
            values |= {"memory_splits": self.runner.memory_splits, **self.runner.collator.limits}
            self.runner.memory_splits = 0
        self._loss.zero_()
        self.begin(step)
        return values


def _peak_memory() -> dict[str, float]:
    """Return the peak memory so far in GiB: of the GPU, or of the process if there is no GPU."""
    if torch.cuda.is_available():
        return {"peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 3)}
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return {"peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB, 3)}
