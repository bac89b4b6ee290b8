"""The training job: from a recipe to a run folder with the best adapter, its figures and a report.

Recipe, data and model are checked before the folder is made. The best adapter is the one with the best F1 of real
extraction on the dev documents. A run that was stopped by a signal, or killed, resumes from its newest undamaged
checkpoint; everything that was recorded after this checkpoint is removed first. A run whose model, data or task has
changed does not resume.

If a launcher has started several processes, they run the job together. Only rank 0 takes the lock, writes files and
metrics, and prints messages; the other ranks only read the run folder, to resume.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import set_seed

from spantune.core import Config, ConfigError, StopRequest, as_config, expect, framed_html, say
from spantune.encoding import layout
from spantune.extraction import Evaluation
from spantune.metrics import Scores, f1_text
from spantune.models import (
    CausalLM,
    Coverage,
    Loaded,
    attach,
    attach_head,
    copy_trained,
    load,
    load_trained,
    make_head,
    park_output_layer,
    pinned,
    public_name,
    release_graphs,
    reload_trained,
    save_trained,
    silenced,
)
from spantune.report import report_run
from spantune.runs import (
    BestAdapter,
    Checkpoints,
    Claim,
    RunFolder,
    Trackers,
    logging_to,
    open_trackers,
    rewind,
    step_of,
    url_of,
    write_card,
)
from spantune.training.collator import Collator
from spantune.training.estimate import Estimate
from spantune.training.fingerprint import FIXED, environment, fingerprint, require_unchanged
from spantune.training.layers import arrange_layers
from spantune.training.loop import Services, TrainingLoop
from spantune.training.loss import PackTensors, check_head, tensors
from spantune.training.masked import placeholder
from spantune.training.measuring import Measuring
from spantune.training.nan_guard import StepGuard
from spantune.training.plan import Plan, make_plan, require, settled
from spantune.training.preparation import Prepared, prepare
from spantune.training.progress import training_view
from spantune.training.ranks import Ranks, join, leave
from spantune.training.requirements import require_all
from spantune.training.schedule import Clock, read_clock
from spantune.training.step import StepRunner

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """The figures of a finished run on its test documents, before and after training.

    Attributes:
        folder: the run folder.
        before: the scores before training; None with `train.eval_before=false`.
        after: the evaluation of the best adapter.
        seconds: the time that this call of `train` took.
    """

    folder: Path
    before: Scores | None
    after: Evaluation
    seconds: float
    f1_on: Literal["test", "dev"] = "test"
    """`dev` if there is no test set: the figures are then on the documents with which the adapter was chosen."""
    chosen: str = "the adapter"
    """What was chosen with the dev documents: the adapter and, in a run that reads spans, the thresholds."""

    @property
    def scores(self) -> Scores:
        """The scores after training."""
        return self.after.scores

    def __repr__(self) -> str:
        return f"Result({str(self.folder)!r}, {self._f1()}, {self.seconds:.0f} s)"

    def _repr_html_(self) -> str:
        before = f", before training {self.before.micro.f1:.3f}" if self.before else ""
        head = f"{self.folder}: {self._f1()}{before}, {self.seconds:.0f} s"
        report = f"the whole report: {RunFolder(self.folder).report_html}"
        return framed_html(f"<p><b>{escape(head)}</b></p>{self.scores.table_html()}<p>{escape(report)}</p>")

    def _f1(self) -> str:
        on = f", on the documents that chose {self.chosen}" if self.f1_on == "dev" else ""
        return f"F1 {f1_text(self.scores.micro)}{on}"

    def as_dict(self) -> dict[str, Any]:
        """Return the content of the last JSON line of `spantune train`.

        `f1_low` and `f1_high` are the interval of `f1`; they are None if there are too few documents for one.
        """
        micro = self.after.scores.micro
        return {
            "run": str(self.folder),
            "f1_before": round(self.before.micro.f1, 4) if self.before else None,
            "f1": round(micro.f1, 4),
            "f1_low": None if micro.f1_low is None else round(micro.f1_low, 4),
            "f1_high": None if micro.f1_high is None else round(micro.f1_high, 4),
            "f1_on": self.f1_on,
            "seconds": round(self.seconds, 1),
        }


@silenced()
def train(
    recipe: Config | Mapping[str, object] | str | Path | None = None,
    overrides: list[str] | tuple[str, ...] = (),
    resume: str | Path | None = None,
) -> Result:
    """Run a recipe, or resume a run.

        result = spantune.train("recipe.yaml", ["run.name=longer", "train.epochs=20"])
        print(result.folder, result.scores.micro.f1)
        result = spantune.train(resume="runs/longer")

    The folder of a new run is `run.folder`/`run.name` of the recipe; it must not exist yet.

    Args:
        recipe: the path of a recipe file, a Config, or a mapping with the sections of a recipe. It may be None with
            `resume`; then the recipe of that run is used.
        overrides: values that replace those of the recipe, each as `section.key=value` with the value in YAML, as on
            the command line.
        resume: the folder of a run that goes on from its last checkpoint.

    Returns:
        The run folder and the figures on the test documents.

    Raises:
        SpantuneError: the recipe, the data, the model or the run folder cannot be used; no run folder is left behind.
        KeyboardInterrupt: a first SIGINT or SIGTERM came; the steps that were done are saved in a checkpoint. A second
            signal ends the process at once.
    """
    started = time.perf_counter()
    given = _recipe(recipe, overrides, resume)
    folder = Path(resume) if resume else given.run_folder
    ranks = join(given)
    ranks.from_main(lambda: require_all(given, is_new=resume is None))
    set_seed(given.run.seed)
    own_start = RunFolder(folder).start if resume else None
    prepared = ranks.host_first(lambda: prepare(given, own_start))
    prepared = _agreed(prepared, ranks)
    recipe = prepared.recipe
    plan = make_plan(prepared, is_new=resume is None, ranks=ranks.size)
    require(plan)
    recorded = environment() | fingerprint(prepared)
    _require_same(recipe, ranks, recorded)
    with Claim(folder, resume=resume is not None) if ranks.is_main else nullcontext() as claim:
        changes = require_unchanged(folder, recorded) if resume else []
        loaded, coverage = _load(prepared)
        if claim is not None and not resume:
            start = prepared.start.folder if prepared.start else None
            claim.create(_pinned(recipe), prepared.task, recorded, start)
        _require_shared(folder, ranks)
        with logging_to(folder) if ranks.is_main else nullcontext():
            _log_beginning(prepared, plan, changes, is_new=resume is None)
            log.info("%s", coverage)
            job = _Job(prepared, loaded, folder, plan.estimate, ranks)
            before, after = job.run(is_resumed=resume is not None)
    leave()
    chosen = "the adapter and the thresholds" if prepared.task.reads else "the adapter"
    return Result(folder, before, after, time.perf_counter() - started, recipe.data.f1_on, chosen)


def _agreed(prepared: Prepared, ranks: Ranks) -> Prepared:
    """Fill in `train.pack_tokens` and `train.keep`, where the recipe leaves them open, with values for all ranks.

    The size of packs is the smallest that a rank has chosen for its device. Values that the recipe names are not
    changed, so that ranks with different recipes are still refused.
    """
    chosen, own = ranks.gather(settled(prepared, ranks.size).recipe.train), prepared.recipe.train
    agreed: dict[str, object] = {}
    if own.pack_tokens is None:
        sizes = [train.pack_tokens for train in chosen if train.pack_tokens is not None]
        is_open = len(sizes) < len(chosen)  # a rank chose no size: its device takes no more than the default
        agreed["pack_tokens"] = None if is_open else min(sizes)
    if own.keep == "auto":
        keeps = {train.keep for train in chosen}
        agreed["keep"] = keeps.pop() if len(keeps) == 1 else "some"
    train = own.model_copy(update=agreed)
    return replace(prepared, recipe=prepared.recipe.model_copy(update={"train": train}))


def _load(prepared: Prepared) -> tuple[Loaded, Coverage]:
    """Load the base with its adapter, new or of a warm start, and with a head where spans are read.

    Returns:
        The model, and which of its weights the adapter covers.
    """
    recipe, start = prepared.recipe, prepared.start
    loaded = load(recipe.model, prepared.files)
    model, coverage = attach(loaded.model, recipe.lora)
    if prepared.task.reads:
        attach_head(model, make_head(model, loaded.tokenizer, prepared.task, recipe.spans))
        if not recipe.train.masked_epochs:  # masked tokens are predicted with the output layer
            park_output_layer(model)
    if start:
        load_trained(model, start.folder)
    if recipe.train.pack == "shared" and not prepared.task.reads:
        _check_packs(model, prepared, loaded)
    return replace(loaded, model=model), coverage


def _require_same(recipe: Config, ranks: Ranks, recorded: Mapping[str, str]) -> None:
    """Check that all ranks have the same recipe, model, data, task and code of spantune.

    Raises:
        ConfigError: one of these is different on a rank.
    """
    if ranks.size == 1:
        return
    same = {name: recorded[key] for key, name in FIXED.items()} | {"the code of spantune": recorded["code_sha256"]}
    sections = recipe.model_dump(mode="json")
    ranks.require_same(same | {f"the section {name} of the recipe": str(value) for name, value in sections.items()})


def _require_shared(folder: Path, ranks: Ranks) -> None:
    """Check that all ranks see the run folder after rank 0 has made it.

    Raises:
        ConfigError: a rank does not see it.
    """
    ranks.from_main(lambda: None)  # wait until rank 0 has made the folder
    blind = [rank for rank, sees in enumerate(ranks.gather(folder.is_dir())) if not sees]
    if blind:
        raise ConfigError(
            f"rank {blind[0]} does not see {folder}, which rank 0 has made; set run.folder to a folder on a disk that "
            "all machines share"
        )


def _log_beginning(prepared: Prepared, plan: Plan, changes: Sequence[str], *, is_new: bool) -> None:
    """Log the notes on data and recipe; for a run that is resumed, log what has changed since it began."""
    for note in [*prepared.splits.notes, *map(str, plan.warnings)] if is_new else changes:
        log.log(logging.INFO if is_new else logging.WARNING, "%s", note)
    for note in prepared.start.notes if prepared.start and is_new else ():
        log.warning("%s", note)


def _recipe(recipe: object, overrides: list[str] | tuple[str, ...], resume: str | Path | None) -> Config:
    """Return the recipe to run: the given one, or the one of the run to resume."""
    expect(resume, (str, Path, type(None)), "resume", "the path of a run folder")
    if recipe is None and resume is not None:
        expect(overrides, (list, tuple), "overrides", "a list such as ['train.max_steps=24']")
        return RunFolder(Path(resume)).resume_config(overrides)
    return as_config(recipe, overrides)


class _Job:
    """A run from its claimed folder to its report: it is measured, trained, and measured again."""

    def __init__(self, prepared: Prepared, loaded: Loaded, folder: Path, estimate: Estimate, ranks: Ranks):
        self.recipe, self.prepared, self.loaded, self.folder = prepared.recipe, prepared, loaded, RunFolder(folder)
        self.estimate, self.ranks = estimate, ranks
        self.stop = StopRequest()
        self.checkpoints = Checkpoints(self.folder.checkpoints, self.recipe.train.keep_checkpoints)
        self.best = BestAdapter(folder, loaded.model, self._complete, save_trained, copy_trained)

    def run(self, *, is_resumed: bool) -> tuple[Scores | None, Evaluation]:
        """Train and measure. If a signal or an error ends this, the trackers are closed.

        Returns:
            The test scores before training (None with `train.eval_before=false`), and the evaluation after training.
        """
        checkpoint = self.ranks.from_main(self.rewind) if is_resumed else None
        trackers = self._open_trackers() if self.ranks.is_main else None
        measuring = Measuring(self.prepared, self.loaded.model, self.folder, trackers, self.stop, self.ranks)
        state = "crashed"
        with self.stop.listening():
            try:
                before = None
                if self.recipe.train.eval_before:
                    before = measuring.scores_before() if checkpoint else measuring.measure_test(0).scores
                training_seconds = self._train(checkpoint, measuring, trackers)
                after = self._finish(measuring, trackers, training_seconds)
                state = "success"
            except KeyboardInterrupt:
                state = "aborted"
                say(self._stopped())
                raise
            finally:
                if state != "success" and trackers is not None:
                    trackers.finish(state)
        return before, after

    def _open_trackers(self) -> Trackers:
        splits = self.prepared.splits
        gold = {"dev": splits.dev, "test": splits.test}
        trackers = open_trackers(self.recipe, self.folder.path, gold, self.prepared.task.codes)
        if url := url_of(self.folder.path):
            say(f"dashboard: {url}")
        return trackers

    def rewind(self) -> Path | None:
        """Remove everything that the run recorded after its newest undamaged checkpoint.

        Returns:
            This checkpoint; None if there is none, and the run begins anew.
        """
        checkpoint = self.checkpoints.newest()
        step = step_of(checkpoint) if checkpoint else -1
        self.checkpoints.discard_after(step)
        rewind(self.folder.path, step)
        records = [record for record in self._dev_records() if record["f1"] is not None]
        self.best.settle(records, self.checkpoints)
        self.checkpoints.best = self.best.step
        log.info("resuming %s", f"from {checkpoint.name}" if checkpoint else "from the beginning")
        return checkpoint

    def _train(self, checkpoint: Path | None, measuring: Measuring, trackers: Trackers | None) -> float:
        """Do the remaining training; returns the training seconds of the whole run, those before a resume included."""
        settings, records = self.recipe.train, self.ranks.from_main(self.folder.metrics)
        budget = self.prepared.pack_tokens(self.loaded.device.type)
        arrange_layers(self.loaded, self.prepared, budget, self.ranks)
        padding = self.loaded.tokenizer.pad_token_id or 0
        spans = self.recipe.spans if self.prepared.task.reads else None
        collator = Collator(settings, self.prepared.prefix, budget, padding, spans)
        runner = StepRunner(
            self.loaded.model,
            collator,
            settings,
            StepGuard(settings.on_nan),
            self.recipe.lora.plus_ratio,
            self.recipe.spans.learning_rate,
            self.ranks,
        )
        token = placeholder(self.loaded.tokenizer) if settings.masked_epochs else 0
        clock = Clock(read_clock(checkpoint))
        has_plan_line = any(record["split"] == "plan" for record in records)
        title = f"{self.folder.path} · {public_name(self.recipe.model.source).removeprefix('bundled:')}"
        with training_view(title, is_shown=self.ranks.is_main) as view:
            services = Services(
                checkpoints=self.checkpoints,
                best=self.best,
                stop=self.stop,
                evaluate=measuring.measure_dev,
                record=trackers.metrics if trackers else _record_nothing,
                estimate=None if has_plan_line else self.estimate,
                view=view,
                begins_trained=self.prepared.start is not None,
                placeholder=token,
            )
            loop = TrainingLoop(runner, self.prepared.examples, settings, clock, services, self.recipe.run.seed)
            loop.resume(checkpoint, records)
            runner.align()
            if not self.ranks.is_main:  # every rank has its own random numbers for dropout
                torch.manual_seed(self.recipe.run.seed + 1009 * self.ranks.rank + loop.step)
            loop.run([record["step"] for record in records if record["split"] == "dev"])
        release_graphs(self.loaded.model)
        self.ranks.agree(self.stop)
        return clock.seconds

    def _finish(self, measuring: Measuring, trackers: Trackers | None, training_seconds: float) -> Evaluation:
        """Measure the best adapter on the test documents and write the report."""
        adapter = self.ranks.from_main(self.best.require)
        if self.best.step == 0:
            log.warning(
                "no evaluation was better than the adapter of train.from, which is kept: train for longer, with a "
                "lower train.learning_rate, or without train.from"
            )
        measuring.use(self._reloaded(adapter))
        step = max((record["step"] for record in self.folder.metrics()), default=0)
        after = measuring.measure_test(step, training_seconds=round(training_seconds, 1))
        if trackers is not None:
            report_run(self.folder.path, self.prepared.splits, after.scores)
            trackers.attach(step, self.folder.report_html)
            trackers.finish("success")
        return after

    def _reloaded(self, adapter: Path) -> CausalLM:
        """Return the model with the trained weights of the folder `adapter`, merged into the base where possible."""
        model, task = self.loaded.model, self.prepared.task
        if not self.ranks.in_lockstep:
            return reload_trained(model, adapter, task, merge=not self.loaded.quantized)
        load_trained(model, adapter)  # an adapter is not merged into a base that is divided over ranks
        return model.eval()

    def _complete(self, adapter: Path) -> None:
        """Write the other files of an adapter folder: tokenizer, task and model card."""
        self.loaded.tokenizer.save_pretrained(str(adapter))
        self.prepared.task.save(adapter)
        write_card(adapter, self.prepared.task, public_name(self.recipe.model.source))

    def _dev_records(self) -> list[dict[str, Any]]:
        """Return the lines of the evaluations on dev documents during training."""
        return [record for record in self.folder.metrics() if record.get("split") == "dev"]

    def _stopped(self) -> str:
        """Return the message for a stopped run: its last step, its best F1, and the command that resumes it."""
        records, last = self.folder.metrics(), self.checkpoints.newest()
        steps = [record["step"] for record in records if record["split"] in ("masked", "train")]
        reached = f"stopped after step {max(steps)}" if steps else "stopped before the first step"
        best = f"; best dev F1 {self.best.f1:.4f} at step {self.best.step}" if self.best.step is not None else ""
        saved = f"; saved at step {step_of(last)}" if last else "; nothing is saved yet"
        return f"{reached}{best}{saved}; go on with: spantune train --resume {self.folder.path}"


def _record_nothing(step: int, values: Mapping[str, float], split: str) -> None:
    """Record nothing, as ranks other than 0 do."""


def _pinned(recipe: Config) -> Config:
    """Return the recipe with the commit of a model from a hub, so that no other version of the model is used later."""
    model = recipe.model.model_copy(update={"source": pinned(recipe.model.source)})
    return recipe.model_copy(update={"model": model})


def _check_packs(model: Any, prepared: Prepared, loaded: Loaded) -> None:
    """Send one small pack through the model, so that an unknown scaling of logits is refused before the run begins.

    Raises:
        ModelError: the model computes its logits in a way that spantune does not know.
    """
    pack = layout(prepared.prefix, prepared.written[:2])
    check_head(model.eval(), PackTensors(**tensors(pack)).to(loaded.device), loaded.dtype)
