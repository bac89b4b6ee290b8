"""The training job: from a recipe to a run folder with the best adapter, its figures and a report.

Everything that can be wrong is checked before the folder is made. The best checkpoint is the one with
the best F1 of real extraction on the dev documents. A killed run resumes from its last checkpoint.
"""

from __future__ import annotations

import logging
import math
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainingArguments, set_seed

from spantune import formats, runs
from spantune.compilation import compile_layers
from spantune.config import Config
from spantune.document import Document
from spantune.errors import ConfigError
from spantune.estimate import Estimate, checkpointing, compiling
from spantune.evaluate import Evaluation, evaluate, save_predictions
from spantune.extract import Extractor
from spantune.forecast import ForecastCallback
from spantune.load import Loaded, load
from spantune.lora import attach, load_adapter
from spantune.loss import PackTensors, check_head, tensors
from spantune.metrics import Scores, score
from spantune.pack import layout
from spantune.plan import make_plan, require
from spantune.prepare import Prepared, prepare
from spantune.progress import bar, console
from spantune.run_report import report_run
from spantune.tracking import Trackers, open_trackers, read_metrics, require_key, rewind
from spantune.trainer import Clock, Collator, PackTrainer, StepCallback, read_clock

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

    Raises:
        SpantuneError: the recipe, the data, the model or the run folder cannot be used; nothing is left behind.
    """
    started = time.perf_counter()
    checkpoint = runs.last_checkpoint(resume) if resume else None
    if not resume:
        runs.require_free(recipe)
    require_key(recipe.track)
    _require_optimizer(recipe)
    set_seed(recipe.run.seed)
    prepared = prepare(recipe)
    plan = make_plan(prepared)
    require(plan)
    loaded = load(recipe.model)
    model, found = attach(loaded.model, recipe.lora)
    if recipe.train.pack == "shared":
        _check_packs(model, prepared, loaded)
    folder = resume or runs.create(recipe, prepared.task)
    if resume:
        rewind(folder, runs.step_of(checkpoint) if checkpoint else -1)
    job = _Job(recipe, prepared, replace(loaded, model=model), folder, plan.estimate)
    handler = runs.log_to(folder)
    try:
        for note in prepared.splits.notes:
            log.info(note)
        log.info("LoRA on %s: %.0f %% of the linear weights", ", ".join(found.matched), 100 * found.share)
        after = job.run(checkpoint)
    finally:
        logging.getLogger("spantune").removeHandler(handler)
        handler.close()
    return Result(folder, job.before, after, time.perf_counter() - started)


class _Job:
    """One run under way: model, folder, trackers and the best adapter so far."""

    def __init__(self, recipe: Config, prepared: Prepared, loaded: Loaded, folder: Path, estimate: Estimate):
        self.recipe, self.prepared, self.loaded, self.folder, self.estimate = recipe, prepared, loaded, folder, estimate
        self.trackers: Trackers = open_trackers(recipe, folder)
        self.extractor = self._extractor(loaded.model)
        self.before: Scores | None = None
        self.steering: list[Document] = []
        self.per_document = 0.0  # seconds that extraction takes
        self.trained = 0.0  # seconds
        self.trainer: PackTrainer | None = None

    def run(self, checkpoint: Path | None) -> Evaluation:
        """Train from the start or from a checkpoint, then measure; a signal or an error closes the trackers."""
        with _interruptible():
            state = "crashed"
            try:
                if self.recipe.train.eval_before:
                    self.before = self._recorded() if checkpoint else self._measure_test(0).scores
                with bar() as progress:
                    self.trainer = trainer = self._trainer(checkpoint, progress)
                    if trainer.progress(runs.step_of(checkpoint) if checkpoint else 0) < 1.0:
                        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
                    self.trained = trainer.clock.seconds
                after = self._finish()
                state = "success"
            except KeyboardInterrupt:
                state = "aborted"
                console().print(f"stopped; go on with: spantune train --resume {self.folder}", markup=False)
                raise
            finally:
                if state != "success":
                    self.trackers.finish(state)
        return after

    def steer(self, step: int) -> Mapping[str, float]:
        """Extract the dev slice, record it, and keep the adapter when it is the best so far."""
        assert self.trainer is not None
        self.steering = self.steering or self.prepared.steering(self._slice_size(self.trainer, step))
        evaluation = self._measure(self.steering, "dev", step)
        if evaluation.scores.micro.f1 >= max(self.trainer.f1s, default=0.0):
            self._save_adapter()
        return evaluation.values()

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
        among_allowed = self.recipe.train.loss_on == "choices"
        return Extractor(model, self.prepared.encoder, self.recipe.extract, among_allowed=among_allowed)

    def _finish(self) -> Evaluation:
        """Measure the best adapter on the test documents and write the report."""
        adapter = self.folder / "adapter"
        base = self.loaded.model.unload()
        model = load_adapter(base, adapter, merge=not self.loaded.quantized)
        self.extractor = self._extractor(model)
        records = read_metrics(self.folder)
        step = max((record["step"] for record in records), default=0)
        after = self._measure_test(step, training_seconds=round(self.trained, 1))
        self.trackers.finish("success")
        report_run(self.folder, self.prepared.splits)
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
        save_predictions(self.folder / "predictions" / f"{split}-{step}.jsonl", evaluation.extractions)
        self.trackers.metrics(step, evaluation.values() | more, split)
        shown = list(zip(evaluation.gold, evaluation.predicted, strict=True))[: self.recipe.track.predictions]
        self.trackers.texts(step, "Prediction", [_panel(gold, predicted) for gold, predicted in shown])
        return evaluation

    def _save_adapter(self) -> None:
        """Write the adapter with task and tokenizer beside its place, then swap it in."""
        final, fresh = self.folder / "adapter", self.folder / "adapter.tmp"
        shutil.rmtree(fresh, ignore_errors=True)
        self.loaded.model.save_pretrained(str(fresh))
        self.loaded.tokenizer.save_pretrained(str(fresh))
        self.prepared.task.save(fresh)
        old = self.folder / "adapter.old"
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        fresh.rename(final)
        shutil.rmtree(old, ignore_errors=True)

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
            save_total_limit=2,
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
            lora_plus=self.recipe.lora.plus_ratio,
            f1s=[record["f1"] for record in _of_dev(read_metrics(self.folder)) if record["f1"] is not None],
        )
        trainer.add_callback(StepCallback(trainer, self.trackers.metrics, progress))
        clock = trainer.clock
        trainer.add_callback(ForecastCallback(self.estimate, lambda: clock.seconds, self.trackers.metrics))
        return trainer


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


def _panel(gold: Any, predicted: Any) -> str:
    """A document's text with gold and predicted entities, as SwanLab's text panel shows it."""

    def spans(document: Any) -> str:
        return "; ".join(f"{document.surface(e)} [{e.label} {e.start}:{e.end}]" for e in document.entities) or "—"

    return f"{gold.text}\n\ngold: {spans(gold)}\n\npredicted: {spans(predicted)}"


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does, so that records are flushed and closed."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread: the caller handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
