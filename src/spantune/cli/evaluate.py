"""The commands `spantune evaluate`, `compare` and `report`: score a run or a file, and compare systems.

As in `cli`, there is no logic here: tables and JSON go to stdout, messages to stderr.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spantune.cli import names, tables
from spantune.cli.libraries import quiet
from spantune.cli.options import (
    AcceptChanges,
    Device,
    Force,
    Format,
    Json,
    MinScore,
    Run,
    parts_read,
    report_left_out,
)
from spantune.core import ConfigError, DataError, RunError, log_crashes_into, put, put_json, require_new, say
from spantune.runs import RunFolder, name_predictions, predictions_for

if TYPE_CHECKING:
    from spantune.core import Config, Document, Extraction
    from spantune.metrics import Protocol, System
    from spantune.report import Report


Named = Annotated[
    Literal["cblue", "promptcblue"],
    typer.Option(
        "--protocol", help="What counts as correct. cblue: start, end and label. promptcblue: mention and label."
    ),
]
Labels = Annotated[
    str | None, typer.Option(help="The label set, separated by commas. The labels in the files if not given.")
]
ReportFolder = Annotated[
    Path | None,
    typer.Option("--report", help="Write report.html, report.md and scores.json to this folder.", show_default=False),
]


REPORT_FILES = ("report.html", "report.md", "scores.json")


# A command has as many parameters as options: typer reads them from the signature.


def evaluate(
    run: Annotated[
        Path | None,
        typer.Argument(help="A run folder; not needed with --gold and --predicted.", autocompletion=names.run_folders),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="An annotated corpus to score the run on, or bundled:NAME.", autocompletion=names.corpora),
    ] = None,
    gold: Annotated[
        str | None,
        typer.Option(help="Without a run: the corpus with the correct entities.", autocompletion=names.corpora),
    ] = None,
    predicted: Annotated[
        str | None, typer.Option(help="Without a run: the same documents with the predicted entities.")
    ] = None,
    protocol: Named = "cblue",
    train: Annotated[
        str | None,
        typer.Option(
            help="Training corpus: entities whose text occurs in it are scored apart from new ones. A run has its own."
        ),
    ] = None,
    labels: Labels = None,
    format: Format = None,
    limit: Annotated[int | None, typer.Option(help="Use the first N documents only.", min=1)] = None,
    grounded: Annotated[
        bool,
        typer.Option("--grounded/--free", help="Decode with or without the grammar that keeps entities to the text."),
    ] = True,
    min_score: MinScore = None,
    accept_changes: AcceptChanges = False,
    device: Device = "auto",
    report: ReportFolder = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Score a run, or predictions in a file, against an annotated corpus: F1 with 95 % intervals.

    A run keeps its predictions for each corpus; scoring the same corpus again replaces them.

    Examples:

        spantune evaluate runs/demo --data bundled:clinical-zh-test --report runs/demo/test

        spantune evaluate --gold test.jsonl --predicted predicted.jsonl --train train.jsonl
    """
    _require_report_folder(report, (run, data, gold, predicted, train), force)
    how = _How(protocol, format, limit, labels, _read(train, None) if train else None)
    if run and data and not (gold or predicted or labels):
        figures, content = _evaluate_run(run, data, how, _Decoding(grounded, min_score, device, accept_changes))
    elif gold and predicted and not (run or data):
        figures, content = _score_files(gold, predicted, how)
    else:
        raise ConfigError(
            "give a run folder with --data FILE (the labels are its task's), or --gold FILE with --predicted FILE"
        )
    for note, count in content.after.notes.items():
        say(f"{count} × {note}")
    if report:
        from spantune.report import write_report

        write_report(_existing(report), content)
    _print_scores(figures, as_json)


