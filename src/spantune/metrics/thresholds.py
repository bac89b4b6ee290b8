"""Precision, recall and F1 against the threshold on scores, exact, from one sort of all predictions.

What scores at or above a threshold is kept. A threshold lies halfway between the lowest score that is kept and the
highest that is not, so that rounding on another machine moves nothing across it; keeping all is 0. The counts are micro
counts, and what the model never found stays missed at every threshold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from spantune.core import DataError, Document, Entity
from spantune.metrics.pairing import pair

if TYPE_CHECKING:
    from numpy.typing import NDArray


NEAR = 0.005
"""F1 within this of the best counts as near-equal."""


@dataclass(frozen=True)
class Point:
    """What a threshold keeps: counts of kept, correct and gold entities; a quotient without a denominator is 0."""

    threshold: float
    kept: int
    correct: int
    gold: int

    @property
    def precision(self) -> float:
        """Share of the kept entities that are correct."""
        return self.correct / self.kept if self.kept else 0.0

    @property
    def recall(self) -> float:
        """Share of the gold entities that are kept."""
        return self.correct / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.correct / (self.kept + self.gold) if self.kept + self.gold else 0.0


@dataclass(frozen=True)
class Curve:
    """One point for each distinct score, lowest threshold (0: keep all) first; `points[i]` in arrays."""

    thresholds: NDArray[np.float64]
    kept: NDArray[np.int64]
    correct: NDArray[np.int64]
    gold: int

    @property
    def f1(self) -> NDArray[np.float64]:
        """F1 at each threshold."""
        return 2 * self.correct / (self.kept + self.gold)

    @property
    def precision(self) -> NDArray[np.float64]:
        """Precision at each threshold."""
        return self.correct / self.kept

    def point(self, index: int) -> Point:
        """The point at `index`."""
        return Point(float(self.thresholds[index]), int(self.kept[index]), int(self.correct[index]), self.gold)


def curve(scores: NDArray[np.float64], right: NDArray[np.bool_], gold: int) -> Curve:
    """The curve of at least one prediction, over all its thresholds.

    Args:
        scores: of each prediction [predictions].
        right: whether each is in gold [predictions].
        gold: how many gold entities there are.
    """
    values, first = np.unique(scores[order := np.argsort(scores, kind="stable")], return_index=True)
    kept = len(scores) - first
    correct = np.cumsum(right[order][::-1].astype(np.int64))[kept - 1]
    between = (values[1:] + values[:-1]) / 2
    between = np.where(between > values[:-1], between, values[1:])  # neighbours among the floats
    return Curve(np.concatenate([[0.0], between]), kept, correct, gold)


def best_f1(found: Curve) -> Point:
    """The point of the highest F1; of equals the one that keeps the most."""
    return found.point(int(found.f1.argmax()))


def near_best(found: Curve) -> tuple[float, float]:
    """The lowest and the highest threshold around the best one with an F1 nowhere more than `NEAR` under it."""
    f1 = found.f1
    best = int(f1.argmax())
    under = np.flatnonzero(f1 < f1[best] - NEAR)
    before, after = under[under < best], under[under > best]
    low = int(before[-1]) + 1 if len(before) else 0
    high = int(after[0]) - 1 if len(after) else len(f1) - 1
    return float(found.thresholds[low]), float(found.thresholds[high])


def reaching(found: Curve, precision: float) -> Point | None:
    """The lowest threshold with at least this precision, which has the highest recall; None when none has it."""
    enough = np.flatnonzero(found.precision >= precision)
    return found.point(int(enough[0])) if len(enough) else None


def most_precise(found: Curve) -> Point:
    """The point of the highest precision; of equals the one that keeps the most."""
    return found.point(int(found.precision.argmax()))


def thinned(found: Curve, count: int) -> list[Point]:
    """At most `count` points, evenly spaced by rank, the ends among them."""
    places = np.unique(np.linspace(0, len(found.kept) - 1, count).round().astype(int))
    return [found.point(int(place)) for place in places]


FOLDS = 5


@dataclass(frozen=True)
class Thresholds:
    """One threshold for all labels, and those of labels that have their own; 0 keeps all."""

    overall: float = 0.0
    labels: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Predictions:
    """All predictions as arrays [predictions], and of gold entities [gold] where they are."""

    scores: NDArray[np.float64]
    right: NDArray[np.bool_]
    labels: NDArray[np.str_]
    documents: NDArray[np.int64]
    gold_labels: NDArray[np.str_]
    gold_documents: NDArray[np.int64]

    def curve(self, labels: Iterable[str] | None = None) -> Curve:
        """The curve of some labels, or of all."""
        if labels is None:
            return curve(self.scores, self.right, len(self.gold_labels))
        names = list(labels)
        mine = np.isin(self.labels, names)
        return curve(self.scores[mine], self.right[mine], int(np.isin(self.gold_labels, names).sum()))

    def kept(self, chosen: Thresholds) -> Point:
        """What thresholds keep."""
        lowest = np.full(len(self.scores), chosen.overall)
        for label, threshold in chosen.labels.items():
            lowest[self.labels == label] = threshold
        mask = self.scores >= lowest
        return Point(chosen.overall, int(mask.sum()), int((mask & self.right).sum()), len(self.gold_labels))

    def folds(self) -> Iterator[tuple[Predictions, Predictions]]:
        """Pairs of the predictions to choose by and those held out: every fifth document, five times."""
        for fold in range(FOLDS):
            yield self._of(False, fold), self._of(True, fold)

    def _of(self, inside: bool, fold: int) -> Predictions:
        mine = (self.documents % FOLDS == fold) == inside
        golden = (self.gold_documents % FOLDS == fold) == inside
        return Predictions(
            self.scores[mine],
            self.right[mine],
            self.labels[mine],
            self.documents[mine],
            self.gold_labels[golden],
            self.gold_documents[golden],
        )


def collect(gold: Sequence[Document], predicted: Sequence[Document]) -> Predictions:
    """Bring the predictions of documents, paired by id, into arrays; of a repeated one the highest score counts.

    Raises:
        DataError: the documents do not pair, nothing was predicted, or a score is missing or no probability.
    """
    rows: list[tuple[float, bool, str, int]] = []
    true: list[tuple[str, int]] = []
    for number, (right, guessed) in enumerate(pair(gold, predicted)):
        wanted = set(right.entities)
        true += [(entity.label, number) for entity in wanted]
        highest: dict[Entity, float] = {}
        for entity in guessed.entities:
            highest[entity] = max(_score(guessed, entity), highest.get(entity, 0.0))
        rows += [(score, entity in wanted, entity.label, number) for entity, score in highest.items()]
    if not rows:
        raise DataError(
            f"nothing was extracted from {len(gold)} documents, so there are no scores to calibrate; give documents "
            "of the run's kind, or train longer"
        )
    scores, rights, labels, documents = zip(*rows, strict=True)
    return Predictions(
        np.array(scores, dtype=float),
        np.array(rights, dtype=bool),
        np.array(labels),
        np.array(documents),
        np.array([label for label, _ in true], dtype=str),
        np.array([number for _, number in true], dtype=int),
    )


def _score(document: Document, entity: Entity) -> float:
    score = entity.score
    if score is None or math.isnan(score) or not 0 <= score <= 1:
        found = "no score" if score is None else f"the score {score}"
        raise DataError(
            f"document {document.id!r}: {entity.label!r} at [{entity.start}, {entity.end}) has {found}; expected a "
            "probability from 0 to 1: calibrate what extract wrote, with its scores",
            field="score",
        )
    return score
