"""The progress of a run, and what depends on it: its clock, its learning rate and the order of its examples.

The clock is monotonic, so a change of the system time does not matter. It counts training only, and continues after a
resume from the seconds in the checkpoint. Progress is the larger of two shares: steps done, and minutes used. So the
learning rate is also low at the end of a run that `train.max_minutes` ends.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spantune.core import config

CLOCK_FILE = "clock.json"


class Clock:
    """Counts the seconds that a run has trained for, those before a resume included; evaluations are not counted.

    Args:
        before: the seconds of the run before this process.
    """

    def __init__(self, before: float = 0.0):
        self._before, self._started = before, time.monotonic()

    @property
    def seconds(self) -> float:
        """The seconds of training so far."""
        return self._before + time.monotonic() - self._started

    def expected(self, progress: float) -> float:
        """Return the seconds of training that the whole run will take, if the share `progress` of it is over now."""
        return self.seconds / progress if progress > 0 else math.inf

    def save(self, folder: Path) -> None:
        """Write the seconds into a checkpoint's folder, where `read_clock` finds them."""
        (folder / CLOCK_FILE).write_text(f"{self.seconds}\n", encoding="utf-8")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Do not count the time inside the block."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._started += time.monotonic() - began


def read_clock(checkpoint: Path | None) -> float:
    """Return the seconds of training that a checkpoint has recorded; 0 without a checkpoint."""
    path = checkpoint / CLOCK_FILE if checkpoint else None
    return float(path.read_text(encoding="utf-8")) if path and path.is_file() else 0.0


def total_steps(settings: config.Train, examples: int) -> int:
    """Return the optimizer steps of a run with this number of training examples, if no clock ends it earlier.

    The steps that predict masked tokens are not included.
    """
    if settings.max_steps is not None:
        return settings.max_steps
    per_epoch = -(-examples // config.filled(settings.batch_examples))
    return max(1, round(config.filled(settings.epochs) * per_epoch))


def masked_steps(settings: config.Train, examples: int) -> int:
    """Return the number of optimizer steps that predict masked tokens; they come before those of `total_steps`."""
    return round(settings.masked_epochs * -(-examples // config.filled(settings.batch_examples)))


class Schedule:
    """The factor on the peak learning rate, by progress; it begins again after the steps with masked tokens.

    Args:
        settings: the recipe's section `train`.
        total: the optimizer steps of the run, those with masked tokens included.
        clock: the run's clock.
        masked: how many of these steps predict masked tokens; they are the first ones.
    """

    def __init__(self, settings: config.Train, total: int, clock: Clock, masked: int = 0):
        self.settings, self.total, self.clock, self.masked = settings, max(1, total), clock, masked

    def progress(self, step: int) -> float:
        """The share of the run that is over after `step` steps, in [0, 1]."""
        share = step / self.total
        if self.settings.max_minutes is not None:
            share = max(share, self.clock.seconds / (60 * self.settings.max_minutes))
        return min(1.0, share)

    def of_kind(self, step: int) -> tuple[int, int]:
        """Count the steps of the same kind (with masked tokens, or not) as the step that follows `step` steps.

        Returns:
            How many of them come before that step, and how many there are in the run.
        """
        if step < self.masked:
            return step, self.masked
        return step - self.masked, self.total - self.masked

    def factor(self, step: int, progress: float | None = None) -> float:
        """Return the factor for the step that follows `step` steps, in [0, 1].

        Args:
            step: the number of steps that are done.
            progress: the share of the run that is over; None to compute it. Several ranks pass the value that they
                have agreed on.
        """
        progress, warmup = self.progress(step) if progress is None else progress, self.settings.warmup
        total = self.total
        if self.masked:
            step, total = self.of_kind(step)
            progress = step / total
        if warmup >= 1 and step < warmup:
            return (step + 1) / (math.ceil(warmup) + 1)
        if progress < warmup < 1:  # warm-up is a share of progress, so that it also ends in a run that the clock ends
            return (progress + 1 / total) / (warmup + 1 / total)
        if self.settings.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return 1 - progress if self.settings.schedule == "linear" else 1.0


class ExampleOrder:
    """The order in which steps take examples: each epoch has its own permutation, drawn from the seed and the epoch.

    Args:
        examples: the number of training examples.
        batch: the number of examples in a step; the last step of an epoch takes the remaining ones.
        seed: the seed of the run.
    """

    def __init__(self, examples: int, batch: int, seed: int):
        self.examples, self.batch, self.seed = examples, batch, seed
        self.steps_per_epoch = -(-examples // batch)
        self._epoch: int | None = None
        self._places: list[int] = []

    def places(self, step: int) -> list[int]:
        """Return the indices of the examples of the step that follows `step` steps."""
        import torch

        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self._epoch, self._places = epoch, torch.randperm(self.examples, generator=generator).tolist()
        return self._places[index * self.batch : (index + 1) * self.batch]

    def epoch_after(self, step: int) -> float:
        """Return the number of epochs that are over after `step` steps; `step` is at least 1."""
        epoch, index = divmod(step - 1, self.steps_per_epoch)
        return epoch + (index + 1) / self.steps_per_epoch
