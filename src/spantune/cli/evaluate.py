"""The commands `spantune evaluate`, `compare` and `report`: score a run or a file, and compare systems.

Tables and JSON go to stdout, messages to stderr.
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
    parts_read,
    reading_options,
    report_left_out,
)
from spantune.core import ConfigError, DataError, log_crashes_into, put, put_json, require_new, say
from spantune.runs import RunFolder

if TYPE_CHECKING:
    from spantune.core import Document
    from spantune.data import Corpus, Options
    from spantune.metrics import Protocol
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


# Commands have many parameters, since typer reads the options from the signature.


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
    _require_report_folder(report, (run, data, gold, predicted, train), force)
    reading = _Reading(format, reading_options(column, joiner, label, encoding, offsets))
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
    column: Column = None,
    joiner: Joiner = None,
    label: Label = None,
    encoding: Encoding = None,
    offsets: Offsets = None,
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
    from spantune.runs import labels_of_systems, read_systems

    _require_report_folder(report, (*systems, gold), force)
    reading = _Reading(format, reading_options(column, joiner, label, encoding, offsets))
    how = _How(protocol, reading, None, labels, None)
    read, notes = read_systems(systems, reading.corpus(gold) if gold else None, protocol, format)
    for note in notes:
        say(note)
    codes = how.codes or labels_of_systems(read, systems)
    comparison = compare_systems(read, codes)
    for name, scores in comparison.systems.items():
        for note, count in scores.notes.items():
            say(f"{name}: {count} × {note}")
    if report:
        from spantune.report import write_comparison

        data = gold or f"the {RunFolder(systems[0]).config().data.f1_on} documents of {read[0].name}"
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
class _Reading:
    """How corpora are read.

    Args:
        format: the corpus format; detected from the content of a file if None.
        options: the other options of reading, such as the encoding.
    """

    format: str | None
    options: Options

    def corpus(self, path: str) -> Corpus:
        """Read a corpus."""
        from spantune.data import formats

        return formats.read(path, self.format, self.options)

    def documents(self, path: str) -> Sequence[Document]:
        """Read the documents of a corpus, and print on stderr what the reader repaired."""
        corpus = self.corpus(path)
        for note, count in corpus.notes.items():
            say(f"{corpus.name}: {count} × {note}")
        return corpus.documents


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
    reading: _Reading
    limit: int | None
    labels: str | None
    train: Sequence[Document] | None

    @property
    def codes(self) -> list[str] | None:
        """The given label set; None for the labels of the documents.

        Raises:
            ConfigError: the option names no label.
        """
        if self.labels is None:
            return None
        codes = [code for code in (part.strip() for part in self.labels.split(",")) if code]
        if not codes:
            raise ConfigError(f"--labels {self.labels!r} names no label; expected codes such as dis,sym,bod")
        return codes


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
    codes = how.codes or labels_of((*gold_documents, *predicted_documents))
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


def _label_names(paths: Sequence[Path], codes: Sequence[str]) -> dict[str, str]:
    """Return code to name for `codes`, with the names of the first run among `paths`; a code without a name is kept."""
    names = _task_names(paths)
    return {code: names.get(code, code) for code in codes}


def _task_names(paths: Sequence[Path]) -> dict[str, str]:
    """Return code to name for the labels of the first run among `paths`; empty if none is a run folder."""
    from spantune.core import TaskSpec

    run = next((path for path in paths if RunFolder(path).is_run), None)
    return TaskSpec.load(run).names if run else {}


def _print_scores(figures: dict[str, object], as_json: bool) -> None:
    if as_json:
        put_json(figures)
        return
    tables.print_scores(figures)
    tables.print_slices(figures)


def _require_report_folder(folder: Path | None, inputs: Iterable[str | Path | None], force: bool) -> None:
    """Check that a report can be written into a folder, before predictions are made and scored.

    Args:
        folder: the folder of the option --report; None if it is not given.
        inputs: the files and folders that the command reads.
        force: whether an existing report may be replaced.

    Raises:
        ConfigError: a report cannot be written there.
    """
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
    """Create a folder if it does not exist, and return it.

    Raises:
        ConfigError: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--report {folder} cannot be made: {error.strerror}; give another folder") from None
    return folder
