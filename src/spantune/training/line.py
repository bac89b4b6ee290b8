"""What a training line in `metrics.jsonl` says of the steps since the line before it.

Tokens and splits are those of all processes that train together; memory is that of the first.
"""

from __future__ import annotations

import math
import resource
import sys

import torch

from spantune.training.estimate import GIB
from spantune.training.schedule import Clock
from spantune.training.step import StepResult, StepRunner


class TrainingLine:
    """What the training line says of the steps since the last one."""

    def __init__(self, runner: StepRunner, clock: Clock):
        self.runner, self.clock = runner, clock
        self._loss = torch.zeros((), device=runner.device)
        self._result: StepResult | None = None
        self._steps_seen, self._warm_since = 0, 0.0
        self.positions = (runner.tokens, runner.padding)
        """Positions and padding of all processes so far."""
        self.begin(0)

    def begin(self, step: int) -> None:
        """Count from `step`, now."""
        self._step, self._seconds = step, self.clock.seconds
        self._positions = self.positions

    def add(self, result: StepResult, positions: tuple[int, int]) -> None:
        """Count a step, after which all processes have computed so many positions and so much padding."""
        self._loss += result.loss
        self._result = result
        self._steps_seen += 1
        self.positions = positions

    def first_steps(self, warm: int, measured: int) -> float | None:
        """Seconds a step of the `measured` steps after the first `warm`, once they are over; else None."""
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
        """The values of the line after `step`; counting begins anew."""
        assert self._result is not None
        steps = step - self._step
        seconds = max(1e-9, self.clock.seconds - self._seconds)
        tokens, padding = (now - before for now, before in zip(self.positions, self._positions, strict=True))
        skipped, unknown = self.runner.guard.taken()
        loss = self._loss.item() / steps
        if skipped:  # the mean over the steps that had a loss
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
    """The most memory that was in use so far, GiB: of the GPU, or of the process where there is none."""
    if torch.cuda.is_available():
        return {"peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 3)}
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return {"peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB, 3)}
