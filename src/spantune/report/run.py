"""The report of a run, made from its folder alone: by the job at its end, and again whenever one asks.

    report_run(Path("runs/demo"))

It reads what the run recorded (recipe, task, environment, `metrics.jsonl`, predictions, calibration) and the documents
that the recipe names; no model is loaded, so that it takes seconds and no GPU. What the scores lack because a file is
not there is said in the report's notes. Refused is a run without its closing measurement: `report.html` is the sign
that a run is finished.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from spantune.core import Config, DataError, Document, Extraction, RunError, TaskSpec
from spantune.data import Splits, read_extractions, read_splits
from spantune.metrics import Calibration, Scores, calibrate, score
from spantune.report.content import CalibrationView, Report
from spantune.report.html import interval, points
from spantune.report.write import write_report
from spantune.runs import RunFolder


@dataclass(frozen=True)
class _Run:
    """What the folder of a finished run holds; `closing` is the record of its closing measurement."""

    folder: RunFolder
    recipe: Config
    task: TaskSpec
    splits: Splits
    records: Sequence[Mapping[str, Any]]
    closing: Mapping[str, Any]

    @property
    def dev(self) -> list[Mapping[str, Any]]:
        """The records of the evaluations that steered; a figure that was not finite is none."""
        return [one for one in self.records if one.get("split") == "dev" and one.get("f1") is not None]

    def predictions(self, split: str, step: int) -> list[Extraction]:
        """Read the predictions of the run at a step.

        Raises:
            DataError: the file is absent or damaged.
        """
        return read_extractions(self.folder.predictions(split, step))

    def scores(self, predicted: Sequence[Document]) -> Scores:
        """Score predicted test documents."""
        return score(self.splits.test, predicted, self.task.codes, train=self.splits.train)


def report_run(folder: Path, splits: Splits | None = None) -> None:
    """Write `scores.json`, `report.md` and, last, `report.html` into the folder of a run.

    `splits` are the documents of its recipe where they are at hand; without them they are read again.

    Raises:
        RunError: the folder is no run, is damaged, or lacks the closing measurement.
        DataError: the run's predictions or the documents of its recipe cannot be read or do not pair.
    """
    run = _read(RunFolder(folder), splits)
    predicted = run.predictions("test", run.closing["step"])
    view, notes = _calibration(run)
    data = run.recipe.data
    report = Report(
        title=f"spantune · {folder.resolve().name}",
        before=run.scores(_documents(run.predictions("test", 0)))
        if run.folder.predictions("test", 0).is_file()
        else None,
        after=run.scores(_documents(predicted)),
        labels={label.code: label.name or label.code for label in run.task.labels},
        curve=[(one["step"], _loss(one)) for one in run.records if "loss" in one],
        evaluations=[(one["step"], one["f1"], one.get("f1_low"), one.get("f1_high")) for one in run.dev],
        gold=run.splits.test,
        predicted=predicted,
        facts=_facts(run, predicted),
        config=run.folder.config_file.read_text(encoding="utf-8"),
        environment=run.folder.environment(),
        rates={name: value for name, value in run.closing.items() if name.endswith("_rate")},
        calibration=view,
        notes=notes,
        run=folder.resolve().name,
        data=data.test or data.dev or f"held out of {data.train}",
        date=time.strftime("%Y-%m-%d", time.localtime(run.closing["time"])),
    )
    write_report(folder, report)


def _documents(extractions: Sequence[Extraction]) -> list[Document]:
    return [extraction.document for extraction in extractions]


def _read(folder: RunFolder, splits: Splits | None) -> _Run:
    recipe, records = folder.config(), folder.metrics()
    last = max((one["step"] for one in records), default=0)
    closing = [one for one in records if one.get("split") == "test" and one["step"] == last > 0]
    if not closing:
        raise RunError(
            f"{folder.path}: no closing measurement in {folder.metrics_file.name}, so there is nothing to report yet; "
            f"end the run with spantune train --resume {folder.path}"
        )
    return _Run(folder, recipe, folder.task(), splits or read_splits(recipe.data), records, closing[-1])


def _facts(run: _Run, predicted: Sequence[Extraction]) -> dict[str, str]:
    """Key figures as they are to be read."""
    facts: dict[str, str] = {}
    trained = run.closing.get("training_seconds")
    if run.dev and trained:
        share = sum(one["evaluation_seconds"] for one in run.dev) / trained
        facts["evaluations, share of training time"] = f"{share:.1%}"
    speed = [one["examples_per_s"] for one in run.records if one.get("examples_per_s") is not None]
    if speed:
        facts["training examples/s (median)"] = f"{median(speed):.2f}"
    if run.dev:
        best = _best(run)
        facts["best step"] = f"{best['step']}, F1 {points(best['f1'])} on {best['documents']} dev documents"
    stored = Calibration.load(run.folder.path)
    if stored and (stored.threshold is not None or stored.label_thresholds):
        micro = run.scores([stored.apply(document)[0] for document in _documents(predicted)]).micro
        bounds = interval(micro.f1_low, micro.f1_high)
        facts["strict F1 with the stored threshold"] = f"{points(micro.f1)} ({bounds})"
    return facts


def _calibration(run: _Run) -> tuple[CalibrationView | None, list[str]]:
    """The stored calibration, or what one of the best evaluation's predictions would be; and why there is none."""
    stored = Calibration.load(run.folder.path)
    if stored:
        view = _view(stored, stored=True)
        return view, [] if view else ["calibration: calibration.json holds no evidence to draw"]
    if not run.dev:
        return None, ["calibration: no evaluation during training to fit one to"]
    step = _best(run)["step"]
    try:
        predicted = _documents(run.predictions("dev", step))
        names = {document.id for document in predicted}
        gold = [document for document in run.splits.dev if document.id in names]
        found = calibrate(gold, predicted, data=f"the {len(gold)} dev documents of step {step}")
    except DataError as error:
        return None, [f"calibration: {error.message}"]
    return _view(found, stored=False), []


def _best(run: _Run) -> Mapping[str, Any]:
    """The evaluation whose adapter was kept: that of the best F1, of equal ones the last."""
    return max(run.dev, key=lambda one: (one["f1"], one["step"]))


def _view(found: Calibration, stored: bool) -> CalibrationView | None:
    evidence = found.evidence
    if evidence is None:
        return None
    return CalibrationView(
        bins=[(one.low, one.high, one.count, one.confidence, one.precision) for one in evidence.bins],
        ece=evidence.ece_before,
        ece_after=evidence.ece,
        temperature=found.temperature,
        curve=[(one.threshold, one.precision, one.recall, one.f1) for one in evidence.curve],
        threshold=found.threshold,
        label_thresholds=found.label_thresholds,
        data=evidence.data,
        stored=stored,
        notes=evidence.notes,
    )


def _loss(record: Mapping[str, Any]) -> float:
    return math.nan if record["loss"] is None else record["loss"]
