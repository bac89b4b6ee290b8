"""Predictions as arrays: each with its score, whether it is right, its label and its document.

What the choice of thresholds works on, with parts of it that hold documents out. A prediction is right when its
(start, end, label) is in the gold document. It refuses scores that are missing, NaN or outside [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from spantune import thresholds
from spantune.document import Document, Entity
from spantune.errors import DataError
from spantune.pairing import pair
from spantune.thresholds import Curve, Point

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
            return thresholds.curve(self.scores, self.right, len(self.gold_labels))
        names = list(labels)
        mine = np.isin(self.labels, names)
        return thresholds.curve(self.scores[mine], self.right[mine], int(np.isin(self.gold_labels, names).sum()))

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
