"""The training job: from a recipe to a run folder with the best adapter, its figures and a report.

Everything that can be wrong is checked before the folder is made. The best adapter is the one with the best F1 of
real extraction on the dev documents. A run that a signal stopped or a machine killed resumes from its newest whole
checkpoint, once what came after is taken back; one whose model, data or task changed is refused.

Several processes that a launcher has started run the job together. Only rank 0 has the lock, writes files, records and
speaks; the others need the run folder only to resume.
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
    """What a finished run reached on its test documents, before and after training."""

    folder: Path
    before: Scores | None
    after: Evaluation
    seconds: float
    f1_on: Literal["test", "dev"] = "test"
    """`dev` where there is no test set: then the figures are on the documents that chose the adapter."""
    chosen: str = "the adapter"
    """What the dev documents chose: of a run that reads spans, also the thresholds."""

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
        """The closing JSON line: run, f1_before, f1, its interval (null: too few documents), f1_on, seconds."""
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

    The folder of a new run is `run.folder`/`run.name` of the recipe and must not exist. A first SIGINT or SIGTERM ends
    the run in order and saved, with a KeyboardInterrupt; a second one ends it at once.

    Args:
        recipe: the path of its file, a Config, or a mapping with its sections; with `resume` that of the run when
            absent.
        overrides: `section.key=value` as on the command line, whose values are YAML.
        resume: the folder of a run to go on with from its last checkpoint.

    Raises:
        SpantuneError: the recipe, the data, the model or the run folder cannot be used; nothing is left behind.
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
    """The run with what its recipe leaves to the devices, and the devices of all ranks can hold.

    What a recipe names stays, so that ranks with different recipes are still refused.
    """
    chosen, own = ranks.gather(settled(prepared, ranks.size).recipe.train), prepared.recipe.train
    agreed: dict[str, object] = {}
    if own.pack_tokens is None:
        sizes = [train.pack_tokens for train in chosen if train.pack_tokens is not None]
        is_open = len(sizes) < len(chosen)  # the default of its device is all that a rank can hold
        agreed["pack_tokens"] = None if is_open else min(sizes)
    if own.keep == "auto":
        keeps = {train.keep for train in chosen}
        agreed["keep"] = keeps.pop() if len(keeps) == 1 else "some"
    train = own.model_copy(update=agreed)
    return replace(prepared, recipe=prepared.recipe.model_copy(update={"train": train}))


def _load(prepared: Prepared) -> tuple[Loaded, Coverage]:
    """The base with a new adapter, or that of a warm start, and a head where spans are read; and what is adapted."""
    recipe, start = prepared.recipe, prepared.start
    loaded = load(recipe.model, prepared.files)
    model, coverage = attach(loaded.model, recipe.lora)
    if prepared.task.reads:
        attach_head(model, make_head(model, loaded.tokenizer, prepared.task, recipe.spans))
        if not recipe.train.masked_epochs:  # which predict tokens
            park_output_layer(model)
    if start:
        load_trained(model, start.folder)
    if recipe.train.pack == "shared" and not prepared.task.reads:
        _check_packs(model, prepared, loaded)
    return replace(loaded, model=model), coverage


def _require_same(recipe: Config, ranks: Ranks, recorded: Mapping[str, str]) -> None:
    """Check that all ranks train on the same.

    Raises:
        ConfigError: they do not.
    """
    if ranks.size == 1:
        return
    same = {name: recorded[key] for key, name in FIXED.items()} | {"the code of spantune": recorded["code_sha256"]}
    sections = recipe.model_dump(mode="json")
    ranks.require_same(same | {f"the section {name} of the recipe": str(value) for name, value in sections.items()})


def _require_shared(folder: Path, ranks: Ranks) -> None:
    """Check that all ranks see the run folder, once rank 0 has made it.

    Raises:
        ConfigError: one does not.
    """
    ranks.from_main(lambda: None)  # it is made now
    blind = [rank for rank, sees in enumerate(ranks.gather(folder.is_dir())) if not sees]
    if blind:
        raise ConfigError(
            f"rank {blind[0]} does not see {folder}, which rank 0 has made; set run.folder to a folder on a disk that "
            "all machines share"
        )


def _log_beginning(prepared: Prepared, plan: Plan, changes: Sequence[str], *, is_new: bool) -> None:
    """Log what was noticed of the data and the recipe, or, of a run that is resumed, what has changed."""
    for note in [*prepared.splits.notes, *map(str, plan.warnings)] if is_new else changes:
        log.log(logging.INFO if is_new else logging.WARNING, "%s", note)
    for note in prepared.start.notes if prepared.start and is_new else ():
        log.warning("%s", note)


def _recipe(recipe: object, overrides: list[str] | tuple[str, ...], resume: str | Path | None) -> Config:
    """Return the recipe to run: the given one, or that of the run to resume."""
    expect(resume, (str, Path, type(None)), "resume", "the path of a run folder")
    if recipe is None and resume is not None:
        expect(overrides, (list, tuple), "overrides", "a list such as ['train.max_steps=24']")
        return RunFolder(Path(resume)).resume_config(overrides)
    return as_config(recipe, overrides)


class _Job:
    """A run from its claimed folder to its report: measured, trained, measured again."""

    def __init__(self, prepared: Prepared, loaded: Loaded, folder: Path, estimate: Estimate, ranks: Ranks):
        self.recipe, self.prepared, self.loaded, self.folder = prepared.recipe, prepared, loaded, RunFolder(folder)
        self.estimate, self.ranks = estimate, ranks
        self.stop = StopRequest()
        self.checkpoints = Checkpoints(self.folder.checkpoints, self.recipe.train.keep_checkpoints)
        self.best = BestAdapter(folder, loaded.model, self._complete, save_trained, copy_trained)

    def run(self, *, is_resumed: bool) -> tuple[Scores | None, Evaluation]:
        """Train and measure; a signal or an error closes the trackers. Returns what was measured before and after."""
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
        """The checkpoint to resume from, after everything later is taken back; None where the run begins anew."""
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
        """Train as far as is left; returns the seconds that the run has trained in all."""
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
            if not self.ranks.is_main:  # every rank draws its own dropout
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
        """The model with what is saved in `adapter`, merged where that can be."""
        model, task = self.loaded.model, self.prepared.task
        if not self.ranks.in_lockstep:
            return reload_trained(model, adapter, task, merge=not self.loaded.quantized)
        load_trained(model, adapter)  # what is divided is not merged into
        return model.eval()

    def _complete(self, adapter: Path) -> None:
        """Write what makes an adapter folder whole beside the adapter: tokenizer, task and model card."""
        self.loaded.tokenizer.save_pretrained(str(adapter))
        self.prepared.task.save(adapter)
        write_card(adapter, self.prepared.task, public_name(self.recipe.model.source))

    def _dev_records(self) -> list[dict[str, Any]]:
        """The lines of the evaluations that steer."""
        return [record for record in self.folder.metrics() if record.get("split") == "dev"]

    def _stopped(self) -> str:
        """What a stopped run has reached, and how it resumes."""
        records, last = self.folder.metrics(), self.checkpoints.newest()
        steps = [record["step"] for record in records if record["split"] in ("masked", "train")]
        reached = f"stopped after step {max(steps)}" if steps else "stopped before the first step"
        best = f"; best dev F1 {self.best.f1:.4f} at step {self.best.step}" if self.best.step is not None else ""
        saved = f"; saved at step {step_of(last)}" if last else "; nothing is saved yet"
        return f"{reached}{best}{saved}; go on with: spantune train --resume {self.folder.path}"


def _record_nothing(step: int, values: Mapping[str, float], split: str) -> None:
    """The record of ranks other than 0."""


def _pinned(recipe: Config) -> Config:
    """The recipe with the commit of a model from a hub, so that a resume, or the adapter, never meets another model."""
    model = recipe.model.model_copy(update={"source": pinned(recipe.model.source)})
    return recipe.model_copy(update={"model": model})


def _check_packs(model: Any, prepared: Prepared, loaded: Loaded) -> None:
    """Send one small pack through the model, so that a head of an unknown kind is refused before the run."""
    pack = layout(prepared.prefix, prepared.written[:2])
    check_head(model.eval(), PackTensors(**tensors(pack)).to(loaded.device), loaded.dtype)
