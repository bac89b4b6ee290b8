"""Strict entity scores of predicted documents against gold ones, and their errors sorted by kind.

A prediction is correct when its (start, end, label) is in the gold set of the same document, however
entities nest or cross; every F1 has a 95 % bootstrap interval over documents. Documents are paired by
id, and a pair whose texts differ or that holds a label outside the label set is refused, not skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from spantune.document import Document, Entity
from spantune.errors import DataError, nearest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["correct", "type", "boundary", "boundary+type", "missed", "spurious"]
KINDS: tuple[Kind, ...] = get_args(Kind)
INTERVAL = (2.5, 97.5)
"""Percentiles of the interval: 95 %."""
BLOCK = 250
"""Resamples at a time: 10 MB of weights for 5,000 documents."""


@dataclass(frozen=True)
class Figure:
    """Counts of entities, what follows from them, and the 95 % interval of F1 where there is one.

    A quotient without a denominator is 0.0.
    """

    correct: int
    predicted: int
    gold: int
    f1_low: float | None = None
    f1_high: float | None = None

    @property
    def precision(self) -> float:
        """Share of the predicted entities that are correct."""
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of the gold entities that were found."""
        return self.correct / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.correct / (self.predicted + self.gold) if self.predicted + self.gold else 0.0

    def as_dict(self) -> dict[str, float | int | None]:
        """The figure as a JSON object."""
        return {
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "f1_low": self.f1_low,
            "f1_high": self.f1_high,
            "correct": self.correct,
            "predicted": self.predicted,
            "gold": self.gold,
        }


@dataclass(frozen=True)
class Scores:
    """Strict scores of a corpus: over all entities, and by label code in the order of the label set."""

    micro: Figure
    labels: Mapping[str, Figure]
    documents: int

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the labels that occur in gold or in predictions; a label in neither was not measured."""
        measured = [figure.f1 for figure in self.labels.values() if figure.gold or figure.predicted]
        return sum(measured) / len(measured) if measured else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The scores as a JSON object."""
        labels = {code: figure.as_dict() for code, figure in self.labels.items()}
        strict = {"micro": self.micro.as_dict(), "macro": {"f1": self.macro_f1}, "labels": labels}
        return {"strict": strict, "documents": self.documents}


@dataclass(frozen=True)
class Error:
    """A gold entity, a predicted one, or both as a pair, and what became of it (`correct` too)."""

    kind: Kind
    gold: Entity | None
    predicted: Entity | None


def pair(gold: Sequence[Document], predicted: Sequence[Document]) -> list[tuple[Document, Document]]:
    """Pair gold and predicted documents by id, in the order of `gold`.

    Raises:
        DataError: an id is repeated or on one side only, or the texts of a pair differ.
    """
    by_id = _by_id(predicted, "predicted")
    alone = sorted(_by_id(gold, "gold").keys() ^ by_id.keys())
    if alone:
        side = "predicted" if alone[0] in by_id else "gold"
        raise DataError(
            f"document {alone[0]!r} is {side} only ({len(alone)} such of {len(gold)} gold and {len(predicted)} "
            "predicted); every document needs its counterpart: score the predictions of this very corpus"
        )
    pairs = [(document, by_id[document.id]) for document in gold]
    for one, other in pairs:
        _require_same_text(one, other)
    return pairs


def score(
    gold: Sequence[Document],
    predicted: Sequence[Document],
    labels: Sequence[str],
    resamples: int = 2000,
    seed: int = 0,
) -> Scores:
    """Score `predicted` against `gold` by exact (start, end, label), with 95 % intervals of F1.

    The interval is the percentile bootstrap over documents; a figure without any entity has none, nor has
    any with `resamples=0`. A resample that lacks a label altogether counts as F1 0, so that the interval of
    a label seen in very few documents is wide.

    Raises:
        DataError: the documents do not pair (see `pair`), or a label is not in `labels`.
    """
    pairs = pair(gold, predicted)
    codes = list(dict.fromkeys(labels))
    counts = _count(pairs, codes)
    totals = counts.sum(axis=0)
    figures = [Figure(int(correct), int(guessed), int(true)) for correct, guessed, true in totals]
    if pairs and resamples:
        f1s = _resample(counts, resamples, seed)
        figures = [_with_interval(figure, drawn) for figure, drawn in zip(figures, f1s, strict=True)]
    return Scores(figures[-1], dict(zip(codes, figures[:-1], strict=True)), len(pairs))


