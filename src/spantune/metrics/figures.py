"""The values of a measurement: figures with their counts and intervals, and the scores of a corpus.

All values are fractions of 1, and each class can return itself as a JSON object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from spantune.core import data_frame, framed_html, number, table_html
from spantune.metrics.counts import quotients

if TYPE_CHECKING:
    import pandas

Protocol = Literal["cblue", "promptcblue"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

FEWEST_DOCUMENTS = 10
"""A figure to which fewer documents contribute has no interval.

The percentile bootstrap is too narrow by sqrt((n - 1) / n), and takes the normal quantile where Student's t would be
right (Hesterberg, What Teachers Should Know About the Bootstrap, 2015). For a mean of n normal values its 95 % interval
therefore covers 85 % of the time with 5 documents, 89.8 % with 9 and 90.4 % with 10; with one it is a single point.
"""
TOO_FEW = "too few to say"
"""What is shown for a figure that has no interval because too few documents contribute to it."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The 95 % intervals of precision, recall and F1.

    All bounds are None for a figure without entities, or if fewer than FEWEST_DOCUMENTS documents contribute to it.
    """

    f1_low: float | None = None
    f1_high: float | None = None
    precision_low: float | None = None
    precision_high: float | None = None
    recall_low: float | None = None
    recall_high: float | None = None


class Ratios:
    """Precision, recall and F1 from counts. A quotient whose denominator is 0 is 0.0."""

    @property
    def counts(self) -> tuple[float, float, float, float]:
        """Correct predictions, gold entities that were found, all predictions, and all gold entities."""
        raise NotImplementedError

    @property
    def precision(self) -> float:
        """The share of the predicted entities that are correct."""
        return self._quotients()[0]

    @property
    def recall(self) -> float:
        """The share of the gold entities that were found."""
        return self._quotients()[1]

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        return self._quotients()[2]

    def _quotients(self) -> list[float]:
        values: list[float] = quotients(np.array(self.counts, dtype=float)).tolist()
        return values


@dataclass(frozen=True)
class Figure(Bounds, Ratios):
    """Counts of entities, and 95 % intervals where there are any.

    Args:
        correct: the predicted entities that are correct; fractional if an overlap counts as half.
        predicted: all predicted entities.
        gold: all gold entities.
        found: the gold entities that were found, where that number can differ from `correct`: in slices by nesting, in
            which a gold entity may be and the equal predicted one may not. None elsewhere.
    """

    correct: float
    predicted: int
    gold: int
    found: int | None = None

    @property
    def counts(self) -> tuple[float, float, float, float]:
        """Correct predictions, gold entities that were found, all predictions, and all gold entities."""
        return self.correct, self.correct if self.found is None else self.found, self.predicted, self.gold

    def as_dict(self) -> dict[str, float | int | None]:
        """Return the figure as a JSON object. The key `found` is there only if `found` is not None."""
        counts = {"correct": self.correct, "predicted": self.predicted, "gold": self.gold}
        return {**_values(self), **counts, **({} if self.found is None else {"found": self.found})}

    def __repr__(self) -> str:
        counts = f"{self.correct:g} correct of {self.predicted} predicted and {self.gold} gold"
        return f"Figure(F1 {f1_text(self)}, {counts})"


@dataclass(frozen=True)
class Average(Bounds):
    """The means of precision, recall and F1 over the labels that occur in gold or in predictions."""

    precision: float
    recall: float
    f1: float

    def as_dict(self) -> dict[str, float | None]:
        """Return the means as a JSON object."""
        return _values(self)


@dataclass(frozen=True)
class FalseAlarms:
    """The predictions in documents without a gold entity: how many there are, and in how many documents and characters.

    `per_1000_low` and `per_1000_high` are the 95 % interval of `per_1000`; None where too few documents contribute.
    """

    documents: int
    characters: int
    predicted: int
    per_1000_low: float | None = None
    per_1000_high: float | None = None

    @property
    def per_1000(self) -> float:
        """The number of predicted entities per 1,000 characters."""
        return 1000 * self.predicted / self.characters if self.characters else 0.0

    def as_dict(self) -> dict[str, float | int | None]:
        """Return the false alarms as a JSON object."""
        return {**asdict(self), "per_1000": self.per_1000}


@dataclass(frozen=True)
class Scores:
    """The scores of a corpus.

    Args:
        micro: the strict figure of all entities together.
        labels: the strict figure of each label, in the order of the label set.
        documents: the number of documents.
        protocol: what counted as correct.
        boundary: an equal span is correct, whatever its label.
        relaxed: an overlap with an entity of the same label is correct.
        partial: an equal span is correct and an overlap counts as half, whatever the label (SemEval-2013 task 9.1).
        slices: strict figures of parts of the entities, by kind and name, such as `nesting` and `inside`.
        alarms: the predictions in documents without a gold entity; None if there are no such documents.
        macro: the means of the strict figures of the labels.
        notes: what was noticed and is not an error, with counts.

    `boundary`, `relaxed` and `partial` pair gold and predicted entities one to one, by their positions.
    """

    micro: Figure
    labels: Mapping[str, Figure]
    documents: int
    protocol: Protocol
    boundary: Figure
    relaxed: Figure
    partial: Figure
    slices: Mapping[str, Mapping[str, Figure]]
    alarms: FalseAlarms | None
    macro: Average
    notes: Mapping[str, int] = field(default_factory=dict)

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the labels that occur in gold or in predictions."""
        return self.macro.f1

    def __repr__(self) -> str:
        counts = f"{self.micro.correct:g} correct of {self.micro.predicted} predicted and {self.micro.gold} gold"
        return f"Scores(micro F1 {f1_text(self.micro)}, {counts}, {number(self.documents, 'document')})"

    def _repr_html_(self) -> str:
        return framed_html(self.table_html())

    def table_html(self) -> str:
        """Return the strict scores, overall and by label, as an HTML table."""
        macro = (f"{value:.3f}" for value in (self.macro.precision, self.macro.recall))
        rows = [_cells("all (micro)", self.micro), ("mean of labels (macro)", *macro, f1_text(self.macro), "", "", "")]
        rows += [_cells(label, figure) for label, figure in self.labels.items()]
        kind = "strict" if self.protocol == "cblue" else f"strict, {self.protocol}"
        return table_html((kind, "P", "R", "F1 [95 %]", "correct", "predicted", "gold"), rows)

    def to_dicts(self) -> list[dict[str, object]]:
        """Return a row for each label: its code, its strict figure with intervals, and the counts."""
        return [{"label": label, **figure.as_dict()} for label, figure in self.labels.items()]

    def to_pandas(self) -> pandas.DataFrame:
        """Return the rows of `to_dicts` as a DataFrame.

        Raises:
            ConfigError: pandas is not installed.
        """
        return data_frame(self.to_dicts(), ["label"])

    def as_dict(self) -> dict[str, object]:
        """Return the scores as a JSON object."""
        labels = {code: figure.as_dict() for code, figure in self.labels.items()}
        return {
            "protocol": self.protocol,
            "documents": self.documents,
            "strict": {"micro": self.micro.as_dict(), "macro": self.macro.as_dict(), "labels": labels},
            "boundary": self.boundary.as_dict(),
            "relaxed": self.relaxed.as_dict(),
            "partial": self.partial.as_dict(),
            "slices": {
                kind: {name: figure.as_dict() for name, figure in figures.items()}
                for kind, figures in self.slices.items()
            },
            "alarms": self.alarms.as_dict() if self.alarms else None,
            "notes": dict(self.notes),
        }


def f1_text(figure: Figure | Average) -> str:
    """Return F1 as text, with its interval if there is one, such as "0.842 [0.780, 0.891]"."""
    if figure.f1_low is None or figure.f1_high is None:
        return f"{figure.f1:.3f}"
    return f"{figure.f1:.3f} [{figure.f1_low:.3f}, {figure.f1_high:.3f}]"


def _cells(name: str, figure: Figure) -> tuple[str, ...]:
    counts = (f"{figure.correct:g}", str(figure.predicted), str(figure.gold))
    return (name, f"{figure.precision:.3f}", f"{figure.recall:.3f}", f1_text(figure), *counts)


def _values(figure: Figure | Average) -> dict[str, float | None]:
    """Return precision, recall and F1, each followed by the bounds of its interval."""
    names = [f"{name}{end}" for name in ("precision", "recall", "f1") for end in ("", "_low", "_high")]
    return {name: getattr(figure, name) for name in names}
