"""Precision, recall and F1 at each threshold on scores, exact, from one sort of all predictions.

Entities with a score at or above a threshold pass. A threshold is halfway between the lowest score that passes and the
highest that does not, so that a rounding error on another machine changes nothing. At 0 all entities pass. The counts
are micro counts, and an entity that was not predicted is missed at every threshold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from spantune.core import DataError, Document, Entity
from spantune.metrics.counts import quotients
from spantune.metrics.figures import Ratios
from spantune.metrics.pairing import pair

if TYPE_CHECKING:
    from numpy.typing import NDArray


NEAR = 0.005
"""An F1 within this distance of the best one counts as nearly as good."""


@dataclass(frozen=True)
class Point(Ratios):
    """A threshold with the number of entities that pass (`kept`), of the correct ones of them, and of gold entities."""

    threshold: float
    kept: int
    correct: int
    gold: int

    @property
    def counts(self) -> tuple[float, float, float, float]:
        """Correct predictions, gold entities that were found, all predictions, and all gold entities."""
        return self.correct, self.correct, self.kept, self.gold


@dataclass(frozen=True)
class Curve:
    """A point for each different score, by ascending threshold; the first threshold is 0.

    `thresholds`, `kept` and `correct` have a value for each point [points]; `gold` is the number of gold entities.
    """

    thresholds: NDArray[np.float64]
    kept: NDArray[np.int64]
    correct: NDArray[np.int64]
    gold: int

    @property
    def precision(self) -> NDArray[np.float64]:
        """Precision at each threshold [points]."""
        return self._quotients()[:, 0]

    @property
    def f1(self) -> NDArray[np.float64]:
        """F1 at each threshold [points]."""
        return self._quotients()[:, 2]

    def point(self, index: int) -> Point:
        """Return the point at `index`."""
        return Point(float(self.thresholds[index]), int(self.kept[index]), int(self.correct[index]), self.gold)

    def _quotients(self) -> NDArray[np.float64]:
        gold = np.full_like(self.kept, self.gold)
        return quotients(np.stack((self.correct, self.correct, self.kept, gold), axis=-1).astype(float))


def curve(scores: NDArray[np.float64], right: NDArray[np.bool_], gold: int) -> Curve:
    """Return the curve over all thresholds, from at least one prediction.

    Args:
        scores: the score of each prediction [predictions].
        right: whether each prediction is in gold [predictions].
        gold: the number of gold entities.
    """
    values, first = np.unique(scores[order := np.argsort(scores, kind="stable")], return_index=True)
    kept = len(scores) - first
    correct = np.cumsum(right[order][::-1].astype(np.int64))[kept - 1]
    middle = (values[1:] + values[:-1]) / 2
    middle = np.where(middle > values[:-1], middle, values[1:])  # no number lies between two adjacent floats
    return Curve(np.concatenate([[0.0], middle]), kept, correct, gold)


def best_f1(curve: Curve) -> Point:
    """Return the point with the highest F1; of several, the one where most entities pass."""
    return curve.point(int(curve.f1.argmax()))


def near_best(curve: Curve) -> tuple[float, float]:
    """Return the lowest and the highest threshold of the range around the best in which F1 is within `NEAR` of it."""
    f1 = curve.f1
    best = int(f1.argmax())
    worse = np.flatnonzero(f1 < f1[best] - NEAR)
    before, after = worse[worse < best], worse[worse > best]
    low = int(before[-1]) + 1 if len(before) else 0
    high = int(after[0]) - 1 if len(after) else len(f1) - 1
    return float(curve.thresholds[low]), float(curve.thresholds[high])


def reaching(curve: Curve, precision: float) -> Point | None:
    """Return the point with the lowest threshold, and so the highest recall, that has at least this precision.

    None if no threshold reaches the precision.
    """
    enough = np.flatnonzero(curve.precision >= precision)
    return curve.point(int(enough[0])) if len(enough) else None


def most_precise(curve: Curve) -> Point:
    """Return the point with the highest precision; of several, the one where most entities pass."""
    return curve.point(int(curve.precision.argmax()))


def thinned(curve: Curve, count: int) -> list[Point]:
    """Return at most `count` points, evenly spaced by their index, with the first and the last one."""
    indices = np.unique(np.linspace(0, len(curve.kept) - 1, count).round().astype(int))
    return [curve.point(int(index)) for index in indices]


FOLDS = 5


@dataclass(frozen=True)
class Thresholds:
    """A threshold for all labels, and thresholds of single labels, which replace it. At 0 all entities pass."""

    overall: float = 0.0
    labels: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Predictions:
    """All predictions of a corpus as arrays, and the labels and documents of its gold entities.

    Args:
        scores: the score of each prediction [predictions].
        right: whether each prediction is in gold [predictions].
        labels: the label of each prediction [predictions].
        documents: the index of the document of each prediction [predictions].
        gold_labels: the label of each gold entity [gold].
        gold_documents: the index of the document of each gold entity [gold].
    """

    scores: NDArray[np.float64]
    right: NDArray[np.bool_]
    labels: NDArray[np.str_]
    documents: NDArray[np.int64]
    gold_labels: NDArray[np.str_]
    gold_documents: NDArray[np.int64]

    def curve(self, labels: Iterable[str] | None = None) -> Curve:
        """Return the curve of the predictions with one of `labels`, or of all predictions if None."""
        if labels is None:
            return curve(self.scores, self.right, len(self.gold_labels))
        names = list(labels)
        chosen = np.isin(self.labels, names)
        return curve(self.scores[chosen], self.right[chosen], int(np.isin(self.gold_labels, names).sum()))

    def passing(self, chosen: Thresholds) -> Point:
        """Return the counts of the entities that pass the thresholds; the point has the overall threshold."""
        lowest = np.full(len(self.scores), chosen.overall)
        for label, threshold in chosen.labels.items():
            lowest[self.labels == label] = threshold
        mask = self.scores >= lowest
        return Point(chosen.overall, int(mask.sum()), int((mask & self.right).sum()), len(self.gold_labels))

    def folds(self) -> Iterator[tuple[Predictions, Predictions]]:
        """Yield five pairs (predictions to choose by, held-out predictions); every fifth document is held out."""
        for fold in range(FOLDS):
            yield self._fold(False, fold), self._fold(True, fold)

    def _fold(self, inside: bool, fold: int) -> Predictions:
        predicted = (self.documents % FOLDS == fold) == inside
        gold = (self.gold_documents % FOLDS == fold) == inside
        return Predictions(
            self.scores[predicted],
            self.right[predicted],
            self.labels[predicted],
            self.documents[predicted],
            self.gold_labels[gold],
            self.gold_documents[gold],
        )


def collect(gold: Sequence[Document], predicted: Sequence[Document]) -> Predictions:
    """Bring the predictions of documents, which are paired by id, into arrays.

    An entity that is predicted twice in a document counts once, with its highest score.

    Raises:
        DataError: the documents do not pair, nothing was predicted, or a score is missing or not a probability.
    """
    rows: list[tuple[float, bool, str, int]] = []
    gold_rows: list[tuple[str, int]] = []
    for number, (gold_document, document) in enumerate(pair(gold, predicted)):
        gold_entities = set(gold_document.entities)
        gold_rows += [(entity.label, number) for entity in gold_entities]
        highest: dict[Entity, float] = {}
        for entity in document.entities:
            highest[entity] = max(_score(document, entity), highest.get(entity, 0.0))
        rows += [(score, entity in gold_entities, entity.label, number) for entity, score in highest.items()]
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
        np.array([label for label, _ in gold_rows], dtype=str),
        np.array([number for _, number in gold_rows], dtype=int),
    )


def _score(document: Document, entity: Entity) -> float:
    score = entity.score
    if score is None or math.isnan(score) or not 0 <= score <= 1:
        what = "no score" if score is None else f"the score {score}"
        raise DataError(
            f"document {document.id!r}: {entity.label!r} at [{entity.start}, {entity.end}) has {what}; expected a "
            "probability from 0 to 1: calibrate what extract wrote, with its scores",
            field="score",
        )
    return score
