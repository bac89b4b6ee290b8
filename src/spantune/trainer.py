"""transformers' Trainer over packs: one batch is one optimizer step of `batch_examples` examples.

The step's examples are packed (or, for comparison, padded), each pack is run forward and backward, and
the loss is normalised over all answer tokens of the step. Evaluation is extraction: `evaluate` calls back
into the job. The Trainer keeps what it is good at: loop, optimizer, checkpoints, resume.
"""

from __future__ import annotations

import logging
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from spantune import config
from spantune.encode import Example
from spantune.errors import RunError
from spantune.loss import PackTensors, pack_loss, tensors
from spantune.pack import NO_TARGET, pack_examples

CLOCK_FILE = "clock.json"
log = logging.getLogger(__name__)


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


class Collator:
    """Turns the examples of a step into packs that share `prefix`, or into padded batches."""

    def __init__(self, settings: config.Train, prefix: Sequence[int], budget: int, padding: int):
        self.settings, self.prefix, self.budget, self.padding = settings, prefix, budget, padding

    def __call__(self, examples: list[Example]) -> dict[str, Any]:
        """`{"packs" | "rows": [tensors, …], "answer_tokens": n, "examples": n, "tokens": n, "padding": n}`."""
        if self.settings.pack == "shared":
            packs = pack_examples(examples, self.prefix, self.budget)
            count = sum(pack.answer_tokens for pack in packs)
            fed = {"tokens": sum(len(pack.ids) for pack in packs), "padding": 0}
            return {
                "packs": [tensors(pack) for pack in packs],
                "answer_tokens": count,
                "examples": len(examples),
                **fed,
            }
        size = self.settings.micro_batch
        rows = [self._padded(examples[i : i + size]) for i in range(0, len(examples), size)]
        count = sum(int((row["labels"] != NO_TARGET).sum()) for row in rows)
        tokens = sum(len(example.ids) for example in examples)
        fed = {"tokens": tokens, "padding": sum(row["input_ids"].numel() for row in rows) - tokens}
        return {"rows": rows, "answer_tokens": count, "examples": len(examples), **fed}

    def _padded(self, examples: list[Example]) -> dict[str, Tensor]:
        width = max(len(example.ids) for example in examples)

        def fill(row: Sequence[int], value: int) -> list[int]:
            return [*row, *[value] * (width - len(row))]

        labels = [[NO_TARGET] * min(e.answer_start, len(e.ids)) + list(e.ids[e.answer_start :]) for e in examples]
        return {
            "input_ids": torch.tensor([fill(example.ids, self.padding) for example in examples]),
            "attention_mask": torch.tensor([fill([1] * len(example.ids), 0) for example in examples]),
            "labels": torch.tensor([fill(row, NO_TARGET) for row in labels]),
        }


class PackTrainer(Trainer):
    """Trainer whose batch is a whole optimizer step and whose evaluation is extraction.

    Args:
        evaluation: called with the step; extracts, records and returns the figures.
        settings: the recipe's section.
        clock: what counts the minutes.
        f1s: those of the evaluations before a resume.
    """

    def __init__(
        self,
        *args: Any,
        evaluation: Callable[[int], Mapping[str, float]],
        settings: config.Train,
        clock: Clock,
        f1s: Sequence[float] = (),
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.evaluation, self.settings, self.clock = evaluation, settings, clock
        self.schedule: Schedule | None = None
        self.f1s = list(f1s)
        self.tokens = self.padding = 0  # fed to the model so far, padding apart
        self.remove_callback(PrinterCallback)
        self._autocast = self.model.get_input_embeddings().weight.dtype == torch.bfloat16

    def progress(self, step: int) -> float:
        """Share of the run that is over after `step`; at 1 the Trainer would take one step more when resumed there."""
        return Schedule(self.settings, self.args.max_steps, self.clock).progress(step)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Run every pack of the step forward and backward; returns the loss a token of the step."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        total = max(1, inputs["answer_tokens"])
        self.tokens += inputs["tokens"]
        self.padding += inputs["padding"]
        summed = torch.zeros((), device=self.args.device)
        for part in inputs.get("packs") or inputs["rows"]:
            loss = self._part_loss(model, part, total)
            self.accelerator.backward(loss)
            summed += loss.detach().float()
        if not torch.isfinite(summed):
            raise RunError(
                f"the loss became {summed.item()} at step {self.state.global_step + 1}; lower train.learning_rate and "
                "resume from the last checkpoint"
            )
        return summed

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Our schedule, which follows the clock where `max_minutes` is set."""
        if self.lr_scheduler is None:  # type: ignore[has-type]
            self.schedule = Schedule(self.settings, num_training_steps, self.clock)
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self.schedule.factor)
        return self.lr_scheduler

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Extract from the dev documents; the figures of the job under the Trainer's prefix."""
        self.model.eval()
        with self.clock.stopped():
            values = self.evaluation(self.state.global_step)
        self.model.train()
        metrics = {f"eval_{key}": value for key, value in values.items()}
        control: Any = self.control  # type: ignore[has-type]
        self.control = self.callback_handler.on_evaluate(self.args, self.state, control, metrics)
        self._follow(values["f1"])
        return metrics

    def _follow(self, f1: float) -> None:
        """Stop the run when as many evaluations as `patience` says have brought no better F1."""
        self.f1s.append(f1)
        waited = len(self.f1s) - 1 - self.f1s.index(max(self.f1s))
        if self.settings.patience is not None and waited >= self.settings.patience:
            log.info("no better F1 in %d evaluations; the run stops", waited)
            self.control.should_training_stop = True

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: the Trainer's estimate knows nothing of packs."""
        return 0

    def _part_loss(self, model: Any, part: dict[str, Tensor], total: int) -> Tensor:
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self._autocast):
            if "ids" in part:
                with disable_input_dtype_casting(model, active=self._autocast):
                    dtype = torch.bfloat16 if self._autocast else torch.float32
                    return pack_loss(model, PackTensors(**part), dtype) / total
            loss: Tensor = model(**part, use_cache=False, num_items_in_batch=total).loss
            return loss


