"""Comparison of systems, each of which is a run folder or a file of predictions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from spantune.core import ConfigError, Document, Extraction, RunError, expect, expect_each, from_document
from spantune.data import Corpus, read, read_extractions, read_splits
from spantune.metrics import Comparison, Protocol, System, align, compare, label_codes, labels_of, require_protocol
from spantune.runs.evaluations import predictions_for
from spantune.runs.folder import RunFolder


def compare_runs(
    systems: Iterable[str | Path],
    gold: str | Path | Corpus | None = None,
    *,
    labels: Iterable[str] | None = None,
    protocol: Protocol = "cblue",
) -> Comparison:
    """Test whether systems differ on the same documents, by the paired bootstrap and approximate randomisation.

        comparison = spantune.compare(["runs/small", "runs/large"])
        print(comparison.differences[0].sentence)

    Args:
        systems: two or more run folders; with `gold` also files of predictions. The others are compared with the first.
        gold: the corpus with the correct entities. If None, the test documents of each run's recipe. If `evaluate` has
            scored a run on `gold`, those predictions are used, and otherwise the run's predictions for its own test
            documents.
        labels: the label set. If None, the labels of the documents.
        protocol: what counts as correct: `cblue` (start, end and label) or `promptcblue` (mention and label).

    Raises:
        ConfigError: there are fewer than two systems, or an argument has a wrong type.
        DataError: the systems were scored on different documents, or against different annotations.
        RunError: a run has no predictions yet.
    """
    require_protocol(protocol)
    paths = list(expect_each(systems, (str, Path), "systems", "a list of run folders"))
    expect(gold, (str, Path, Corpus, type(None)), "gold", "a corpus file, a Corpus or None")
    codes = None if labels is None else label_codes(labels)
    corpus = read(gold) if isinstance(gold, str | Path) else gold
    read_from, notes = read_systems(paths, corpus, protocol)
    return replace(
        compare(read_from, labels_of_systems(read_from, paths) if codes is None else codes), notes=tuple(notes)
    )


def read_systems(
    paths: Sequence[str | Path], gold: Corpus | None, protocol: Protocol, format: str | None = None
) -> tuple[list[System], list[str]]:
    """Read the systems of a comparison.

    Args:
        paths: run folders and files of predictions.
        gold: the corpus with the correct entities, as in `compare_runs`.
        protocol: what counts as correct.
        format: the corpus format of the files of predictions; detected from their content if None.

    Returns:
        the systems, and notes for the user, such as how documents were paired. A system is named by the last part of
        its path, or by the whole path if these parts are not all different.

    Raises:
        ConfigError: a path is not a run folder, and there is no `gold`.
        RunError: a run has no predictions.
        DataError: a file cannot be read.
    """
    names = [Path(path).resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    notes = [] if gold is None else _notes(gold)
    return [
        System(name, *_read(Path(path), gold, format, notes), protocol) for path, name in zip(paths, names, strict=True)
    ], notes


def labels_of_systems(systems: Iterable[System], paths: Iterable[str | Path]) -> list[str]:
    """Return the labels that occur in the gold and predicted documents of `systems`.

    They have the order of the task of the first run among `paths`; labels that this task lacks come after.
    """
    labels = labels_of(document for system in systems for document in (*system.gold, *system.documents))
    runs = (run for run in map(RunFolder, map(Path, paths)) if run.is_run)
    task = [code for run in itertools.islice(runs, 1) for code in run.task().codes if code in labels]
    return [*task, *(code for code in labels if code not in task)]


def aligned(
    gold: Sequence[Document], predictions: Sequence[Extraction], path: str, notes: list[str]
) -> list[Extraction]:
    """Return `predictions` with the ids of the gold documents, if no id is in both and the texts are the same.

    Otherwise the predictions are returned unchanged; see `metrics.align`.

    Args:
        gold: the gold documents.
        predictions: the predictions.
        path: the file of the predictions, for the note.
        notes: a note is appended if ids were changed.
    """
    documents = [prediction.document for prediction in predictions]
    paired = align(gold, documents)
    if [document.id for document in paired] != [document.id for document in documents]:
        notes.append(f"{path}: no id is that of a gold document; paired by their texts, which are the same")
    return [replace(prediction, document=document) for prediction, document in zip(predictions, paired, strict=True)]


def _read(
    path: Path, gold: Corpus | None, format: str | None, notes: list[str]
) -> tuple[Sequence[Document], list[Extraction]]:
    """Return the gold documents and the predictions of one system; notes for the user are appended to `notes`."""
    run = RunFolder(path)
    if not run.is_run:
        if gold is None:
            raise ConfigError(f"{path} is no run folder; to compare files of predictions, give --gold FILE")
        corpus = read(path, format)
        notes += _notes(corpus)
        return gold.documents, aligned(gold.documents, list(map(from_document, corpus)), str(path), notes)
    file = (predictions_for(path, gold.documents) if gold else None) or run.last_predictions("test")
    if file.stem == "test-0":
        raise RunError(f"{path} has no predictions after training; end the run with spantune train --resume {path}")
    documents = gold.documents if gold else read_splits(run.data()).test
    if gold is None and run.config().data.f1_on == "dev":
        chosen = "its adapter and its thresholds" if run.task().reads else "its adapter"
        notes.append(f"{path}: there is no test set; measured on the dev documents, which chose {chosen}")
    return documents, aligned(documents, read_extractions(file), str(file), notes)


def _notes(corpus: Corpus) -> list[str]:
    return [f"{corpus.name}: {count} × {note}" for note, count in corpus.notes.items()]
