"""The command line's `evaluate`, `compare` and `report`: score a run or two files, and say what a difference is worth.

As in `cli`, no logic lives here: tables and JSON go to stdout, everything for people to stderr.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spantune.cli import tables
from spantune.cli.options import Device, Format, Json, MinScore, quiet, report_left_out
from spantune.core import ConfigError, DataError, RunError

if TYPE_CHECKING:
    from spantune.core import Config, Document
    from spantune.metrics import Protocol, System
    from spantune.report import Report


Named = Annotated[
    Literal["cblue", "promptcblue"],
    typer.Option("--protocol", help="cblue: start, end and label must be right; promptcblue: mention and label."),
]
Labels = Annotated[str | None, typer.Option(help="The label set, separated by commas; those of the files when absent.")]
ReportFolder = Annotated[
    Path | None,
    typer.Option("--report", help="Write report.html, report.md and scores.json into this folder.", show_default=False),
]


# A command has as many parameters as options: typer reads them from the signature.


def evaluate(
    run: Annotated[Path | None, typer.Argument(help="A run folder; not needed with --gold and --predicted.")] = None,
    data: Annotated[str | None, typer.Option(help="An annotated corpus for the run, or bundled:NAME.")] = None,
    gold: Annotated[str | None, typer.Option(help="Without a run: the corpus that is right.")] = None,
    predicted: Annotated[str | None, typer.Option(help="Without a run: the same documents as predicted.")] = None,
    protocol: Named = "cblue",
    train: Annotated[
        str | None, typer.Option(help="Training corpus, for seen and unseen; a run knows its own.")
    ] = None,
    labels: Labels = None,
    format: Format = None,
    limit: Annotated[int | None, typer.Option(help="Use the first N documents only.", min=1)] = None,
    grounded: Annotated[
        bool, typer.Option("--grounded/--free", help="Decode under the grammar, or without it.")
    ] = True,
    min_score: MinScore = None,
    device: Device = "auto",
    report: ReportFolder = None,
    as_json: Json = False,
) -> None:
    """Score a run's extractions, or predictions in a file, against gold: F1 and its slices, with 95 % intervals.

    Examples:

        spantune evaluate runs/demo --data bundled:clinical-zh-test --report runs/demo/test

        spantune evaluate --gold test.jsonl --predicted predicted.jsonl --train train.jsonl
    """
    _require_report_folder(report)
    how = _How(protocol, format, limit, labels, _read(train, None) if train else None)
    if run and data and not (gold or predicted or labels):
        found, made = _evaluate_run(run, data, how, _Decoding(grounded, min_score, device))
    elif gold and predicted and not (run or data):
        found, made = _score_files(gold, predicted, how)
    else:
        raise ConfigError(
            "give a run folder with --data FILE (the labels are its task's), or --gold FILE with --predicted FILE"
        )
    for note, count in found["notes"].items():
        print(f"{count} × {note}", file=sys.stderr)
    if report:
        from spantune.report import write_report

        write_report(_made(report), made)
    _print_scores(found, as_json)


def compare(
    systems: Annotated[
        list[Path],
        typer.Argument(help="Run folders; with --gold, predicted corpus files too. The first is the yardstick."),
    ],
    gold: Annotated[
        str | None, typer.Option(help="The corpus that is right; that of each run's recipe when absent.")
    ] = None,
    protocol: Named = "cblue",
    labels: Labels = None,
    format: Format = None,
    report: ReportFolder = None,
    as_json: Json = False,
) -> None:
    """Say whether systems differ on the same documents: paired bootstrap and approximate randomisation.

    Refuses runs that were measured on other documents, or against another annotation of the same texts.

    Examples:

        spantune compare runs/phi4-cmeee runs/phi4-cmeee-r32 --report compared

        spantune compare --gold test.jsonl before.jsonl after.jsonl --json
    """
    from spantune.metrics import compare as judge

    _require_report_folder(report)
    how = _How(protocol, format, None, labels, None)
    right = _read(gold, format) if gold else None
    found = [_system(path, name, right, how) for path, name in zip(systems, _names(systems), strict=True)]
    codes = how.codes(document for one in found for document in (*one.gold, *one.predicted))
    comparison = judge(found, codes)
    for name, scores in comparison.systems.items():
        for note, count in scores.notes.items():
            print(f"{name}: {count} × {note}", file=sys.stderr)
    if report:
        from spantune.report import write_comparison

        of = gold or f"the test documents of {found[0].name}"
        write_comparison(_made(report), comparison, found, _label_names(systems, codes), of)
    if as_json:
        print(json.dumps(comparison.as_dict(), ensure_ascii=False))
    else:
        tables.print_comparison(comparison)


def report(run: Annotated[Path, typer.Argument(help="The folder of a finished run.")]) -> None:
    """Make a run's report.html, report.md and scores.json again from what the run recorded; loads no model.

    Example: spantune report runs/demo
    """
    from spantune.report import report_run

    report_run(run)
    print(run / "report.html")


@dataclass(frozen=True)
class _How:
    """How to read and to score; `train` are the documents that make a surface seen."""

    protocol: Protocol
    format: str | None
    limit: int | None
    labels: str | None
    train: Sequence[Document] | None

    def codes(self, documents: Iterable[Document]) -> list[str]:
        """The label set as given, or the labels of `documents`."""
        if self.labels is None:
            return sorted({entity.label for document in documents for entity in document.entities})
        codes = [code for code in (part.strip() for part in self.labels.split(",")) if code]
        if not codes:
            raise ConfigError(f"--labels {self.labels!r} names no label; expected codes such as dis,sym,bod")
        return codes


@dataclass(frozen=True)
class _Decoding:
    """How a run is to extract."""

    grounded: bool
    min_score: float | None
    device: Device


def _evaluate_run(run: Path, data: str, how: _How, decoding: _Decoding) -> tuple[dict[str, Any], Report]:
    """Extract with a run's adapter, keep the predictions in its folder; figures and rates, and their report."""
    from spantune.runs import read_config
    from spantune.training import environment

    recipe = read_config(run)
    gold = _read(data, how.format)[: how.limit]
    quiet()
    from spantune.extraction import evaluate as measure
    from spantune.extraction import explained, load_run, rates, save_predictions
    from spantune.report import Report

    settings = recipe.extract.model_copy(update={"grounded": decoding.grounded})
    extractor = load_run(run, decoding.device, settings, decoding.min_score)
    extractor.task.check(gold)
    known = _trained_on(recipe) if how.train is None else how.train
    evaluation = measure(extractor, gold, protocol=how.protocol, train=known)
    save_predictions(run / "predictions" / f"{_stem(data)}.jsonl", evaluation.extractions)
    gone = evaluation.left_out
    report_left_out(extractor.calibration, gone["entities"])
    facts = {"extraction": f"{evaluation.seconds:.1f} s", "decoding": "grammar" if decoding.grounded else "free"}
    if gone["entities"]:
        facts["left out by the threshold"] = f"{gone['entities']} entities, of which gold has {gone['correct']}"
    name = run.resolve().name
    made = Report(
        title=f"spantune · {name} on {data}",
        after=evaluation.scores,
        labels={label.code: label.name or label.code for label in extractor.task.labels},
        gold=gold,
        predicted=[explained(extraction) for extraction in evaluation.extractions],
        facts=facts,
        rates=rates(evaluation.extractions),
        config=(run / "config.yaml").read_text(encoding="utf-8"),
        environment=environment(),
        run=name,
        data=data,
        date=time.strftime("%Y-%m-%d"),
    )
    return evaluation.as_dict(), made