class StepCallback(TrainerCallback):
    """Records each step, moves the bar, keeps the clock with the checkpoints and stops when time is up."""

    def __init__(self, trainer: PackTrainer, record: Callable[[int, dict[str, float]], None], progress: Any):
        self.trainer, self.record, self.progress = trainer, record, progress
        self.task: Any = None
        self._mark = (0, 0.0)
        self._fed = (0, 0)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the bar."""
        self.task = self.progress.add_task("train", total=state.max_steps, completed=state.global_step, note="")
        self._mark = (state.global_step, self.trainer.clock.seconds)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop, evaluate and save once the clock is past `max_minutes`."""
        self.progress.update(self.task, completed=state.global_step)
        schedule = self.trainer.schedule
        if schedule is not None and schedule.progress(state.global_step) >= 1.0 and state.global_step < state.max_steps:
            control.should_training_stop = control.should_evaluate = control.should_save = control.should_log = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        """Write the training line; the Trainer's closing summary is not one."""
        if "loss" not in logs:
            return
        step, since = self._mark
        now = self.trainer.clock.seconds
        seconds = max(1e-9, now - since)
        examples = (state.global_step - step) * args.per_device_train_batch_size
        values: dict[str, float] = {
            key: float(logs[key]) for key in ("loss", "learning_rate", "grad_norm", "epoch") if key in logs
        }
        values["examples_per_s"] = round(examples / seconds, 3)
        values["step_ms"] = round(1000 * seconds / max(1, state.global_step - step), 1)
        values |= self._throughput(seconds) | _peak_memory()
        self.record(state.global_step, values)
        self.progress.update(self.task, note=f"loss {values['loss']:.3f}")
        self._mark = (state.global_step, now)

    def _throughput(self, seconds: float) -> dict[str, float]:
        """Tokens a second since the last line, and the share of positions that were padding."""
        fed = (self.trainer.tokens, self.trainer.padding)
        tokens, padding = (now - before for now, before in zip(fed, self._fed, strict=True))
        self._fed = fed
        return {
            "tokens_per_s": round(tokens / seconds, 1),
            "padding_share": round(padding / max(1, tokens + padding), 4),
        }

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep the clock beside the checkpoint, so that a resumed run has the minutes it has left."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        (folder / CLOCK_FILE).write_text(f"{self.trainer.clock.seconds}\n", encoding="utf-8")


def _peak_memory() -> dict[str, float]:
    """The most that was in use so far, GiB: of the GPU, or of the process where there is none."""
    if torch.cuda.is_available():
        return {"peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, but bytes on macOS
    return {"peak_rss_gib": round(peak / (2**30 if sys.platform == "darwin" else 2**20), 3)}


def read_clock(checkpoint: Path | None) -> float:
    """The seconds that a checkpoint's run had trained for."""
    path = checkpoint / CLOCK_FILE if checkpoint else None
    return float(path.read_text(encoding="utf-8")) if path and path.is_file() else 0.0
