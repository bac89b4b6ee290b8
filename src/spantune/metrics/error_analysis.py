"""Errors of a corpus sorted: how often each kind occurs, which label is taken for which, and what ailed the answers.

Entities are paired one to one by `metrics.errors`, so every gold entity is in one row of the matrix and every predicted
one in one column; what has no counterpart is in the column or row `none`. A pair is placed by its labels whatever its
boundaries, so the diagonal says beside its count how many of the pairs differ in their boundaries. What ailed an answer
is read from `meta` (`status` and `problems`), as extraction leaves it; a `meta` of another make says nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from spantune.core import Document, Entity
from spantune.metrics.pairing import pair, require_same_text

if TYPE_CHECKING:
    pass


Kind = Literal["correct", "type", "boundary", "boundary+type", "missed", "spurious"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Error:
    """A gold entity, a predicted one, or both as a pair, and what became of it (`correct` too)."""

    kind: Kind
    gold: Entity | None
    predicted: Entity | None


def errors(gold: Document, predicted: Document) -> list[Error]:
    """Pair the entities of one text one to one and name what became of each, in reading order.

    Exact matches are paired first, then equal spans, then overlaps: those of the same label before the
    others, the largest overlap first.

    Raises:
        DataError: the texts differ.
    """
    require_same_text(gold, predicted)
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


NONE = "none"
"""The row of what is predicted only, and the column of what is gold only."""

AnswerKind = Literal["invalid answer", "mention not in text", "never stopped", "truncated by length"]
ANSWER_KINDS: tuple[AnswerKind, ...] = get_args(AnswerKind)

_STATUSES: Mapping[Any, AnswerKind] = {
    "length": "truncated by length",
    "repeated": "never stopped",
    "failed": "invalid answer",
}
_PROBLEMS: Mapping[Any, AnswerKind] = {
    "invalid": "invalid answer",
    "label": "invalid answer",
    "grammar": "invalid answer",
    "ungrounded": "mention not in text",
    "repeated": "mention not in text",
    "truncated": "truncated by length",
}


@dataclass(frozen=True)
class Confusion:
    """Entities by gold and predicted label: `counts` [labels + 1, labels + 1], its last row and column are `none`.

    `boundary` [labels] says how many pairs of the diagonal differ in their boundaries.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    boundary: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """The matrix as a JSON object; rows are gold, columns predicted."""
        counts = [list(row) for row in self.counts]
        return {"labels": [*self.labels, NONE], "counts": counts, "boundary": list(self.boundary)}


@dataclass(frozen=True)
class Judged:
    """A document, its prediction, what became of each entity, and what ailed the answer."""

    gold: Document
    predicted: Document
    errors: Sequence[Error]
    answer: Mapping[AnswerKind, Sequence[str]]

    @property
    def wrong(self) -> int:
        """Errors of the document, those of its answer included."""
        return sum(error.kind != "correct" for error in self.errors) + len(self.answer)


@dataclass(frozen=True)
class Outcome:
    """The judged documents of a corpus with their sums: entities by kind, documents by what ailed their answer."""

    documents: Sequence[Judged]
    kinds: Mapping[Kind, int]
    answers: Mapping[AnswerKind, int]
    confusion: Confusion

    def as_dict(self) -> dict[str, Any]:
        """The sums as a JSON object."""
        return {"errors": dict(self.kinds), "answers": dict(self.answers), "confusion": self.confusion.as_dict()}


def judge(gold: Sequence[Document], predicted: Sequence[Document], labels: Sequence[str]) -> Outcome:
    """Sort the errors of `predicted` against `gold`; a label that is not in `labels` comes after them.

    Raises:
        DataError: the documents do not pair (see `metrics.pair`).
    """
    documents = [Judged(one, other, errors(one, other), answer_errors(other)) for one, other in pair(gold, predicted)]
    found = [error for document in documents for error in document.errors]
    kinds = Counter(error.kind for error in found)
    answers = Counter(kind for document in documents for kind in document.answer)
    return Outcome(
        documents,
        {kind: kinds[kind] for kind in KINDS},
        {kind: answers[kind] for kind in ANSWER_KINDS},
        confusion(found, labels),
    )


def confusion(found: Iterable[Error], labels: Sequence[str]) -> Confusion:
    """The confusion matrix of sorted errors; a label that is not in `labels` comes after them."""
    cells: Counter[tuple[str | None, str | None]] = Counter()
    boundary: Counter[str] = Counter()
    for error in found:
        one, other = (side.label if side else None for side in (error.gold, error.predicted))
        cells[one, other] += 1
        if error.kind == "boundary" and error.gold:
            boundary[error.gold.label] += 1
    seen = {label for cell in cells for label in cell if label is not None}
    names = (*dict.fromkeys(labels), *sorted(seen.difference(labels)))
    counts = tuple(tuple(cells[one, other] for other in (*names, None)) for one in (*names, None))
    return Confusion(names, counts, tuple(boundary[name] for name in names))


def answer_errors(document: Document) -> dict[AnswerKind, tuple[str, ...]]:
    """What ailed the answer that `document` was read from, each kind with what was found, once a kind."""
    found: dict[AnswerKind, list[str]] = {}
    status = document.meta.get("status")
    if isinstance(status, str) and status in _STATUSES:
        found[_STATUSES[status]] = []
    problems = document.meta.get("problems")
    for problem in problems if isinstance(problems, Sequence) else ():
        kind = problem.get("kind") if isinstance(problem, Mapping) else None
        if not isinstance(kind, str) or kind not in _PROBLEMS:
            continue
        endless = status == "repeated" and kind in ("repeated", "truncated")
        place: AnswerKind = "never stopped" if endless else _PROBLEMS[kind]
        found.setdefault(place, []).append(str(problem.get("found", "")))
    return {kind: tuple(found[kind]) for kind in ANSWER_KINDS if kind in found}
