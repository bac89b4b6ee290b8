"""The report of a run, made from its folder at the end of training and again by `spantune report`.

    report_run(Path("runs/demo"))

It is made from the files of the run (recipe, task, environment, `metrics.jsonl`, predictions, calibration) and the
documents of the recipe. No model is loaded, so it takes only seconds and needs no GPU. If a file is missing, the notes
of the report say what the report lacks. A run without its final evaluation gets no report, since `report.html` marks a
finished run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from spantune.core import Config, DataError, Document, Extraction, RunError, TaskSpec, config, expect
from spantune.data import Splits, read_extractions, read_splits
from spantune.metrics import TOO_FEW, Calibration, Scores, calibrate, score
from spantune.report.content import CalibrationView, Report
from spantune.report.html import interval, number, points
from spantune.report.write import write_report
from spantune.runs import RunFolder, evaluated


@dataclass(frozen=True)
class _Run:
    """The content of the folder of a finished run.

    Args:
        folder: the run folder.
        recipe: the resolved recipe.
        task: the task.
        splits: the documents of the recipe.
        records: the records of `metrics.jsonl`.
        closing: the record of the final evaluation.
    """

    folder: RunFolder
    recipe: Config
    task: TaskSpec
    splits: Splits
    records: Sequence[Mapping[str, Any]]
    closing: Mapping[str, Any]

    @property
    def writes(self) -> bool:
        """Whether the model writes answers, which may have problems; False if the run reads spans."""
        return not self.task.reads

    @property
    def dev(self) -> list[Mapping[str, Any]]:
        """The records of the evaluations during training that have an F1."""
        return [record for record in self.records if record.get("split") == "dev" and record.get("f1") is not None]

    def predictions(self, split: str, step: int) -> list[Extraction]:
        """Read the predictions of the run on a split after a step.

        Raises:
            DataError: the file is missing or damaged.
        """
        return read_extractions(self.folder.predictions(split, step))

    def scores(self, predicted: Sequence[Document]) -> Scores:
        """Return the scores of predictions for the test documents."""
        return score(self.splits.test, predicted, self.task.codes, train=self.splits.train)


def report_run(folder: str | Path, splits: Splits | None = None, after: Scores | None = None) -> None:
    """Write `scores.json`, `report.md` and, last, `report.html` into the folder of a run.

    Args:
        folder: the run folder.
        splits: the documents of its recipe; if None, they are read.
        after: the scores of its final predictions, with slices by training surfaces; if None, they are computed.

    Raises:
        ConfigError: `folder` is not a path.
        RunError: the folder is not a run folder, is damaged, or lacks the final evaluation.
        DataError: the predictions of the run or the documents of its recipe cannot be read or do not pair, or the files
            cannot be written.
    """
    folder = Path(expect(folder, (str, Path), "report_run", "the path of a run folder"))
    run = _read(RunFolder(folder), splits)
    predicted = run.predictions("test", run.closing["step"])
    view, notes = _calibration(run)
    data = run.recipe.data
    report = Report(
        title=f"spantune · {folder.resolve().name}",
        before=run.scores(_documents(run.predictions("test", 0)))
        if run.folder.predictions("test", 0).is_file()
        else None,
        after=after or run.scores(_documents(predicted)),
        labels=run.task.names,
        curve=[(record["step"], _loss(record)) for record in run.records if "loss" in record],
        evaluations=[(record["step"], record["f1"], record.get("f1_low"), record.get("f1_high")) for record in run.dev],
        gold=run.splits.test,
        predicted=predicted,
        facts=_facts(run, predicted),
        config=run.folder.config_file.read_text(encoding="utf-8"),
        environment=run.folder.environment(),
        rates={name: value for name, value in run.closing.items() if name.endswith("_rate") and run.writes},
        written=run.writes,
        calibration=view,
        notes=notes,
        head=_head(run),
        train=run.splits.train,
        f1_on=data.f1_on,
        run=folder.resolve().name,
        data=config.name_of(data.test or data.dev or f"held out of {config.files_of(data.train)[0]}"),
        date=_date(run.closing["time"]),
    )
    write_report(folder, report)


def _documents(extractions: Sequence[Extraction]) -> list[Document]:
    return [extraction.document for extraction in extractions]


def _read(folder: RunFolder, splits: Splits | None) -> _Run:
    recipe, records = folder.config(), folder.metrics()
    last = max((record["step"] for record in records), default=0)
    closing = [record for record in records if record.get("split") == "test" and record["step"] == last > 0]
    if not closing:
        raise RunError(
            f"{folder.path}: no closing measurement in {folder.metrics_file.name}, so there is nothing to report yet; "
            f"end the run with spantune train --resume {folder.path}"
        )
    return _Run(folder, recipe, folder.task(), splits or read_splits(folder.data()), records, closing[-1])


def describe_run(folder: str | Path) -> dict[str, str]:
    """Return facts about a run for the top of a report, by name: model and adapter, answer format, device, version.

    Raises:
        ConfigError: `folder` is not a path.
        RunError: the folder is not a run folder, or is damaged.
    """
    run = RunFolder(Path(expect(folder, (str, Path), "describe_run", "the path of a run folder")))
    recipe, environment = run.config(), run.environment()
    lora = recipe.lora
    adapter = f"{'DoRA' if lora.dora else 'LoRA'} {f'of rank {lora.rank}' if lora.rank else ''}".rstrip()
    adapter = "full fine-tuning" if lora.full else adapter
    facts = {"model": f"{recipe.model.source} ({recipe.model.base}), {adapter}", "answer": _answer(run.task(), recipe)}
    return facts | {name: environment[name] for name in ("device", "spantune") if environment.get(name)}


def listed(thresholds: Mapping[str, float]) -> str:
    """Return thresholds in words, as one number if all are equal. `thresholds` maps the name of a label to a score."""
    values = {f"{value:.2f}" for value in thresholds.values()}
    if len(values) == 1:
        return f"{values.pop()} for all labels"
    return ", ".join(f"{label} {value:.2f}" for label, value in thresholds.items())


def _answer(task: TaskSpec, recipe: Config) -> str:
    """Describe how the model of a run answers: the answer format, or how spans are read."""
    if not task.reads:
        return task.answer
    longest = "" if recipe.spans.longest is None else f", of at most {recipe.spans.longest} characters"
    return f"spans{longest}, view {recipe.spans.view}"


def _head(run: _Run) -> dict[str, str]:
    """Return the facts at the top of the report, by name: model, documents of each split, date, time and device."""
    data, splits = run.recipe.data, run.splits
    dev = data.dev or f"the first {100 * data.holdout:.3g} % of the training file"
    described = describe_run(run.folder.path)
    head = {
        "model": described.pop("model"),
        "training": _documents_of(data.train, splits.train),
        "dev": _documents_of(dev, splits.dev),
        "test": _documents_of(data.test, splits.test) if data.test else "the dev documents",
        "date": _date(run.closing["time"]),
    }
    seconds = run.closing.get("training_seconds")
    time_taken = {"training time": _duration(seconds)} if seconds else {}
    return {**head, **time_taken, **described}


def _documents_of(files: str | tuple[str, ...], documents: Sequence[Document]) -> str:
    entities = sum(len(document.entities) for document in documents)
    return f"{config.name_of(files)}: {number(len(documents))} documents, {number(entities)} entities"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _facts(run: _Run, predicted: Sequence[Extraction]) -> dict[str, str]:
    """Return the key figures of a run as text, by name."""
    facts: dict[str, str] = {}
    if run.recipe.train.from_ is not None:
        facts["warm start from"] = run.recipe.train.from_
    trained = run.closing.get("training_seconds")
    if run.dev and trained:
        share = sum(record["evaluation_seconds"] for record in run.dev) / trained
        facts["evaluations, share of training time"] = f"{share:.1%}"
    speed = [record["examples_per_s"] for record in run.records if record.get("examples_per_s") is not None]
    if speed:
        facts["training examples/s (median)"] = f"{median(speed):.2f}"
    if run.dev:
        best = _best(run)
        facts["best step"] = f"{best['step']}, F1 {points(best['f1'])} on {best['documents']} dev documents"
    for entry in evaluated(run.folder.path):
        facts[f"predictions/{entry.file}"] = f"{entry.documents} documents of {entry.data}"
    thresholds = run.folder.head_thresholds()
    if thresholds:
        facts["thresholds chosen on dev"] = listed(thresholds)
    stored = Calibration.load(run.folder.path)
    # not for a run that reads spans: its predictions lack the spans below its own thresholds, although the stored
    # calibration might keep some of them
    if stored and run.writes and (stored.threshold is not None or stored.label_thresholds):
        micro = run.scores([stored.apply(document)[0] for document in _documents(predicted)]).micro
        bounds = interval(micro.f1_low, micro.f1_high) or TOO_FEW
        facts["strict F1 with the stored threshold"] = f"{points(micro.f1)} ({bounds})"
    return facts


def _calibration(run: _Run) -> tuple[CalibrationView | None, list[str]]:
    """Return the calibration to show, and notes that say why there is none.

    It is the calibration that the run stores, or else one that is fitted to the predictions of the best evaluation.
    """
    stored = Calibration.load(run.folder.path)
    if stored:
        view = _view(stored, stored=True)
        return view, [] if view else ["calibration: calibration.json holds no evidence to draw"]
    if not run.dev:
        return None, ["calibration: no evaluation during training to fit one to"]
    step = _best(run)["step"]
    try:
        predicted = _documents(run.predictions("dev", step))
        predicted_ids = {document.id for document in predicted}
        gold = [document for document in run.splits.dev if document.id in predicted_ids]
        # the predictions of a run that reads spans lack the spans below its own thresholds
        over = "" if run.writes else ", of which spans under the thresholds of the run are left out"
        data, own = f"the {len(gold)} dev documents of step {step}{over}", run.folder.head_thresholds()
        fitted = calibrate(gold, predicted, data=data, own_thresholds=own)
    except DataError as error:
        return None, [f"calibration: {error.message}"]
    return _view(fitted, stored=False), []


def _best(run: _Run) -> Mapping[str, Any]:
    """Return the record of the evaluation with the best F1, the last of equal ones. It chose the adapter of the run."""
    return max(run.dev, key=lambda record: (record["f1"], record["step"]))


def _view(calibration: Calibration, stored: bool) -> CalibrationView | None:
    evidence = calibration.evidence
    if evidence is None:
        return None
    return CalibrationView(
        bins=[(bin.low, bin.high, bin.count, bin.confidence, bin.precision) for bin in evidence.bins],
        ece=evidence.ece_before,
        ece_after=evidence.ece,
        temperature=calibration.temperature,
        curve=[(point.threshold, point.precision, point.recall, point.f1) for point in evidence.curve],
        threshold=calibration.threshold,
        label_thresholds=calibration.label_thresholds,
        data=evidence.data,
        stored=stored,
        notes=evidence.notes,
    )


def _loss(record: Mapping[str, Any]) -> float:
    return math.nan if record["loss"] is None else record["loss"]
