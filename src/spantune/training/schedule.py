"""How far a run is, and what follows from it: its clock, its learning rate and the order of its examples.

The clock is monotonic and counts training only, so a system time that is set back changes nothing; it continues across
resumes from the seconds that a checkpoint holds. Progress is the larger of the shares of steps done and of minutes
used, so the learning rate of a run that `max_minutes` ends is low at its end too.
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
    """The seconds that a run has trained for, across resumes; evaluations do not count.

    Args:
        before: seconds of the run before this process.
    """

    def __init__(self, before: float = 0.0):
        self._before, self._started = before, time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self._before + time.monotonic() - self._started

    def expected(self, progress: float) -> float:
        """Seconds that the whole run will take, given that `progress`, a share of it, is over."""
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
    """The seconds that a checkpoint's run had trained for; 0 where there is no checkpoint."""
    path = checkpoint / CLOCK_FILE if checkpoint else None
    return float(path.read_text(encoding="utf-8")) if path and path.is_file() else 0.0


def total_steps(settings: config.Train, examples: int) -> int:
    """Return the optimizer steps of a run over so many training examples, if no clock ends it before."""
    if settings.max_steps is not None:
        return settings.max_steps
    per_epoch = -(-examples // config.filled(settings.batch_examples))
    return max(1, round(config.filled(settings.epochs) * per_epoch))


def masked_steps(settings: config.Train, examples: int) -> int:
    """Return the optimizer steps before those of `total_steps` in which masked tokens are predicted."""
    return round(settings.masked_epochs * -(-examples // config.filled(settings.batch_examples)))


class Schedule:
    """The factor on the peak learning rate, by progress; it begins again after the masked steps.

    Args:
        settings: the recipe's section: schedule, warm-up and `max_minutes`.
        total: optimizer steps of the run.
        clock: the run's clock.
        masked: how many of the steps, the first ones, predict masked tokens.
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
        """Of the steps of the same kind as the one that follows `step` steps: how many were before it, and all."""
        if step < self.masked:
            return step, self.masked
        return step - self.masked, self.total - self.masked

    def factor(self, step: int, progress: float | None = None) -> float:
        """The factor for the step that follows `step` steps, in [0, 1]; `progress` is what it has been found to be."""
        progress, warmup = self.progress(step) if progress is None else progress, self.settings.warmup
        total = self.total
        if self.masked:
            step, total = self.of_kind(step)
            progress = step / total
        if warmup >= 1 and step < warmup:
            return (step + 1) / (math.ceil(warmup) + 1)
        if progress < warmup < 1:  # a share of the run, so that a run that the clock ends is not all warm-up
            return (progress + 1 / total) / (warmup + 1 / total)
        if self.settings.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return 1 - progress if self.settings.schedule == "linear" else 1.0


class ExampleOrder:
    """Which examples a step takes: every epoch is a permutation of all of them, drawn from the seed and the epoch.

    Args:
        examples: how many there are.
        batch: how many a step takes; the last step of an epoch takes what remains.
        seed: the run's.
    """

    def __init__(self, examples: int, batch: int, seed: int):
        self.examples, self.batch, self.seed = examples, batch, seed
        self.steps_per_epoch = -(-examples // batch)
        self._epoch: int | None = None
        self._places: list[int] = []

    def places(self, step: int) -> list[int]:
        """The places of the examples of the step that follows `step` steps."""
        import torch

        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self._epoch, self._places = epoch, torch.randperm(self.examples, generator=generator).tolist()
        return self._places[index * self.batch : (index + 1) * self.batch]

    def epoch_after(self, step: int) -> float:
        """Epochs that are over after `step` steps, of which there is one at least."""
        epoch, index = divmod(step - 1, self.steps_per_epoch)
        return epoch + (index + 1) / self.steps_per_epoch