def errors(gold: Document, predicted: Document) -> list[Error]:
    """Pair the entities of one text one to one and name what became of each, in reading order.

    Exact matches are paired first, then equal spans, then overlaps: those of the same label before the
    others, the largest overlap first.

    Raises:
        DataError: the texts differ.
    """
    _require_same_text(gold, predicted)
    true, guessed = set(gold.entities), set(predicted.entities)
    found = [Error("correct", entity, entity) for entity in true & guessed]
    true, guessed = true - guessed, guessed - true
    for one, other in _candidates(true, guessed):
        if one in true and other in guessed:
            true.remove(one)
            guessed.remove(other)
            found.append(Error(_kind(one, other), one, other))
    found += [Error("missed", entity, None) for entity in true]
    found += [Error("spurious", None, entity) for entity in guessed]
    return sorted(found, key=_position)


def _by_id(documents: Sequence[Document], side: str) -> dict[str, Document]:
    by_id = {document.id: document for document in documents}
    if len(by_id) < len(documents):
        ids = [document.id for document in documents]
        repeated = next(name for position, name in enumerate(ids) if name in ids[:position])
        raise DataError(f"document {repeated!r} occurs twice among the {side} ones; ids must be unique: rename one")
    return by_id


def _require_same_text(gold: Document, predicted: Document) -> None:
    if gold.text != predicted.text:
        raise DataError(
            f"document {gold.id!r}: the gold text ({len(gold.text)} characters) and the predicted one "
            f"({len(predicted.text)}) differ, so that offsets cannot be compared; extract from this corpus again",
            field="text",
        )


def _count(pairs: Sequence[tuple[Document, Document]], codes: list[str]) -> NDArray[np.float64]:
    """Counts [documents, labels + 1, (correct, predicted, gold)]; the last row of a document is its sum."""
    import numpy as np

    row = {code: index for index, code in enumerate(codes)}
    counts = np.zeros((len(pairs), len(codes) + 1, 3))
    for table, (gold, predicted) in zip(counts, pairs, strict=True):
        true, guessed = set(gold.entities), set(predicted.entities)
        for column, entities in enumerate((true & guessed, guessed, true)):
            for entity in entities:
                if entity.label not in row:
                    side = "predicted" if entity in guessed else "gold"
                    raise DataError(
                        f"document {gold.id!r}: {side} label {entity.label!r} is not in the label set; "
                        f"{nearest(entity.label, codes)}. Mend the annotation or add the label",
                        field="entities",
                    )
                table[row[entity.label], column] += 1
        table[-1] = table[:-1].sum(axis=0)
    return counts


def _resample(counts: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """F1 [labels + 1, resamples] of corpora drawn with replacement from the documents of `counts`."""
    import numpy as np

    random = np.random.default_rng(seed)
    documents = len(counts)
    flat = counts.reshape(documents, -1)
    blocks = []
    for begin in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - begin)
        weights = random.multinomial(documents, np.full(documents, 1 / documents), size=size)
        correct, guessed, true = np.moveaxis((weights.astype(float) @ flat).reshape(size, -1, 3), 2, 0)
        blocks.append(2 * correct / np.maximum(guessed + true, 1))
    return np.concatenate(blocks).T


def _with_interval(figure: Figure, f1s: NDArray[np.float64]) -> Figure:
    import numpy as np

    if not figure.gold and not figure.predicted:
        return figure
    low, high = np.percentile(f1s, INTERVAL)
    return replace(figure, f1_low=float(low), f1_high=float(high))


def _candidates(true: Iterable[Entity], guessed: Iterable[Entity]) -> list[tuple[Entity, Entity]]:
    """Overlapping pairs, best first: equal spans, then same label, then by overlap, then by position."""
    pairs = [(one, other) for one in true for other in guessed if _overlap(one, other) > 0]

    def rank(both: tuple[Entity, Entity]) -> tuple[bool, bool, int, Entity, Entity]:
        one, other = both
        same_span = (one.start, one.end) == (other.start, other.end)
        return (not same_span, one.label != other.label, -_overlap(one, other), one, other)

    return sorted(pairs, key=rank)


def _overlap(one: Entity, other: Entity) -> int:
    """Characters that both cover; negative for a gap."""
    return min(one.end, other.end) - max(one.start, other.start)


def _kind(gold: Entity, predicted: Entity) -> Kind:
    if (gold.start, gold.end) == (predicted.start, predicted.end):
        return "correct" if gold.label == predicted.label else "type"
    return "boundary" if gold.label == predicted.label else "boundary+type"


def _position(error: Error) -> tuple[Entity, int]:
    entity = error.gold or error.predicted
    assert entity is not None
    return (entity, KINDS.index(error.kind))