def _stem(data: str) -> str:
    """The name of a corpus's predictions in a run, never one of those that the run made itself while training."""
    stem = Path(data.replace(":", "-")).stem
    split, _, step = stem.rpartition("-")
    return f"corpus-{stem}" if split in ("dev", "test") and step.isdecimal() else stem


def _trained_on(recipe: Config) -> Sequence[Document] | None:
    """The documents that a run learnt from; None, said on stderr, when they cannot be read any more."""
    from spantune.data import read_splits

    try:
        return read_splits(recipe.data).train
    except DataError as error:
        print(f"no figures for seen and unseen surfaces; the training data cannot be read: {error}", file=sys.stderr)
        return None


def _score_files(gold: str, predicted: str, how: _How) -> tuple[dict[str, Any], Report]:
    """Score one file against another; the figures and their report."""
    from spantune.metrics import score
    from spantune.report import Report

    right = _read(gold, how.format)
    aligned = _aligned(right, _read(predicted, how.format), predicted)
    if how.limit is not None:
        right = right[: how.limit]
        kept = {document.id for document in right}
        aligned = [document for document in aligned if document.id in kept]
    codes = how.codes((*right, *aligned))
    try:
        scores = score(right, aligned, codes, protocol=how.protocol, train=how.train)
    except DataError as error:
        raise DataError(error.message, path=f"{predicted} against {gold}", field=error.field) from None
    title = f"{Path(predicted).name} against {Path(gold).name}"
    made = Report(
        title, scores, dict(zip(codes, codes, strict=True)), right, aligned, data=f"{predicted} against {gold}"
    )
    return scores.as_dict(), made


