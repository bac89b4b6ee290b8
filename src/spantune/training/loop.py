"""The training loop: steps, their lines in `metrics.jsonl`, evaluations on dev documents, and checkpoints.

A step takes `batch_examples` examples, in an order that depends on the seed only. The first steps may predict masked
tokens (`train.masked_epochs`); after them the order, the schedule and the optimizer begin again, for the task itself.
After a step come, in this order: its line in `metrics.jsonl`, an evaluation, and a checkpoint, if they are due. So no
line covers both a step before a resume and a step after it, and a checkpoint holds the result of the evaluation. If a
stop is requested, also during an evaluation, the loop writes a checkpoint and ends; an evaluation that was interrupted
is repeated when the run resumes.

Several processes go through the loop together. After each step they exchange requests to stop, the limits that memory
allows, and the progress by the clock of rank 0. So all of them decide the same.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from spantune.core import Stopped, StopRequest, config
from spantune.encoding import Example, SpanExample
from spantune.models import load_trained, release_graphs, save_trained
from spantune.runs import BestAdapter, Checkpoints, step_of
from spantune.training.collator import Batch
from spantune.training.estimate import Estimate
from spantune.training.line import TrainingLine
from spantune.training.masked import mask
from spantune.training.memory import GIB
from spantune.training.nan_guard import StepGuard
from spantune.training.progress import TrainingView
from spantune.training.schedule import Clock, ExampleOrder, Schedule, masked_steps, total_steps
from spantune.training.step import StepResult, StepRunner

OPTIMIZER_FILE = "optimizer.pt"
RANDOM_STATE_FILE = "random_state.pt"
WARM_STEPS, MEASURED_STEPS = 2, 3  # the steps after the first WARM_STEPS are timed and compared with the estimate
SEED_STRIDE = 1_000_003  # times the run's seed, so that runs with different seeds mask different tokens

log = logging.getLogger(__name__)

Values = Mapping[str, float]


@dataclass(frozen=True)
class Intervals:
    """The number of steps of a run, and the intervals between log lines, evaluations and checkpoints, in steps.

    The first `masked` steps of `total` predict masked tokens; there are no evaluations in them.
    """

    total: int
    log: int
    evaluate: int
    save: int
    masked: int = 0

    @classmethod
    def of(cls, settings: config.Train, examples: int) -> Intervals:
        """Return the intervals for the recipe's section `train` and the number of training examples."""
        own, masked = total_steps(settings, examples), masked_steps(settings, examples)
        evaluate = settings.eval_steps or max(1, own // 4)
        return cls(masked + own, settings.log_steps, evaluate, settings.save_steps or evaluate, masked)

    def is_evaluation(self, step: int) -> bool:
        """Whether an evaluation is due after `step` steps; `step` is at least 1."""
        return step > self.masked and (step - self.masked) % self.evaluate == 0


@dataclass(frozen=True)
class Services:
    """The objects and functions that the loop uses and that belong to its caller.

    Attributes:
        checkpoints: the checkpoints of the run.
        best: the folder of the best adapter.
        stop: whether a signal asks the run to stop.
        evaluate: extracts the dev documents, records their figures and returns them; its arguments are the step and the
            seconds that the evaluation may take.
        record: writes a line of `metrics.jsonl`; its arguments are step, values and split.
        estimate: the predicted time and memory, with which the first steps are compared; None for no comparison.
        view: shows the training; None to show nothing.
        begins_trained: whether the run begins with a trained adapter. Then the model is also evaluated before the first
            step, so that the best adapter is never worse than the one at the beginning.
        placeholder: the id of the token that replaces masked tokens.
    """

    checkpoints: Checkpoints
    best: BestAdapter
    stop: StopRequest
    evaluate: Callable[[int, float], Values]
    record: Callable[[int, Values, str], None]
    estimate: Estimate | None = None
    view: TrainingView | None = None
    begins_trained: bool = False
    placeholder: int = 0


class TrainingLoop:
    """Trains a model from the step that it has reached to the last one.

    Args:
        runner: takes the steps.
        examples: all training examples.
        settings: the recipe's section `train`.
        clock: counts the run's training seconds.
        services: the objects and functions of the caller that the loop uses.
        seed: decides the order of the examples and which tokens are masked.
    """

    def __init__(
        self,
        runner: StepRunner,
        examples: Sequence[Example] | Sequence[SpanExample],
        settings: config.Train,
        clock: Clock,
        services: Services,
        seed: int = 0,
    ):
        self.runner, self.examples, self.settings, self.clock, self.services = (
            runner, examples, settings, clock, services,
        )  # fmt: skip
        self.intervals = Intervals.of(settings, len(examples))
        self.schedule = Schedule(settings, self.intervals.total, clock, self.intervals.masked)
        self.batch_examples = config.filled(settings.batch_examples)
        self.order, self.seed = ExampleOrder(len(examples), self.batch_examples, seed), seed
        self.step = 0
        self.ranks = runner.ranks
        self.progress = 0.0
        """The share of the run that is over, in [0, 1]. It is set once after each step, since the clock goes on."""
        self.is_over = False
        """Whether the last step is done: whether `progress` is 1."""
        self.dev_f1s: list[float] = []
        self._is_stopping = False
        self._next_batch: Batch | None = None
        self._line = TrainingLine(runner, clock)

    def resume(self, checkpoint: Path | None, records: Sequence[Mapping[str, object]]) -> None:
        """Continue a run from what it has recorded and from its checkpoint.

        Args:
            checkpoint: the folder of the checkpoint; None if the run has none.
            records: the lines of `metrics.jsonl` up to the checkpoint.

        Raises:
            ModelError: the checkpoint's adapter is not one of this model.
            RunError: the checkpoint lacks the averages or fp32 copies of weights that the recipe needs now.
        """
        self.dev_f1s = _column(records, "dev", "f1")
        self.runner.guard = StepGuard(self.settings.on_nan, _column(records, "train", "loss"))
        self.runner.collator.restore(records)
        if checkpoint is None:
            return
        self.step = step_of(checkpoint)
        load_trained(self.runner.model, checkpoint)
        state = torch.load(checkpoint / OPTIMIZER_FILE, map_location=self.runner.device, weights_only=True)
        self.runner.restore(state)
        if self.step > self.intervals.masked:
            self.runner.first_step = self.intervals.masked
        if not self.ranks.is_main:  # the checkpoint holds the random state of rank 0
            return
        random_state = torch.load(checkpoint / RANDOM_STATE_FILE, weights_only=True)
        torch.set_rng_state(random_state["cpu"])
        if self.runner.device.type == "cuda" and "cuda" in random_state:
            torch.cuda.set_rng_state(random_state["cuda"], self.runner.device)

    def run(self, evaluated_steps: Sequence[int] = ()) -> None:
        """Train to the last step, or until patience or time is over or a stop is requested.

        Args:
            evaluated_steps: the steps whose evaluations are recorded. If an evaluation is due at the step of the
                checkpoint and is not among them, since a stop interrupted it, it is done first.
        """
        self._line.begin(self.step)
        self._agree()
        if self.services.view is not None:
            best = (self.services.best.step, self.services.best.f1)
            self.services.view.begin(self.step, self.intervals, self._seconds_left, best)
        if self.step > 0 and self._is_evaluation_due() and self.step not in evaluated_steps:
            self._evaluate()
        if self.services.begins_trained and self.step == 0 and 0 not in evaluated_steps and self._evaluate():
            self._save()
        while not (self.is_over or self.is_out_of_patience or self._is_stopping):
            batch = self._next_batch or self._batch(self.step)
            self._next_batch = None
            if self.step == self.intervals.masked > 0:
                self.runner.begin_again(self.step)
            factor = self.schedule.factor(self.step, None if self.ranks.size == 1 else self.progress)
            result = self.runner.run(batch, self.step + 1, factor, self._prepare_next)
            self.step += 1
            self._after(result)

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the last `train.patience` evaluations have brought no better F1."""
        f1s = self.dev_f1s
        waited = len(f1s) - 1 - f1s.index(max(f1s)) if f1s else 0
        return self.settings.patience is not None and waited >= self.settings.patience

    def _after(self, result: StepResult) -> None:
        """Do what follows a step, where it is due: line, evaluation and checkpoint."""
        services, intervals = self.services, self.intervals
        self._line.add(result, self._agree())
        if services.estimate is not None and not intervals.masked:  # masked steps are not what the estimate predicts
            self._compare_with_estimate(services.estimate)
        is_stopping = self._is_stopping
        is_evaluated = self._is_evaluation_due() and not is_stopping
        is_saved = (
            self.is_over or is_stopping or self.step % intervals.save == 0 or services.checkpoints.is_owed(self.step)
        )
        if services.view is not None:
            services.view.step(self.step, self.progress)
        if is_evaluated or is_saved or self.step % intervals.log == 0:
            self._record_line(is_evaluated=is_evaluated)
        if is_evaluated and self._evaluate():
            is_saved = True
        if is_saved:
            self._save()
        if self.is_out_of_patience and not self.is_over:
            log.info("no better F1 in %d evaluations; the run stops", self.settings.patience)

    def _agree(self) -> tuple[int, int]:
        """Set progress, request to stop and limit of parts to the same values on all ranks.

        Returns:
            The positions without padding and the positions of padding that all ranks have computed so far.
        """
        runner, stop = self.runner, self.services.stop
        (name, limit), *_ = runner.collator.limits.items()
        state = (self.schedule.progress(self.step), stop.number or 0, limit)
        rows = self.ranks.table([*state, runner.tokens, runner.padding, runner.memory_splits])
        shares, signals, limits, tokens, padding, splits = (list(column) for column in zip(*rows, strict=True))
        self.progress = shares[0]
        self.is_over = self.progress >= 1.0
        self._is_stopping = any(signals)  # set once per step, since a signal may come at any time
        stop.number = int(max(signals)) or stop.number
        if (lowest := int(min(limits))) < limit:
            place = "out of memory on rank %d at step %d: train.%s=%d on all ranks for the rest of the run"
            log.warning(place, limits.index(lowest), self.step, name, lowest)
            runner.collator.restore([{name: lowest}])
            runner.memory_splits = int(max(splits))
        return int(sum(tokens)), int(sum(padding))

    def _is_evaluation_due(self) -> bool:
        return self.intervals.is_evaluation(self.step) or self.is_over

    def _evaluate(self) -> bool:
        """Extract the dev documents and keep the adapter if it is the best; returns whether to write a checkpoint."""
        with self.runner.averaged():
            return self._evaluate_weights()

    def _evaluate_weights(self) -> bool:
        model = self.runner.model
        model.eval()
        release_graphs(model)  # extraction needs their memory
        began = time.monotonic()
        if self.services.view is not None:
            self.services.view.evaluates()
        try:
            with self.clock.stopped():
                values = self.services.evaluate(self.step, self._seconds_for_evaluation())
        except Stopped:  # the run is saved, and this evaluation is repeated when it resumes
            self._is_stopping = True
            return True
        finally:
            model.train()
        self.dev_f1s.append(values["f1"])
        is_best = self.ranks.from_main(lambda: self.services.best.offer(self.step, values))
        if is_best:
            self.services.checkpoints.best = self.step
        if self.services.view is not None:
            seconds = time.monotonic() - began
            self.services.view.evaluated(self.step, values, is_best=is_best, seconds=seconds)
        return is_best

    def _seconds_for_evaluation(self) -> float:
        """Return the seconds that one evaluation may take, if all together take `eval_share` of the training time."""
        if self.step == 0:
            return self._seconds_for_first_evaluation()
        own = self.step / self.progress - self.intervals.masked
        evaluations = math.ceil(own / self.intervals.evaluate)
        return self.settings.eval_share * self.clock.expected(self.progress) / evaluations

    def _seconds_for_first_evaluation(self) -> float:
        """Return the seconds for an evaluation before step 1, by the predicted training time and `max_minutes`.

        They are infinite if neither is known.
        """
        minutes, estimate = self.settings.max_minutes, self.services.estimate
        predicted = estimate.step_seconds * self.intervals.total if estimate else math.inf
        expected = min(predicted, 60 * minutes if minutes is not None else math.inf)
        return self.settings.eval_share * expected / (1 + math.ceil(self.intervals.total / self.intervals.evaluate))

    def _save(self) -> None:
        """Write a checkpoint: adapter, optimizer, random state and clock."""
        if not self.ranks.is_main:
            return
        self.services.checkpoints.write(self.step, self._fill)
        self.services.best.retry()  # if the best adapter did not fit on the disk before, it may fit now

    def _fill(self, folder: Path) -> None:
        with self.runner.averaged():
            save_trained(self.runner.model, folder)
        torch.save(self.runner.state(), folder / OPTIMIZER_FILE)
        random_state = {"cpu": torch.get_rng_state()}
        if self.runner.device.type == "cuda":
            random_state["cuda"] = torch.cuda.get_rng_state(self.runner.device)
        torch.save(random_state, folder / RANDOM_STATE_FILE)
        self.clock.save(folder)

    def _record_line(self, *, is_evaluated: bool) -> None:
        """Write and show the line of `metrics.jsonl` on the steps since the last line."""
        is_masked = self.step <= self.intervals.masked
        epoch = self.order.epoch_after(self.schedule.of_kind(self.step - 1)[0] + 1)
        values = self._line.taken(self.step, epoch, self.batch_examples)
        self._record(values, "masked" if is_masked else "train")
        if self.services.view is not None:
            self.services.view.line(
                self.step, values, is_evaluated=is_evaluated, is_last=self.is_over or self._is_stopping
            )

    def _record(self, values: Values, split: str) -> None:
        if self.ranks.is_main:
            self.services.record(self.step, values, split)

    def _batch(self, step: int) -> Batch:
        """Return the batch of the step that follows `step` steps."""
        examples = [self.examples[place] for place in self.order.places(self.schedule.of_kind(step)[0])]
        if step >= self.intervals.masked:
            return self.runner.collator(examples)
        texts = cast("list[SpanExample]", examples)
        return self.runner.collator(mask(texts, self.services.placeholder, SEED_STRIDE * self.seed + step))

    def _prepare_next(self) -> None:
        """Make the batch of the next step while the device computes the present one."""
        if self.step + 1 < self.intervals.total:
            self._next_batch = self.runner.ready(self._batch(self.step + 1))

    def _seconds_left(self, step: int) -> float:
        """Return the training seconds that are left after `step` steps."""
        return self.clock.expected(self.schedule.progress(step)) - self.clock.seconds

    def _compare_with_estimate(self, estimate: Estimate) -> None:
        """Time some of the first steps, and record their time and memory with the predicted ones."""
        measured = self._line.first_steps(WARM_STEPS, MEASURED_STEPS)
        if measured is None:
            return
        predicted = estimate.step_seconds
        values = {"step_ms": round(1000 * measured, 1), "predicted_step_ms": round(1000 * predicted, 1)}
        log.info("%d steps: %.0f ms each, predicted %.0f", MEASURED_STEPS, *values.values())
        if torch.cuda.is_available():
            peak, total = torch.cuda.max_memory_allocated() / GIB, estimate.memory.total_gib
            values |= {"peak_gib": round(peak, 3), "predicted_gib": round(total, 3)}
            log.info("memory: %.1f GiB at most, predicted %.1f", peak, total)
        self._record(values, "plan")


def _column(records: Sequence[Mapping[str, object]], split: str, key: str) -> list[float]:
    """Return the values of `key` in the lines of a split, without those that are null."""
    values = (record[key] for record in records if record["split"] == split)
    return [float(str(value)) for value in values if value is not None]
