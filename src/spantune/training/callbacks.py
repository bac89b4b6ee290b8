"""Between two steps: heed a request to stop, try again what the disk refused, and end the line of a saved step.

The Trainer asks its callbacks after every step, which is where a run can end without losing anything. Training lines
are written before a checkpoint is, so that a line never covers steps of both sides of a resume.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spantune.core import StopRequest
from spantune.runs import BestAdapter, Checkpoints
from spantune.training.estimate import GIB, Estimate


class SafetyCallback(TrainerCallback):
    """Ends a run in order and saves what is owed; the last of a Trainer's callbacks."""

    def __init__(self, stop: StopRequest, checkpoints: Checkpoints, best: BestAdapter):
        self.stop, self.checkpoints, self.best = stop, checkpoints, best

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save and stop once a signal asked for it; an evaluation that is due waits for the resume."""
        if self.stop:
            control.should_training_stop = control.should_save = True
            control.should_evaluate = False
        elif self.checkpoints.is_owed(state.global_step):
            control.should_save = True
        if control.should_save or control.should_evaluate:
            control.should_log = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After a checkpoint there may be room for the best adapter too."""
        self.best.retry()


WARM, MEASURED = 2, 3
log = logging.getLogger(__name__)


class ForecastCallback(TrainerCallback):
    """Measures `MEASURED` steps after the first `WARM` and records them beside the estimate.

    Args:
        estimate: what was predicted.
        seconds: the run's clock.
        record: takes step, values and split.
    """

    def __init__(
        self, estimate: Estimate, seconds: Callable[[], float], record: Callable[[int, Mapping[str, float], str], None]
    ):
        self.estimate, self.seconds, self.record = estimate, seconds, record
        self._steps, self._since = 0, 0.0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count the step, and report when enough have been."""
        self._steps += 1
        if self._steps == WARM:
            self._since = self._now()
        elif self._steps == WARM + MEASURED:
            self._report(state.global_step, (self._now() - self._since) / MEASURED)

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self.seconds()

    def _report(self, step: int, seconds: float) -> None:
        predicted = self.estimate.step_seconds
        values = {"step_ms": round(1000 * seconds, 1), "predicted_step_ms": round(1000 * predicted, 1)}
        log.info("%d steps: %.0f ms each, predicted %.0f", MEASURED, 1000 * seconds, 1000 * predicted)
        if torch.cuda.is_available():
            peak, total = torch.cuda.max_memory_allocated() / GIB, self.estimate.memory.total_gib
            values |= {"peak_gib": round(peak, 3), "predicted_gib": round(total, 3)}
            log.info("memory: %.1f GiB at most, predicted %.1f", peak, total)
        self.record(step, values, "plan")
