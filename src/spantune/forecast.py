"""What was predicted against what the first steps of a run measured: memory and time, once a run.

It goes to `run.log` and, as the split `plan`, to `metrics.jsonl`. The steps before it are not counted: they compile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spantune.estimate import GIB, Estimate

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
