"""The command line's `evaluate` and `compare`: score a run, or any two files, and say whether a difference is real.

As in `cli`, no logic lives here: tables and JSON go to stdout, everything for people to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spantune import tables
from spantune.cli_calibrate import MinScore, report_left_out
from spantune.cli_data import Device, Format, Json, quiet
from spantune.errors import ConfigError, DataError

if TYPE_CHECKING:
    from spantune.compare import System
    from spantune.config import Config
    from spantune.document import Document
    from spantune.metrics import Protocol, Scores

Named = Annotated[
    Literal["cblue", "promptcblue"],
    typer.Option("--protocol", help="cblue: start, end and label must be right; promptcblue: mention and label."),
]
Labels = Annotated[str | None, typer.Option(help="The label set, separated by commas; those of the files when absent.")]


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
    as_json: Json = False,
) -> None:
    """Score a run's extractions, or predictions in a file, against gold: F1 and its slices, with 95 % intervals.

    Examples:

        spantune evaluate runs/demo --data bundled:clinical-zh-test

        spantune evaluate --gold test.jsonl --predicted predicted.jsonl --train train.jsonl
    """
    from spantune import formats

    how = _How(protocol, format, limit, labels, formats.read(train).documents if train else None)
    if run and data and not (gold or predicted or labels):
        found = _evaluate_run(run, data, how, grounded, min_score, device)
    elif gold and predicted and not (run or data):
        found = _score_files(gold, predicted, how).as_dict()
    else:
        raise ConfigError(
            "give a run folder with --data FILE (the labels are its task's), or --gold FILE with --predicted FILE"
        )
    for note, count in found["notes"].items():
        print(f"{count} × {note}", file=sys.stderr)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        tables.print_scores(found)
        tables.print_slices(found)


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
    as_json: Json = False,
) -> None:
    """Say whether systems differ on the same documents: paired bootstrap and approximate randomisation.

    Refuses runs that were measured on other documents, or against another annotation of the same texts.

    Examples:

        spantune compare runs/phi4-cmeee runs/phi4-cmeee-r32

        spantune compare --gold test.jsonl before.jsonl after.jsonl --json
    """
    from spantune import formats
    from spantune.compare import compare as judge

    how = _How(protocol, format, None, labels, None)
    right = formats.read(gold, format).documents if gold else None
    found = [_system(path, right, how) for path in systems]
    codes = how.codes(document for one in found for document in (*one.gold, *one.predicted))
    comparison = judge(found, codes)
    for name, scores in comparison.systems.items():
        for note, count in scores.notes.items():
            print(f"{name}: {count} × {note}", file=sys.stderr)
    if as_json:
        print(json.dumps(comparison.as_dict(), ensure_ascii=False))
    else:
        tables.print_comparison(comparison)


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


def _evaluate_run(
    run: Path, data: str, how: _How, grounded: bool, min_score: float | None, device: Device
) -> dict[str, Any]:
    """Extract with a run's adapter, keep the predictions in its folder, and return figures and rates."""
    from spantune import formats
    from spantune.runs import read_config

    recipe = read_config(run)
    gold = formats.read(data, how.format).documents[: how.limit]
    quiet()
    from spantune.corpus import check_labels
    from spantune.evaluate import evaluate as measure
    from spantune.evaluate import save_predictions
    from spantune.extract import load_run

    extractor = load_run(run, device, recipe.extract.model_copy(update={"grounded": grounded}), min_score)
    check_labels(gold, extractor.task.codes)
    known = _trained_on(recipe) if how.train is None else how.train
    evaluation = measure(extractor, gold, protocol=how.protocol, train=known)
    save_predictions(run / "predictions" / f"{Path(data.replace(':', '-')).stem}.jsonl", evaluation.extractions)
    report_left_out(extractor.calibration, sum(len(one.left_out) for one in evaluation.extractions))
    return evaluation.as_dict()


def _trained_on(recipe: Config) -> Sequence[Document] | None:
    """The documents that a run learnt from; None, said on stderr, when they cannot be read any more."""
    from spantune.run_data import read_splits

    try:
        return read_splits(recipe.data).train
    except DataError as error:
        print(f"no figures for seen and unseen surfaces; the training data cannot be read: {error}", file=sys.stderr)
        return None


def _score_files(gold: str, predicted: str, how: _How) -> Scores:
    """Score one file against another."""
    from spantune import formats
    from spantune.metrics import score
    from spantune.pairing import align

    right = formats.read(gold, how.format).documents
    aligned = align(right, formats.read(predicted, how.format).documents)
    if how.limit is not None:
        right = right[: how.limit]
        kept = {document.id for document in right}
        aligned = [document for document in aligned if document.id in kept]
    try:
        return score(right, aligned, how.codes((*right, *aligned)), protocol=how.protocol, train=how.train)
    except DataError as error:
        raise DataError(error.message, path=f"{predicted} against {gold}", field=error.field) from None


def _system(path: Path, gold: Sequence[Document] | None, how: _How) -> System:
    """A run with its newest predictions of the test documents, or a file of predictions."""
    from spantune import formats
    from spantune.compare import System
    from spantune.pairing import align
    from spantune.runs import last_predictions, read_config

    is_run = (path / "config.yaml").is_file()
    if not is_run and gold is None:
        raise ConfigError(f"{path} is no run folder; to compare files of predictions, give --gold FILE")
    predicted = formats.read(last_predictions(path, "test"), "native") if is_run else formats.read(path, how.format)
    if gold is None:
        quiet()
        from spantune.run_data import read_splits

        gold = read_splits(read_config(path).data).test
    return System(str(path), gold, align(gold, predicted.documents), how.protocol)
