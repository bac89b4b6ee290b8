"""How far a run is, and how fast it learns there: a clock that counts training only, and a schedule that follows it.

The clock is monotonic: a machine's time that is set back changes nothing. It goes on across resumes from the seconds
that a checkpoint keeps. Progress is the further of steps done and minutes used, so a run that the clock ends ends low
too, and two such runs differ as their machines do.
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
    """Seconds that a run has trained for, across resumes; evaluations do not count."""

    def __init__(self, before: float = 0.0):
        self._before, self._started = before, time.monotonic()

    @property
    def seconds(self) -> float:
        """Elapsed training time."""
        return self._before + time.monotonic() - self._started

    def expected(self, progress: float) -> float:
        """Seconds that the whole run will take when `progress`, a share of it, is over."""
        return self.seconds / progress if progress > 0 else math.inf

    def save(self, folder: Path) -> None:
        """Write the seconds into a checkpoint's folder, where `read_clock` finds them."""
        (folder / CLOCK_FILE).write_text(f"{self.seconds}\n", encoding="utf-8")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What runs inside takes no time."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._started += time.monotonic() - began


class Schedule:
    """Learning-rate factor by progress, which is the further of steps done and minutes used.

    Args:
        settings: schedule, warm-up and `max_minutes`.
        total: optimizer steps of the run.
        clock: the run's clock.
    """

    def __init__(self, settings: config.Train, total: int, clock: Clock):
        self.settings, self.total, self.clock = settings, max(1, total), clock

    def progress(self, step: int) -> float:
        """Share of the run that is over, in [0, 1]."""
        done = step / self.total
        if self.settings.max_minutes is not None:
            done = max(done, self.clock.seconds / (60 * self.settings.max_minutes))
        return min(1.0, done)

    def factor(self, step: int) -> float:
        """Factor on the peak learning rate at `step`."""
        done, warmup = self.progress(step), self.settings.warmup
        if warmup >= 1 and step < warmup:
            return (step + 1) / (math.ceil(warmup) + 1)
        if done < warmup < 1:  # a share of the run, so that a run that the clock ends is not all warm-up
            return (done + 1 / self.total) / (warmup + 1 / self.total)
        if self.settings.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1 - done if self.settings.schedule == "linear" else 1.0


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


def read_clock(checkpoint: Path | None) -> float:
    """The seconds that a checkpoint's run had trained for."""
    path = checkpoint / CLOCK_FILE if checkpoint else None
    return float(path.read_text(encoding="utf-8")) if path and path.is_file() else 0.0