def _system(path: Path, name: str, gold: Sequence[Document] | None, how: _How) -> System:
    """A run with its newest predictions of the test documents, or a file of predictions."""
    from spantune.data import read_splits
    from spantune.metrics import System
    from spantune.runs import last_predictions, read_config

    is_run = _is_run(path)
    if not is_run and gold is None:
        raise ConfigError(f"{path} is no run folder; to compare files of predictions, give --gold FILE")
    file = last_predictions(path, "test") if is_run else path
    if is_run and file.stem == "test-0":
        raise RunError(f"{path} has no predictions after training; end the run with spantune train --resume {path}")
    predicted = _read(str(file), "native" if is_run else how.format)
    if gold is None:
        gold = read_splits(read_config(path).data).test
    return System(name, gold, _aligned(gold, predicted, str(file)), how.protocol)


def _aligned(gold: Sequence[Document], predicted: Sequence[Document], path: str) -> Sequence[Document]:
    """`predicted` under the ids of `gold`; where that took the texts it is said on stderr."""
    from spantune.metrics import align

    aligned = align(gold, predicted)
    if [document.id for document in aligned] != [document.id for document in predicted]:
        print(f"{path}: no id is that of a gold document; paired by their texts, which are the same", file=sys.stderr)
    return aligned


def _names(paths: Sequence[Path]) -> list[str]:
    """The last names of the paths where these are all different, else the paths."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _label_names(paths: Sequence[Path], codes: Sequence[str]) -> dict[str, str]:
    """Codes with the names that the first run among `paths` gives them, where there is one."""
    from spantune.core import TaskSpec

    run = next(filter(_is_run, paths), None)
    names = {label.code: label.name for label in TaskSpec.load(run).labels} if run else {}
    return {code: names.get(code) or code for code in codes}


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file()


def _read(path: str, format: str | None) -> Sequence[Document]:
    """The documents of a corpus; what its reader mended is said on stderr."""
    from spantune.data import formats

    corpus = formats.read(path, format)
    for note, count in corpus.notes.items():
        print(f"{path}: {count} × {note}", file=sys.stderr)
    return corpus.documents


def _print_scores(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    tables.print_scores(found)
    tables.print_slices(found)


def _require_report_folder(folder: Path | None) -> None:
    """Refuse before anything is measured what a report cannot be written into."""
    if folder and _is_run(folder):
        raise ConfigError(
            f"--report {folder} is a run folder, which has a report of its own; give another, such as {folder / 'test'}"
        )
    if folder and folder.exists() and not folder.is_dir():
        raise ConfigError(f"--report {folder} is a file; expected a folder, which is made where it is not there")


def _made(folder: Path) -> Path:
    """The folder, which is there now."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--report {folder} cannot be made: {error.strerror}; give another folder") from None
    return folder