def compare(
    systems: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders, and with --gold also files with predictions. Each is compared with the first.",
            autocompletion=names.run_folders,
        ),
    ],
    gold: Annotated[
        str | None,
        typer.Option(
            help="The corpus with the correct entities. The test corpus of the runs' recipes if not given.",
            autocompletion=names.corpora,
        ),
    ] = None,
    protocol: Named = "cblue",
    labels: Labels = None,
    format: Format = None,
    report: ReportFolder = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Test whether systems differ by more than chance on the same documents.

    Uses the paired bootstrap and approximate randomisation. Runs that were scored on different documents, or on a
    different annotation of the same texts, are refused. With --gold, a run's predictions for that corpus are used if
    spantune evaluate has made them, otherwise those for its own test corpus.

    Examples:

        spantune compare runs/phi4-cmeee runs/phi4-cmeee-r32 --report compared

        spantune compare --gold test.jsonl before.jsonl after.jsonl --json
    """
    from spantune.metrics import compare as compare_systems

    _require_report_folder(report, (*systems, gold), force)
    how = _How(protocol, format, None, labels, None)
    gold_documents = _read(gold, format) if gold else None
    read = [_system(path, name, gold_documents, how) for path, name in zip(systems, _names(systems), strict=True)]
    codes = how.codes(document for system in read for document in (*system.gold, *system.documents))
    codes = codes if labels else _ordered(codes, systems)
    comparison = compare_systems(read, codes)
    for name, scores in comparison.systems.items():
        for note, count in scores.notes.items():
            say(f"{name}: {count} × {note}")
    if report:
        from spantune.report import write_comparison

        data = gold or f"the test documents of {read[0].name}"
        write_comparison(_existing(report), comparison, read, _label_names(systems, codes), data)
    if as_json:
        put_json(comparison.as_dict())
    else:
        tables.print_comparison(comparison)


def report(run: Run) -> None:
    """Make the report of a finished run again, from its records: report.html, report.md and scores.json.

    No model is loaded. The old report is replaced.

    Example: spantune report runs/demo
    """
    from spantune.report import report_run

    log_crashes_into(run)
    report_run(run)
    put(str(RunFolder(run).report_html))


@dataclass(frozen=True)
class _How:
    """How to read and to score.

    Args:
        protocol: what counts as correct.
        format: the format of the files; None detects it.
        limit: how many documents to use; None for all.
        labels: the label set, separated by commas; None for the labels of the documents.
        train: the training documents, for the slices of seen and unseen surfaces.
    """

    protocol: Protocol
    format: str | None
    limit: int | None
    labels: str | None
    train: Sequence[Document] | None

    def codes(self, documents: Iterable[Document]) -> list[str]:
        """Return the label set as given, or the labels of `documents`."""
        if self.labels is None:
            return sorted({entity.label for document in documents for entity in document.entities})
        codes = [code for code in (part.strip() for part in self.labels.split(",")) if code]
        if not codes:
            raise ConfigError(f"--labels {self.labels!r} names no label; expected codes such as dis,sym,bod")
        return codes


@dataclass(frozen=True)
class _Decoding:
    """How a run extracts."""

    grounded: bool
    min_score: float | None
    device: Device
    accept_changes: bool


def _evaluate_run(run: Path, data: str, how: _How, decoding: _Decoding) -> tuple[dict[str, object], Report]:
    """Extract with a run's adapter and save the predictions in its folder; returns the figures and their report."""
    folder = RunFolder(run)
    recipe = folder.config()
    log_crashes_into(run)
    gold = _read(data, how.format)[: how.limit]
    quiet(recipe.model.source)
    from spantune.extraction import evaluate as measure
    from spantune.extraction import load_run, rates, save_predictions
    from spantune.report import Report, describe_run
    from spantune.training import environment

    settings = recipe.extract.model_copy(update={"grounded": decoding.grounded})
    extractor = load_run(run, decoding.device, settings, decoding.min_score, accept_changes=decoding.accept_changes)
    extractor.task.check(gold)
    train = _trained_on(recipe) if how.train is None else how.train
    evaluation = measure(extractor, gold, protocol=how.protocol, train=train)
    path = name_predictions(run, data, gold)
    save_predictions(path, evaluation.extractions)
    say(f"predictions: {path}")
    dropped = evaluation.below_threshold
    report_left_out(extractor.calibration, dropped["entities"])
    facts = {"extraction": f"{evaluation.seconds:.1f} s", "decoding": "grammar" if decoding.grounded else "free"}
    if dropped["entities"]:
        facts["left out by the threshold"] = f"{dropped['entities']} entities, of which gold has {dropped['correct']}"
    name = run.resolve().name
    report = Report(
        title=f"spantune · {name} on {data}",
        after=evaluation.scores,
        labels=extractor.task.names,
        gold=gold,
        predicted=evaluation.extractions,
        facts=facts,
        rates=rates(evaluation.extractions),
        config=folder.config_file.read_text(encoding="utf-8"),
        environment=environment(),
        head=describe_run(run),
        train=train or (),
        run=name,
        data=data,
        date=time.strftime("%Y-%m-%d"),
    )
    return evaluation.as_dict(), report


def _trained_on(recipe: Config) -> Sequence[Document] | None:
    """Return the training documents of a run; None, with a message on stderr, when they cannot be read any more."""
    from spantune.data import read_splits

    try:
        return read_splits(recipe.data).train
    except DataError as error:
        say(f"no figures for seen and unseen surfaces; the training data cannot be read: {error}")
        return None


