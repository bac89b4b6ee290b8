"""transformers' Trainer over packs: one batch is one optimizer step of `batch_examples` examples.

The step's examples are packed (or, for comparison, padded), each pack is run forward and backward, and
the loss is normalised over all answer tokens, or examples, of the step. A step that does not fit into memory
is split and repeated. Evaluation is extraction: `evaluate` calls back into the job. The Trainer keeps what it is
good at: loop, optimizer, checkpoints, resume.
"""

from __future__ import annotations

import logging
import math
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_callback import PrinterCallback

from spantune.core import RunError, Stopped, config
from spantune.runs import Checkpoints
from spantune.training.collator import Collator
from spantune.training.loss import PackTensors, pack_loss
from spantune.training.nan_guard import StepGuard
from spantune.training.schedule import CLOCK_FILE, Clock, Schedule

log = logging.getLogger(__name__)


class PackTrainer(Trainer):
    """Trainer whose batch is a whole optimizer step and whose evaluation is extraction.

    Args:
        evaluation: called with the step; extracts, records and returns the figures.
        settings: the recipe's section.
        clock: what counts the minutes.
        checkpoints: where they are kept; in the Trainer's own folder when absent.
        lora_plus: how many times the learning rate of A that of B is.
    """

    def __init__(
        self,
        *args: Any,
        evaluation: Callable[[int], Mapping[str, float]],
        settings: config.Train,
        clock: Clock,
        checkpoints: Checkpoints | None = None,
        lora_plus: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.evaluation, self.settings, self.clock = evaluation, settings, clock
        self.schedule: Schedule | None = None
        self.f1s: list[float] = []
        self.guard = StepGuard(settings.on_nan)
        self.checkpoints = checkpoints or Checkpoints(Path(str(self.args.output_dir)), settings.keep_checkpoints)
        self._saving_to: Path | None = None
        self._documents: Sequence[str] = ()  # of the step under way
        self._accepted = True
        self._unlogged = 0  # steps
        self.tokens = self.padding = 0  # fed to the model so far, padding apart
        self.lora_plus = lora_plus
        self.splits = 0  # since they were last recorded
        self.remove_callback(PrinterCallback)
        self._autocast = self.model.get_input_embeddings().weight.dtype == torch.bfloat16
        self._trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._adapters = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]

    def progress(self, step: int) -> float:
        """Share of the run that is over after `step`; at 1 the Trainer would take one step more when resumed there."""
        return Schedule(self.settings, self.args.max_steps, self.clock).progress(step)

    def go_on_from(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Take up the F1s and losses of a run's lines of before."""
        self.f1s = [r["f1"] for r in records if r["split"] == "dev" and r["f1"] is not None]
        losses = [r["loss"] for r in records if r["split"] == "train" and r["loss"] is not None]
        self.guard = StepGuard(self.settings.on_nan, losses)

    def owes_evaluation(self, step: int) -> bool:
        """Whether the run is to be evaluated after `step`."""
        return step % self.args.eval_steps == 0 or self.progress(step) >= 1.0

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Run every pack of the step forward and backward; returns the loss a token (or an example) of the step."""
        if not model.training:  # setting it walks through all modules, while the GPU waits
            model.train()
        collator: Collator = self.data_collator
        if inputs["lowered"] != collator.lowered:  # it was made ready before a step was split
            inputs = collator(inputs["examples"])
        found = self._attempt(model, inputs)
        while not isinstance(found, Tensor):
            inputs = self._split(model, inputs, found)
            found = self._attempt(model, inputs)
        self.tokens += inputs["tokens"]
        self.padding += inputs["padding"]
        return self._watched(found, [example.id for example in inputs["examples"]])

    def _attempt(self, model: Any, inputs: dict[str, Any]) -> Tensor | dict[str, Any]:
        """The step's loss, or the first part that does not fit into memory."""
        inputs = self._prepare_inputs(inputs)
        summed = torch.zeros((), device=self.args.device)
        for part in inputs.get("packs") or inputs["rows"]:
            try:
                loss = self._part_loss(model, part, max(1, inputs["weight"]))
                self.accelerator.backward(loss)
            except torch.OutOfMemoryError:
                return part  # type: ignore[no-any-return]
            summed += loss.detach().float()
        return summed

    def _split(self, model: Any, inputs: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
        """The step again in smaller parts, as are all that follow, with the memory of the failed attempt freed.

        Raises:
            RunError: `part` is one example.
        """
        model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        collator: Collator = self.data_collator
        step = self.state.global_step + 1
        if not collator.lower(part):
            ids = part["ids"] if "ids" in part else part["input_ids"][0]
            name = next(example.id for example in inputs["examples"] if list(example.ids) == ids.tolist())
            raise RunError(
                f"out of memory at step {step}: document {name!r} ({len(ids)} tokens) does not fit by itself; set "
                "train.keep=none, model.base=fp8 or nf4, or a lower train.max_tokens with data.too_long=split"
            )
        self.splits += 1
        limit = ", ".join(f"train.{name}={value}" for name, value in collator.limits().items())
        log.warning("out of memory at step %d: it is split and repeated; %s for the rest of the run", step, limit)
        return collator(inputs["examples"])

    def create_optimizer(self, *args: Any) -> Any:
        """The Trainer's optimizer, or one whose rate is `lora_plus` times as high for B as for A (LoRA+)."""
        if self.lora_plus == 1.0 or self.optimizer is not None:  # type: ignore[has-type]
            return super().create_optimizer(*args)
        chosen, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer = create_loraplus_optimizer(
            self.model,
            chosen,
            loraplus_lr_ratio=self.lora_plus,
            loraplus_weight_decay=self.args.weight_decay,
            **options,
        )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Our schedule, which follows the clock where `max_minutes` is set."""
        if self.lr_scheduler is None:  # type: ignore[has-type]
            self.schedule = Schedule(self.settings, num_training_steps, self.clock)
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self.schedule.factor)
        return self.lr_scheduler

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Extract from the dev documents; the figures of the job under the Trainer's prefix."""
        control: Any = self.control  # type: ignore[has-type]
        self.model.eval()
        try:
            with self.clock.stopped():
                values = self.evaluation(self.state.global_step)
        except Stopped:  # the run is saved first, and measures here when it goes on
            control.should_training_stop = control.should_save = True
            control.should_evaluate = False
            return {}
        finally:
            self.model.train()
        metrics = {f"eval_{key}": value for key, value in values.items()}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, control, metrics)
        self.f1s.append(values["f1"])
        if self.checkpoints.best == self.state.global_step:
            self.control.should_save = True
        if self.is_out_of_patience:
            log.info("no better F1 in %d evaluations; the run stops", self.settings.patience)
            self.control.should_training_stop = True
        return metrics

    def evaluate_at(self, checkpoint: Path, step: int) -> None:
        """Make up for the evaluation of a checkpoint that a stop cut off."""
        self._load_from_checkpoint(str(checkpoint))
        self.state.global_step = step
        self.evaluate()

    @property
    def is_out_of_patience(self) -> bool:
        """Whether as many evaluations as `patience` says have brought no better F1."""
        waited = len(self.f1s) - 1 - self.f1s.index(max(self.f1s)) if self.f1s else 0
        return self.settings.patience is not None and waited >= self.settings.patience

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the mean loss over those steps that had one and the number of steps left out."""
        if "loss" in logs:
            left_out, unknown = self.guard.taken()
            steps, self._unlogged = self._unlogged, 0
            if left_out:
                logs["left_out"] = left_out
                logs["loss"] = logs["loss"] * steps / (steps - unknown) if steps > unknown else math.nan
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: the Trainer's estimate knows nothing of packs."""
        return 0

    def _watched(self, loss: Tensor, documents: Sequence[str]) -> Tensor:
        """`loss`, or nothing and no gradients where the step is left out."""
        self._documents, self._unlogged = documents, self._unlogged + 1
        self._accepted = self.guard.accepts(loss.item(), self.state.global_step + 1, documents)
        if self._accepted:
            return loss
        self.model.zero_grad(set_to_none=True)
        return torch.zeros_like(loss)

    def _clip_grad_norm(self, model: Any) -> Tensor:
        """Clip the gradients, or drop them where their norm is not finite: the optimizer then changes nothing."""
        norm: Tensor = self.accelerator.clip_grad_norm_(self._trainable, self.args.max_grad_norm)
        if self._accepted and not self.guard.accepts_gradient(float(norm), self.state.global_step + 1, self._documents):
            model.zero_grad(set_to_none=True)
        return norm

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving_to or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save as the Trainer does, under a hidden name first, with the clock that a resumed run goes on from."""
        save = super()._save_checkpoint

        def fill(folder: Path) -> None:
            self._saving_to = folder.parent
            try:
                save(model, trial)
            finally:
                self._saving_to = None
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle with paths of this machine
            (folder / CLOCK_FILE).write_text(f"{self.clock.seconds}\n", encoding="utf-8")

        self.checkpoints.write(self.state.global_step, fill)

    def _part_loss(self, model: Any, part: dict[str, Any], total: int) -> Tensor:
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self._autocast):
            if "ids" in part:
                dtype = torch.bfloat16 if self._autocast else torch.float32
                with self._casting_left_to_autocast():
                    return pack_loss(model, PackTensors(**part), dtype) / total
            loss: Tensor = model(**part, use_cache=False, num_items_in_batch=total).loss
            return loss

    @contextmanager
    def _casting_left_to_autocast(self) -> Iterator[None]:
        """PEFT's `disable_input_dtype_casting`, without its walks through all modules at every pack."""
        for module in self._adapters:
            module.cast_input_dtype_enabled = not self._autocast
        try:
            yield
        finally:
            for module in self._adapters:
                module.cast_input_dtype_enabled = True


class StepCallback(TrainerCallback):
    """Records each step, moves the bar and stops when time is up."""

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
            key: float(logs[key]) for key in ("loss", "learning_rate", "grad_norm", "epoch", "left_out") if key in logs
        }
        values["examples_per_s"] = round(examples / seconds, 3)
        values["step_ms"] = round(1000 * seconds / max(1, state.global_step - step), 1)
        values |= self._throughput(seconds) | _peak_memory()
        if self.trainer.splits:
            values |= {"memory_splits": self.trainer.splits, **self.trainer.data_collator.limits()}
            self.trainer.splits = 0
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


def _peak_memory() -> dict[str, float]:
    """The most that was in use so far, GiB: of the GPU, or of the process where there is none."""
    if torch.cuda.is_available():
        return {"peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3)}
    if sys.platform == "win32":
        return {}

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, but bytes on macOS
    return {"peak_rss_gib": round(peak / (2**30 if sys.platform == "darwin" else 2**20), 3)}
