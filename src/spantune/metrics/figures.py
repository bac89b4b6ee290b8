"""The values of a measurement: figures with their counts and intervals, and the scores that hold them.

Plain numbers, made by `metrics`; each knows itself as a JSON object, in fractions of 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

Protocol = Literal["cblue", "promptcblue"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The 95 % intervals of precision, recall and F1, None where there are none."""

    f1_low: float | None = None
    f1_high: float | None = None
    precision_low: float | None = None
    precision_high: float | None = None
    recall_low: float | None = None
    recall_high: float | None = None


@dataclass(frozen=True)
class Figure(Bounds):
    """Counts of entities, what follows from them, and 95 % intervals where there are any.

    A quotient without a denominator is 0.0. `correct` is fractional where an overlap counts as half. `found` is how
    many gold entities were found, where that is not `correct`: in slices that an entity can be in on one side only.
    """

    correct: float
    predicted: int
    gold: int
    found: int | None = None

    @property
    def precision(self) -> float:
        """Share of the predicted entities that are correct."""
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of the gold entities that were found."""
        found = self.correct if self.found is None else self.found
        return found / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        found = self.correct if self.found is None else self.found
        crossed = self.correct * self.gold + found * self.predicted
        return 2 * self.correct * found / crossed if crossed else 0.0

    def as_dict(self) -> dict[str, float | int | None]:
        """The figure as a JSON object; `found` is in it only where it is not `correct`."""
        found = {} if self.found is None else {"found": self.found}
        counts = {"correct": self.correct, "predicted": self.predicted, "gold": self.gold, **found}
        return {**_quotients(self), **counts}


@dataclass(frozen=True)
class Average(Bounds):
    """Means over the labels that occur in gold or in predictions: a label in neither was not measured."""

    precision: float
    recall: float
    f1: float

    def as_dict(self) -> dict[str, float | None]:
        """The means as a JSON object."""
        return _quotients(self)


@dataclass(frozen=True)
class FalseAlarms:
    """What was predicted in the documents that have no gold entity; `per_1000` of their characters."""

    documents: int
    characters: int
    predicted: int
    per_1000_low: float | None = None
    per_1000_high: float | None = None

    @property
    def per_1000(self) -> float:
        """Predicted entities per 1,000 characters."""
        return 1000 * self.predicted / self.characters if self.characters else 0.0

    def as_dict(self) -> dict[str, float | int | None]:
        """The false alarms as a JSON object."""
        return {**asdict(self), "per_1000": self.per_1000}


@dataclass(frozen=True)
class Scores:
    """Scores of a corpus; `micro`, `macro` and `labels`, by code in the order of the label set, are strict.

    `boundary` asks for the right place whatever the label, `relaxed` for an overlap with one of the label, `partial`
    counts an overlap as half whatever the label (SemEval-2013 task 9.1); all three pair entities one to one and always
    by place. `slices` are strict figures by kind and name, and `notes` count what was met and is no error.
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
        """Mean F1 of the labels that occur in gold or in predictions."""
        return self.macro.f1

    def as_dict(self) -> dict[str, Any]:
        """The scores as a JSON object."""
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


def _quotients(values: Figure | Average) -> dict[str, float | None]:
    """Precision, recall and F1, each with the bounds of its interval after it."""
    names = [f"{name}{end}" for name in ("precision", "recall", "f1") for end in ("", "_low", "_high")]
    return {name: getattr(values, name) for name in names}