def _score_files(gold: str, predicted: str, how: _How) -> tuple[dict[str, object], Report]:
    """Score one file against another; returns the figures and their report."""
    from spantune.core import from_document
    from spantune.metrics import score
    from spantune.report import Report

    gold_documents = _read(gold, how.format)
    predictions = _aligned(gold_documents, list(map(from_document, _read(predicted, how.format))), predicted)
    if how.limit is not None:
        gold_documents = gold_documents[: how.limit]
        gold_ids = {document.id for document in gold_documents}
        predictions = [prediction for prediction in predictions if prediction.document.id in gold_ids]
    predicted_documents = [prediction.document for prediction in predictions]
    codes = how.codes((*gold_documents, *predicted_documents))
    data = f"{predicted} against {gold}"
    try:
        scores = score(gold_documents, predicted_documents, codes, protocol=how.protocol, train=how.train)
    except DataError as error:
        raise DataError(error.message, path=data, field=error.field) from None
    title = f"{Path(predicted).name} against {Path(gold).name}"
    names = dict(zip(codes, codes, strict=True))
    date, train = time.strftime("%Y-%m-%d"), how.train or ()
    return scores.as_dict(), Report(
        title, scores, names, gold_documents, predictions, data=data, date=date, train=train
    )


def _system(path: Path, name: str, gold: Sequence[Document] | None, how: _How) -> System:
    """Read a run with its newest predictions for the test documents, or a file of predictions."""
    from spantune.core import from_document
    from spantune.data import read_extractions, read_splits
    from spantune.metrics import System

    run = RunFolder(path)
    if not run.is_run and gold is None:
        raise ConfigError(f"{path} is no run folder; to compare files of predictions, give --gold FILE")
    file = path
    if run.is_run:
        file = (predictions_for(path, gold) if gold else None) or run.last_predictions("test")
    if run.is_run and file.stem == "test-0":
        raise RunError(f"{path} has no predictions after training; end the run with spantune train --resume {path}")
    predictions = read_extractions(file) if run.is_run else list(map(from_document, _read(str(file), how.format)))
    if gold is None:
        gold = read_splits(run.config().data).test
    return System(name, gold, _aligned(gold, predictions, str(file)), how.protocol)


def _aligned(gold: Sequence[Document], predictions: Sequence[Extraction], path: str) -> list[Extraction]:
    """Give `predictions` the ids of `gold`; reports on stderr when they were paired by their texts."""
    from spantune.metrics import align

    documents = [prediction.document for prediction in predictions]
    aligned = align(gold, documents)
    if [document.id for document in aligned] != [document.id for document in documents]:
        say(f"{path}: no id is that of a gold document; paired by their texts, which are the same")
    return [replace(prediction, document=document) for prediction, document in zip(predictions, aligned, strict=True)]


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the last names of the paths where these are all different, otherwise the paths."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _ordered(codes: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Return `codes` in the order of the task of the first run among `paths`, and then those that it lacks."""
    ordered = [code for code in _task_names(paths) if code in codes]
    return [*ordered, *(code for code in codes if code not in ordered)]


def _label_names(paths: Sequence[Path], codes: Sequence[str]) -> dict[str, str]:
    """Return the names of `codes` in the first run among `paths`; without a run, the codes."""
    names = _task_names(paths)
    return {code: names.get(code, code) for code in codes}


def _task_names(paths: Sequence[Path]) -> dict[str, str]:
    """Return code to name of the task of the first run among `paths`; nothing without a run."""
    from spantune.core import TaskSpec

    run = next((path for path in paths if RunFolder(path).is_run), None)
    return TaskSpec.load(run).names if run else {}


def _read(path: str, format: str | None) -> Sequence[Document]:
    """Read the documents of a corpus; what the reader repaired is reported on stderr."""
    from spantune.data import formats

    corpus = formats.read(path, format)
    for note, count in corpus.notes.items():
        say(f"{path}: {count} × {note}")
    return corpus.documents


def _print_scores(figures: dict[str, object], as_json: bool) -> None:
    if as_json:
        put_json(figures)
        return
    tables.print_scores(figures)
    tables.print_slices(figures)


def _require_report_folder(folder: Path | None, inputs: Iterable[str | Path | None], force: bool) -> None:
    """Check, before anything is measured, that a report can be written into the folder."""
    if folder is None:
        return
    if RunFolder(folder).is_run:
        raise ConfigError(
            f"--report {folder} is a run folder, which has a report of its own; give another, such as {folder / 'test'}"
        )
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--report {folder} is a file; expected a folder, which is made where it is not there")
    for name in REPORT_FILES:
        require_new(folder / name, parts_read(inputs), force=force)


def _existing(folder: Path) -> Path:
    """Make the folder where it does not exist, and return it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--report {folder} cannot be made: {error.strerror}; give another folder") from None
    return folder
