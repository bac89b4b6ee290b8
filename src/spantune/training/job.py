"""The training job: from a recipe to a run folder with the best adapter, its figures and a report.

Everything that can be wrong is checked before the folder is made. The best adapter is the one with the best F1 of
real extraction on the dev documents. A run that a signal stopped or a machine killed goes on from its newest whole
checkpoint, once what came after is taken back; one whose model, data or task changed is refused.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainingArguments, set_seed

from spantune.core import Config, ConfigError, DataError, Document, Extraction, Prediction, StopRequest, bar, console
from spantune.data import formats
from spantune.encoding import layout
from spantune.extraction import Evaluation, Extractor, evaluate, save_predictions
from spantune.metrics import Scores, score
from spantune.models import Loaded, attach, compile_layers, load, load_adapter, pinned
from spantune.report import report_run
from spantune.runs import (
    BestAdapter,
    Checkpoints,
    Claim,
    Trackers,
    logging_to,
    open_trackers,
    read_metrics,
    require_free,
    require_trackers,
    rewind,
    step_of,
)
from spantune.training.callbacks import ForecastCallback, SafetyCallback
from spantune.training.collator import Collator
from spantune.training.estimate import Estimate, checkpointing, compiling
from spantune.training.fingerprint import environment, fingerprint, require_unchanged
from spantune.training.loss import PackTensors, check_head, tensors
from spantune.training.plan import make_plan, require
from spantune.training.preparation import Prepared, prepare
from spantune.training.schedule import Clock, read_clock
from spantune.training.trainer import PackTrainer, StepCallback

SLICE = 8
"""Fewest dev documents that steer."""

OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_bnb_8bit", "paged_adamw_8bit": "paged_adamw_8bit"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What a finished run reached on its test documents, before and after training."""

    folder: Path
    before: Scores | None
    after: Evaluation
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The closing JSON line: run, f1_before, f1, its interval and seconds."""
        micro = self.after.scores.micro
        return {
            "run": str(self.folder),
            "f1_before": round(self.before.micro.f1, 4) if self.before else None,
            "f1": round(micro.f1, 4),
            "f1_low": round(micro.f1_low or 0.0, 4),
            "f1_high": round(micro.f1_high or 0.0, 4),
            "seconds": round(self.seconds, 1),
        }


def train(recipe: Config, resume: Path | None = None) -> Result:
    """Run a recipe, or go on with the run in `resume`.

    A first SIGINT or SIGTERM ends the run in order and saved, with a KeyboardInterrupt; a second one at once.

    Raises:
        SpantuneError: the recipe, the data, the model or the run folder cannot be used; nothing is left behind.
    """
    started = time.perf_counter()
    folder = resume or require_free(recipe)
    require_trackers(recipe.track)
    _require_optimizer(recipe)
    set_seed(recipe.run.seed)
    prepared = prepare(recipe)
    plan = make_plan(prepared)
    require(plan)
    with Claim(folder, resume=resume is not None) as claim:
        recorded = environment() | fingerprint(prepared)
        changes = require_unchanged(folder, recorded) if resume else []
        loaded = load(recipe.model)
        model, found = attach(loaded.model, recipe.lora)
        if recipe.train.pack == "shared":
            _check_packs(model, prepared, loaded)
        if not resume:
            claim.create(_pinned(recipe), prepared.task, recorded)
        with logging_to(folder):
            for note in prepared.splits.notes if not resume else changes:
                log.log(logging.WARNING if resume else logging.INFO, note)
            log.info("LoRA on %s: %.0f %% of the linear weights", ", ".join(found.matched), 100 * found.share)
            job = _Job(recipe, prepared, replace(loaded, model=model), folder, plan.estimate)
            after = job.run(job.rewound() if resume else None)
    return Result(folder, job.before, after, time.perf_counter() - started)


def _pinned(recipe: Config) -> Config:
    """The recipe with the commit of a model from a hub, so that a resume, or the adapter, never meets another model."""
    model = recipe.model.model_copy(update={"source": pinned(recipe.model.source)})
    return recipe.model_copy(update={"model": model})


class _Job:
    """One run under way: model, folder, trackers and the best adapter so far."""

    def __init__(self, recipe: Config, prepared: Prepared, loaded: Loaded, folder: Path, estimate: Estimate):
        self.recipe, self.prepared, self.loaded, self.folder, self.estimate = recipe, prepared, loaded, folder, estimate
        self.stop = StopRequest()
        self.checkpoints = Checkpoints(folder / "checkpoints", recipe.train.keep_checkpoints)
        self.best = BestAdapter(folder, loaded.model, self._complete)
        self.extractor = self._extractor(loaded.model)
        self.before: Scores | None = None
        self.steering: list[Document] = []
        self.per_document = 0.0  # seconds that extraction takes
        self.trained = 0.0  # seconds

    def rewound(self) -> Path | None:
        """The checkpoint to go on from, after everything later is taken back; None where the run begins anew."""
        checkpoint = self.checkpoints.newest()
        step = step_of(checkpoint) if checkpoint else -1
        self.checkpoints.discard_after(step)
        rewind(self.folder, step)
        self.best.settle([r for r in _of_dev(read_metrics(self.folder)) if r["f1"] is not None], self.checkpoints)
        self.checkpoints.best = self.best.step
        log.info("going on %s", f"from {checkpoint.name}" if checkpoint else "from the beginning")
        return checkpoint

    def run(self, checkpoint: Path | None) -> Evaluation:
        """Train from the start or from a checkpoint, then measure; a signal or an error closes the trackers."""
        splits = self.prepared.splits
        gold = {"dev": splits.dev, "test": splits.test}
        self.trackers: Trackers = open_trackers(self.recipe, self.folder, gold, self.prepared.task.codes)
        state = "crashed"
        with self.stop.listening():
            try:
                if self.recipe.train.eval_before:
                    self.before = self._recorded() if checkpoint else self._measure_test(0).scores
                with bar() as progress:
                    self._train(checkpoint, progress)
                after = self._finish()
                state = "success"
            except KeyboardInterrupt:
                state = "aborted"
                console().print(self._stopped(), markup=False)
                raise
            finally:
                if state != "success":
                    self.trackers.finish(state)
        return after

    def _train(self, checkpoint: Path | None, progress: Any) -> None:
        """Train as far as is left; an evaluation that a stop has cut off comes first."""
        self.trainer = trainer = self._trainer(checkpoint, progress)
        step = step_of(checkpoint) if checkpoint else 0
        if checkpoint and trainer.owes_evaluation(step) and step not in self._steered():
            trainer.evaluate_at(checkpoint, step)
            self.stop.check()
        if trainer.progress(step) < 1.0 and not trainer.is_out_of_patience:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            self.stop.check()
        self.trained = trainer.clock.seconds

    def steer(self, step: int) -> Mapping[str, float]:
        """Extract the dev slice, record it, and keep the adapter when it is the best so far."""
        self.steering = self.steering or self.prepared.steering(self._slice_size(self.trainer, step))
        values = self._measure(self.steering, "dev", step).values()
        if self.best.offer(step, values):
            self.checkpoints.best = step
        return values

    def _slice_size(self, trainer: PackTrainer, step: int) -> int:
        """How many dev documents steer: those that did before a resume, or what `eval_share` of the time allows."""
        settings, wanted = self.recipe.train, min(self.recipe.train.eval_documents, len(self.prepared.splits.dev))
        before = [record["documents"] for record in _of_dev(read_metrics(self.folder))]
        if before or not self.per_document:
            return before[-1] if before else wanted
        progress = trainer.progress(step)  # by the clock where that ends the run before its last step does
        evaluations = math.ceil(step / progress / trainer.args.eval_steps)
        seconds = settings.eval_share * trainer.clock.expected(progress) / evaluations
        size = max(min(SLICE, wanted), min(wanted, int(seconds / self.per_document)))
        if size < wanted:
            log.info("%d of %d dev documents steer: train.eval_share=%g of the time", size, wanted, settings.eval_share)
        return size

    def _extractor(self, model: Any) -> Extractor:
        on_choices = self.recipe.train.on_choices
        return _Stoppable(self.stop, model, self.prepared.encoder, self.recipe.extract, on_choices=on_choices)

    def _finish(self) -> Evaluation:
        """Measure the best adapter on the test documents and write the report."""
        adapter = self.best.require()
        base = self.loaded.model.unload()
        model = load_adapter(base, adapter, merge=not self.loaded.quantized)
        self.extractor = self._extractor(model)
        records = read_metrics(self.folder)
        step = max((record["step"] for record in records), default=0)
        after = self._measure_test(step, training_seconds=round(self.trained, 1))
        report_run(self.folder, self.prepared.splits)
        self.trackers.attach(step, self.folder / "report.html")
        self.trackers.finish("success")
        return after

    def _recorded(self) -> Scores | None:
        """The untrained model's scores, from the predictions that the run kept before it was killed."""
        path = self.folder / "predictions" / "test-0.jsonl"
        if not path.is_file():
            return None
        return score(self.prepared.splits.test, formats.read(path, "native").documents, self.prepared.task.codes)

    def _measure_test(self, step: int, **more: float) -> Evaluation:
        return self._measure(list(self.prepared.splits.test), "test", step, **more)

    def _measure(self, documents: list[Any], split: str, step: int, **more: float) -> Evaluation:
        evaluation = evaluate(self.extractor, documents, f"extract {split}")
        self.per_document = evaluation.seconds / len(documents)
        self._keep_predictions(split, step, evaluation)
        self.trackers.measuring(step, split, evaluation.values() | more, evaluation.gold, evaluation.predicted)
        return evaluation

    def _keep_predictions(self, split: str, step: int, evaluation: Evaluation) -> None:
        """Write what was extracted; a disk that refuses it costs these predictions and not the run."""
        try:
            save_predictions(self.folder / "predictions" / f"{split}-{step}.jsonl", evaluation.extractions)
        except (DataError, OSError) as error:
            log.warning("step %d: the predictions on %s are not kept: %s", step, split, error)

    def _complete(self, adapter: Path) -> None:
        """What makes an adapter folder whole beside the adapter: tokenizer and task."""
        self.loaded.tokenizer.save_pretrained(str(adapter))
        self.prepared.task.save(adapter)

    def _steered(self) -> set[int]:
        return {record["step"] for record in _of_dev(read_metrics(self.folder))}

    def _stopped(self) -> str:
        """What a stopped run has reached, and how it goes on."""
        records, last = read_metrics(self.folder), self.checkpoints.newest()
        steps = [record["step"] for record in records if record["split"] == "train"]
        reached = f"stopped after step {max(steps)}" if steps else "stopped before the first step"
        best = f"; best dev F1 {self.best.f1:.4f} at step {self.best.step}" if self.best.step is not None else ""
        saved = f"; saved at step {step_of(last)}" if last else "; nothing is saved yet"
        return f"{reached}{best}{saved}; go on with: spantune train --resume {self.folder}"

    def _trainer(self, checkpoint: Path | None, progress: Any) -> PackTrainer:
        settings, model = self.recipe.train, self.loaded.model
        if compiling(self.recipe, self.loaded.device):
            compile_layers(model, settings.keep)
            model.enable_input_require_grads()  # the first layer is then compiled as the others are
        elif checkpointing(self.recipe, self.loaded.device):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        per_epoch = -(-len(self.prepared.examples) // settings.batch_examples)
        total = settings.max_steps or max(1, round(settings.epochs * per_epoch))
        evals = settings.eval_steps or max(1, total // 4)
        arguments = TrainingArguments(
            output_dir=str(self.folder / "checkpoints"),
            per_device_train_batch_size=settings.batch_examples,
            learning_rate=settings.learning_rate,
            max_steps=total,
            optim=OPTIMIZERS[settings.optimizer],
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            logging_steps=settings.log_steps,
            logging_nan_inf_filter=False,
            eval_strategy="steps",
            eval_steps=evals,
            save_strategy="steps",
            save_steps=settings.save_steps or evals,
            seed=self.recipe.run.seed,
            use_cpu=self.loaded.device.type == "cpu",
            disable_tqdm=True,
            report_to=[],
            remove_unused_columns=False,
            dataloader_pin_memory=self.loaded.device.type == "cuda",
        )
        arguments._n_gpu = min(1, arguments.n_gpu)  # one process drives one GPU; DataParallel would split packs
        budget = self.prepared.pack_tokens(self.loaded.device.type)
        collator = Collator(settings, self.prepared.prefix, budget, self.loaded.tokenizer.pad_token_id or 0)
        collator.restore(read_metrics(self.folder))
        trainer = PackTrainer(
            model=model,
            args=arguments,
            train_dataset=list(self.prepared.examples),
            eval_dataset=list(self.prepared.splits.dev),
            data_collator=collator,
            evaluation=self.steer,
            settings=settings,
            clock=Clock(read_clock(checkpoint)),
            checkpoints=self.checkpoints,
            lora_plus=self.recipe.lora.plus_ratio,
        )
        trainer.go_on_from(read_metrics(self.folder))
        trainer.add_callback(StepCallback(trainer, self.trackers.metrics, progress))
        trainer.add_callback(SafetyCallback(self.stop, self.checkpoints, self.best))
        if not any(record["split"] == "plan" for record in read_metrics(self.folder)):
            clock = trainer.clock
            trainer.add_callback(ForecastCallback(self.estimate, lambda: clock.seconds, self.trackers.metrics))
        return trainer


class _Stoppable(Extractor):
    """An extractor that ends between two documents once the run is asked to stop."""

    def __init__(self, stop: StopRequest, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._stop = stop

    def stream(self, documents: Iterable[Prediction], *, strict: bool = True) -> Iterator[Extraction]:
        """As an Extractor does; raises Stopped."""
        return self._stop.watch(super().stream(documents, strict=strict))


def _require_optimizer(recipe: Config) -> None:
    if recipe.train.optimizer != "adamw" and find_spec("bitsandbytes") is None:
        raise ConfigError(
            f'train.optimizer={recipe.train.optimizer} needs bitsandbytes: pip install "spantune[bitsandbytes]"'
        )


def _check_packs(model: Any, prepared: Prepared, loaded: Loaded) -> None:
    """One small pack through the model, so that a head of an unknown kind is refused before the run."""
    pack = layout(prepared.prefix, prepared.examples[:2])
    check_head(model.eval(), PackTensors(**tensors(pack)).to(loaded.device), loaded.dtype)


def _of_dev(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of the evaluations that steer."""
    return [record for record in records if record.get("split") == "dev"]
