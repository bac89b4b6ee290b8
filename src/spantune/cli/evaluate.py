"""The commands `spantune evaluate` and `report`: score a run or a file, and make the report of a run again.

Tables and JSON go to stdout, messages to stderr.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spantune.cli import names, tables
from spantune.cli.libraries import quiet
from spantune.cli.options import (
    AcceptChanges,
    Column,
    Device,
    Encoding,
    Force,
    Format,
    Joiner,
    Json,
    Label,
    MinScore,
    Offsets,
    Run,
    reading_options,
    report_left_out,
)
from spantune.cli.scoring import (
    Labels,
    ProtocolName,
    Reading,
    ReportFolder,
    label_set,
    made_folder,
    require_report_folder,
)
from spantune.core import ConfigError, DataError, log_crashes_into, put, put_json, say
from spantune.runs import RunFolder

if TYPE_CHECKING:
    from spantune.core import Document
    from spantune.metrics import Protocol
    from spantune.report import Report


# Commands have many parameters, and so many lines, since typer reads the options from the signature.


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
    protocol: ProtocolName = "cblue",
    train: Annotated[
        str | None,
        typer.Option(
            help="Training corpus: entities whose text occurs in it are scored apart from new ones. A run has its own."
        ),
    ] = None,
    labels: Labels = None,
    format: Format = None,
    column: Column = None,
    joiner: Joiner = None,
    label: Label = None,
    encoding: Encoding = None,
    offsets: Offsets = None,
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
    require_report_folder(report, (run, data, gold, predicted, train), force)
    reading = Reading(format, reading_options(column, joiner, label, encoding, offsets))
    how = _How(protocol, reading, limit, labels, replace(reading, format=None).documents(train) if train else None)
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

        write_report(made_folder(report), content)
    _print_scores(figures, as_json)


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
    """How files are read and predictions are scored.

    Args:
        protocol: what counts as correct.
        reading: how the files are read.
        limit: the maximum number of documents; None for all.
        labels: the label set, separated by commas; None for the labels of the documents.
        train: the training documents, for the slices of seen and unseen surfaces; None if they are not given.
    """

    protocol: Protocol
    reading: Reading
    limit: int | None
    labels: str | None
    train: Sequence[Document] | None


@dataclass(frozen=True)
class _Decoding:
    """The options with which a run extracts; see the options of the command `evaluate`."""

    grounded: bool
    min_score: float | None
    device: Device
    accept_changes: bool


def _evaluate_run(run: Path, data: str, how: _How, decoding: _Decoding) -> tuple[dict[str, object], Report]:
    """Extract with a run and save the predictions in its folder; return the figures and the content of their report."""
    folder = RunFolder(run)
    recipe = folder.config()
    log_crashes_into(run)
    corpus = how.reading.corpus(data)
    corpus = replace(corpus, documents=corpus.documents[: how.limit])
    quiet(recipe.model.source)
    from spantune.extraction import evaluate_run, load_run, rates
    from spantune.report import Report, describe_run
    from spantune.training import environment

    settings = recipe.extract.model_copy(update={"grounded": decoding.grounded})
    extractor = load_run(run, decoding.device, settings, decoding.min_score, accept_changes=decoding.accept_changes)
    evaluation = evaluate_run(extractor, corpus, protocol=how.protocol, train=how.train)
    for note in evaluation.notes:
        say(note)
    say(f"predictions: {evaluation.file}")
    dropped = evaluation.below_threshold
    report_left_out(extractor.calibration, dropped["entities"])
    facts = {"extraction": f"{evaluation.seconds:.1f} s"}
    written = not extractor.task.reads
    if written:
        facts["decoding"] = "grammar" if decoding.grounded else "free"
    if dropped["entities"]:
        facts["left out by the threshold"] = f"{dropped['entities']} entities, of which gold has {dropped['correct']}"
    name = run.resolve().name
    report = Report(
        title=f"spantune · {name} on {data}",
        after=evaluation.scores,
        labels=extractor.task.names,
        gold=corpus.documents,
        predicted=evaluation.extractions,
        facts=facts,
        rates=rates(evaluation.extractions) if written else {},
        written=written,
        config=folder.config_file.read_text(encoding="utf-8"),
        environment=environment(),
        head=describe_run(run),
        train=evaluation.train,
        run=name,
        data=data,
        date=time.strftime("%Y-%m-%d"),
    )
    return evaluation.as_dict(), report


def _score_files(gold: str, predicted: str, how: _How) -> tuple[dict[str, object], Report]:
    """Score a file of predictions against a gold file; return the figures and the content of their report."""
    from spantune.core import from_document
    from spantune.metrics import labels_of, score
    from spantune.report import Report
    from spantune.runs import aligned

    notes: list[str] = []
    gold_documents = how.reading.documents(gold)
    predictions = aligned(gold_documents, list(map(from_document, how.reading.documents(predicted))), predicted, notes)
    for note in notes:
        say(note)
    if how.limit is not None:
        gold_documents = gold_documents[: how.limit]
        gold_ids = {document.id for document in gold_documents}
        predictions = [prediction for prediction in predictions if prediction.document.id in gold_ids]
    predicted_documents = [prediction.document for prediction in predictions]
    codes = label_set(how.labels) or labels_of((*gold_documents, *predicted_documents))
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


def _print_scores(figures: dict[str, object], as_json: bool) -> None:
    if as_json:
        put_json(figures)
        return
    tables.print_scores(figures)
    tables.print_slices(figures)
