"""Measure what a model extracts against gold documents.

The figures are those of `metrics.score` and the rates of answers with problems. Predictions are saved as files.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TypeGuard

from spantune.core import (
    DataError,
    Document,
    Extraction,
    expect,
    expect_each,
    framed_html,
    number,
    replacing,
    to_json,
    to_prediction_record,
    track,
)
from spantune.data import Corpus, read, read_splits
from spantune.extraction.extractor import Extractor
from spantune.extraction.loading import load_run
from spantune.extraction.result import rates
from spantune.metrics import Protocol, Scores, f1_text, require_protocol, score
from spantune.runs import RunFolder, name_predictions


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model on gold documents, the extractions that were scored, and the seconds that extraction took.

    `train` are the training documents, by which seen and unseen surfaces are distinguished. `file` is the
    file with the predictions, or None if they were not saved. `notes` say what was noticed while documents were read.
    """

    gold: tuple[Document, ...]
    extractions: tuple[Extraction, ...]
    scores: Scores
    seconds: float
    train: tuple[Document, ...] = ()
    file: Path | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return (
            f"Evaluation(F1 {f1_text(self.scores.micro)}, {number(len(self.gold), 'document')}, {self.seconds:.1f} s)"
        )

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return framed_html(f"{self.scores.table_html()}{f'<ul>{notes}</ul>' if notes else ''}")

    @property
    def predicted(self) -> list[Document]:
        """The gold texts with the entities that the model extracted."""
        return [extraction.document for extraction in self.extractions]

    def values(self) -> dict[str, float | None]:
        """Return flat figures for `metrics.jsonl` and the trackers; F1's bounds are None if there is no interval."""
        micro = self.scores.micro
        flat: dict[str, float | None] = {
            "f1": micro.f1,
            "precision": micro.precision,
            "recall": micro.recall,
            "macro_f1": self.scores.macro_f1,
        }
        flat |= {"f1_low": micro.f1_low, "f1_high": micro.f1_high}
        for label, figure in self.scores.labels.items():
            flat[f"f1/{label}"] = figure.f1
            if figure.f1_low is not None and figure.f1_high is not None:
                flat |= {f"f1_low/{label}": figure.f1_low, f"f1_high/{label}": figure.f1_high}
        cost = {"documents": len(self.gold), "evaluation_seconds": round(self.seconds, 2)}
        return flat | rates(self.extractions) | cost

    @property
    def below_threshold(self) -> dict[str, int]:
        """The number of entities that a threshold dropped, and how many of them are in gold (`correct`)."""
        pairs = [
            (set(gold.entities), set(extraction.below_threshold))
            for gold, extraction in zip(self.gold, self.extractions, strict=True)
        ]
        return {
            "entities": sum(len(dropped) for _, dropped in pairs),
            "correct": sum(len(gold & dropped) for gold, dropped in pairs),
        }

    def as_dict(self) -> dict[str, object]:
        """Return the scores, the rates, the counts below the threshold and the seconds as one JSON object."""
        more = {**rates(self.extractions), "left_out": self.below_threshold, "seconds": round(self.seconds, 2)}
        return {**self.scores.as_dict(), **more}


def evaluate(
    extractor: Extractor,
    gold: Sequence[Document],
    description: str = "evaluate",
    *,
    protocol: Protocol = "cblue",
    train: Sequence[Document] | None = None,
) -> Evaluation:
    """Extract from the texts of `gold` and score the result against it.

    If the extractor keeps candidates, the thresholds of its head are first chosen on `gold` itself. `description` names
    the progress bar. `protocol` and `train` are those of `metrics.score`.

    Raises:
        DataError: as `Extractor.stream` and `metrics.score`.
    """
    started = time.perf_counter()
    extractions = tuple(track(extractor.stream(gold), description, len(gold)))
    if extractor.keeps_candidates:
        extractions = tuple(extractor.choose_thresholds(gold, extractions))
    seconds = time.perf_counter() - started
    predicted = [extraction.document for extraction in extractions]
    scores = score(gold, predicted, extractor.task.codes, protocol=protocol, train=train)
    return Evaluation(tuple(gold), extractions, scores, seconds, tuple(train or ()))


def evaluate_run(
    run: str | Path | Extractor,
    data: str | Path | Iterable[Document],
    *,
    protocol: Protocol = "cblue",
    train: Iterable[Document] | None = None,
) -> Evaluation:
    """Extract from an annotated corpus with a finished run, and score the entities against the annotation.

        evaluation = spantune.evaluate("runs/demo", "test.jsonl")
        print(evaluation.scores.micro.f1, evaluation.scores.labels)

    Args:
        run: the run folder, or the Extractor that `spantune.load` returned for it, with its device, threshold and
            settings.
        data: a corpus file, `bundled:NAME`, a Corpus, or a list of Documents. Predictions for a file are saved in the
            run folder; they replace earlier predictions for the same corpus.
        protocol: what counts as correct: `cblue` (equal start, end and label) or `promptcblue` (equal mention and
            label).
        train: the training documents, for the figures of seen and unseen surfaces; None takes those of the run.

    Raises:
        ConfigError: an argument is of a wrong type, or there is no such protocol.
        DataError: the corpus is empty or cannot be read, or has a label that the task does not have.
        RunError: the folder is not a finished run, or the predictions cannot be saved.
        ModelError: the model cannot be loaded.
    """
    expect(run, (str, Path, Extractor), "evaluate", "the path of a run folder, or what load returned")
    require_protocol(protocol)
    corpus = read(data) if isinstance(data, str | Path) else data
    gold = list(expect_each(corpus, Document, "data", "a corpus file, a Corpus or a list of Documents"))
    if not gold:
        raise DataError("data: there are no documents; expected at least one")
    if train is not None:
        train = list(expect_each(train, Document, "train", "a list of Documents, such as read(FILE).documents"))
    extractor = run if isinstance(run, Extractor) else load_run(run)
    if extractor.run is not None and _is_corpus(corpus):
        RunFolder(extractor.run).require_writable()
    extractor.task.check(gold)
    notes = [f"{corpus.name}: {count} × {note}" for note, count in corpus.notes.items()] if _is_corpus(corpus) else []
    known = _trained_on(extractor, notes) if train is None else train
    evaluation = evaluate(extractor, gold, protocol=protocol, train=known)
    file = None
    if extractor.run is not None and _is_corpus(corpus):
        file = name_predictions(extractor.run, corpus.name, gold)
        save_predictions(file, evaluation.extractions)
    return replace(evaluation, file=file, notes=tuple(notes))


def _is_corpus(documents: object) -> TypeGuard[Corpus]:
    """Whether `documents` are a Corpus, which was read from a file."""
    return isinstance(documents, Corpus)


def _trained_on(extractor: Extractor, notes: list[str]) -> Sequence[Document] | None:
    """Return the training documents of a run; if they can no longer be read, add a note and return None."""
    if extractor.run is None:
        return None
    try:
        return read_splits(RunFolder(extractor.run).data()).train
    except DataError as error:
        notes.append(f"no figures for seen and unseen surfaces; the training data cannot be read: {error}")
        return None


def save_predictions(path: Path, extractions: Sequence[Extraction]) -> None:
    """Write `extractions` as native JSONL, with the raw answers; `meta.left_out` has the entities below a threshold.

    `spantune.data.read_extractions` reads the file.

    Raises:
        DataError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        for extraction in extractions:
            file.write(to_json(to_prediction_record(extraction)) + "\n")
