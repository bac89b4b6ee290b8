"""The errors of predictions, sorted: by kind, by the labels that were confused, and by what was wrong with the answers.

Gold and predicted entities are paired one to one. So every gold entity is in one row of the confusion matrix, and every
predicted entity in one column. An entity without a partner is in the column or row `none`. The labels of a pair decide
its cell, whatever its boundaries. For each cell of the diagonal, `boundary` counts the pairs with different boundaries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from spantune.core import Document, Entity, Extraction, Prediction, ProblemKind, Status, as_extraction
from spantune.metrics.pairing import pair, require_same_text

Kind = Literal["correct", "type", "boundary", "boundary+type", "missed", "spurious"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Error:
    """The kind of a gold entity, of a predicted entity, or of a pair of both. A correct pair is an Error too.

    Args:
        kind: `correct`, `type`, `boundary` or `boundary+type` for a pair; `missed` or `spurious` for a single entity.
        gold: the gold entity; None for `spurious`.
        predicted: the predicted entity; None for `missed`.
    """

    kind: Kind
    gold: Entity | None
    predicted: Entity | None


def errors(gold: Document, predicted: Document) -> list[Error]:
    """Pair the entities of one text one to one, and return the kind of each pair and each entity left, in text order.

    Exact matches are paired first, then equal spans, then overlaps: those with the same label before those with
    different labels, and larger overlaps before smaller ones.

    Raises:
        DataError: the texts differ.
    """
    require_same_text(gold, predicted)
    gold_left, predicted_left = set(gold.entities), set(predicted.entities)
    exact = gold_left & predicted_left
    result = [Error("correct", entity, entity) for entity in exact]
    gold_left, predicted_left = gold_left - exact, predicted_left - exact
    for gold_entity, predicted_entity in _candidates(gold_left, predicted_left):
        if gold_entity in gold_left and predicted_entity in predicted_left:
            gold_left.remove(gold_entity)
            predicted_left.remove(predicted_entity)
            result.append(Error(_kind(gold_entity, predicted_entity), gold_entity, predicted_entity))
    result += [Error("missed", entity, None) for entity in gold_left]
    result += [Error("spurious", None, entity) for entity in predicted_left]
    return sorted(result, key=_position)


def _candidates(gold: Iterable[Entity], predicted: Iterable[Entity]) -> list[tuple[Entity, Entity]]:
    """Return the overlapping pairs in the order of pairing: equal spans, then same label, overlap and position."""
    predicted = list(predicted)
    pairs = [(ours, theirs) for ours in gold for theirs in predicted if _overlap(ours, theirs) > 0]

    def rank(candidate: tuple[Entity, Entity]) -> tuple[bool, bool, int, Entity, Entity]:
        ours, theirs = candidate
        same_span = (ours.start, ours.end) == (theirs.start, theirs.end)
        return (not same_span, ours.label != theirs.label, -_overlap(ours, theirs), ours, theirs)

    return sorted(pairs, key=rank)


def _overlap(first: Entity, second: Entity) -> int:
    """Return the number of characters that both entities cover; negative if there is a gap between them."""
    return min(first.end, second.end) - max(first.start, second.start)


def _kind(gold: Entity, predicted: Entity) -> Kind:
    if (gold.start, gold.end) == (predicted.start, predicted.end):
        return "correct" if gold.label == predicted.label else "type"
    return "boundary" if gold.label == predicted.label else "boundary+type"


def _position(error: Error) -> tuple[Entity, int]:
    entity = error.gold or error.predicted
    assert entity is not None
    return (entity, KINDS.index(error.kind))


NONE = "none"
"""The row of entities that are only predicted, and the column of entities that are only in gold."""

AnswerKind = Literal["invalid answer", "mention not in text", "never stopped", "truncated by length"]
ANSWER_KINDS: tuple[AnswerKind, ...] = get_args(AnswerKind)

_OF_STATUS: Mapping[Status, AnswerKind] = {
    Status.LENGTH: "truncated by length",
    Status.REPEATED: "never stopped",
    Status.FAILED: "invalid answer",
}
_OF_PROBLEM: Mapping[ProblemKind, AnswerKind] = {
    ProblemKind.INVALID: "invalid answer",
    ProblemKind.LABEL: "invalid answer",
    ProblemKind.GRAMMAR: "invalid answer",
    ProblemKind.UNGROUNDED: "mention not in text",
    ProblemKind.REPEATED: "mention not in text",
    ProblemKind.TRUNCATED: "truncated by length",
}


@dataclass(frozen=True)
class Confusion:
    """The number of entities by gold and predicted label.

    Args:
        labels: the labels of the first rows and columns; the last row and column are `none`.
        counts: [labels + 1, labels + 1]; rows are gold labels, columns predicted ones.
        boundary: [labels]; how many pairs of each diagonal cell have different boundaries.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    boundary: tuple[int, ...]

    def as_dict(self) -> dict[str, object]:
        """Return the matrix as a JSON object; rows are gold labels, columns predicted ones."""
        counts = [list(row) for row in self.counts]
        return {"labels": [*self.labels, NONE], "counts": counts, "boundary": list(self.boundary)}


@dataclass(frozen=True)
class Judged:
    """A gold document, its extraction, the kinds of its entities, and what was wrong with the answer.

    `answer` has for each kind of error of the answer the parts of the answer that have it; see `answer_errors`.
    """

    gold: Document
    extraction: Extraction
    errors: Sequence[Error]
    answer: Mapping[AnswerKind, Sequence[str]]

    @property
    def predicted(self) -> Document:
        """The document with the predicted entities."""
        return self.extraction.document

    @property
    def wrong(self) -> int:
        """The number of errors: wrong, missed and spurious entities, and kinds of errors of the answer."""
        return sum(error.kind != "correct" for error in self.errors) + len(self.answer)


@dataclass(frozen=True)
class Outcome:
    """The judged documents of a corpus; entities counted by kind; documents counted by the errors of their answers."""

    documents: Sequence[Judged]
    kinds: Mapping[Kind, int]
    answers: Mapping[AnswerKind, int]
    confusion: Confusion

    @property
    def counts(self) -> dict[str, int]:
        """The number of entities of each kind, then the number of documents with each error of the answer."""
        return dict([*self.kinds.items(), *self.answers.items()])

    def as_dict(self) -> dict[str, object]:
        """Return the counts and the confusion matrix as a JSON object, without the documents."""
        return {"errors": dict(self.kinds), "answers": dict(self.answers), "confusion": self.confusion.as_dict()}


def judge(gold: Sequence[Document], predicted: Sequence[Prediction], labels: Sequence[str]) -> Outcome:
    """Sort the errors of `predicted` against `gold`.

    Args:
        gold: annotated documents.
        predicted: the same documents with predicted entities, as Documents or Extractions.
        labels: the label set, in the order of the confusion matrix. Other labels that occur come after it, sorted.

    Raises:
        DataError: the documents do not pair (see `metrics.pair`).
    """
    extractions = {extraction.document.id: extraction for extraction in map(as_extraction, predicted)}
    judged = []
    for document, prediction in pair(gold, [as_extraction(prediction).document for prediction in predicted]):
        extraction = extractions[prediction.id]
        judged.append(Judged(document, extraction, errors(document, prediction), answer_errors(extraction)))
    all_errors = [error for document in judged for error in document.errors]
    kinds = Counter(error.kind for error in all_errors)
    answers = Counter(kind for document in judged for kind in document.answer)
    return Outcome(
        judged,
        {kind: kinds[kind] for kind in KINDS},
        {kind: answers[kind] for kind in ANSWER_KINDS},
        confusion(all_errors, labels),
    )


def confusion(all_errors: Iterable[Error], labels: Sequence[str]) -> Confusion:
    """Return the confusion matrix of errors. Labels that occur and are not in `labels` come after these, sorted."""
    cells: Counter[tuple[str | None, str | None]] = Counter()
    boundary: Counter[str] = Counter()
    for error in all_errors:
        cells[error.gold.label if error.gold else None, error.predicted.label if error.predicted else None] += 1
        if error.kind == "boundary" and error.gold:
            boundary[error.gold.label] += 1
    seen = {label for cell in cells for label in cell if label is not None}
    names = (*dict.fromkeys(labels), *sorted(seen.difference(labels)))
    counts = tuple(tuple(cells[row, column] for column in (*names, None)) for row in (*names, None))
    return Confusion(names, counts, tuple(boundary[name] for name in names))


def answer_errors(extraction: Extraction) -> dict[AnswerKind, tuple[str, ...]]:
    """Return what was wrong with an answer: each kind of error, with the parts of the answer that have it."""
    parts: dict[AnswerKind, list[str]] = {}
    if extraction.status in _OF_STATUS:
        parts[_OF_STATUS[extraction.status]] = []
    for problem in extraction.problems:
        if problem.kind not in _OF_PROBLEM:
            continue
        is_endless = extraction.status is Status.REPEATED and problem.kind in (
            ProblemKind.REPEATED,
            ProblemKind.TRUNCATED,
        )
        kind: AnswerKind = "never stopped" if is_endless else _OF_PROBLEM[problem.kind]
        parts.setdefault(kind, []).append(problem.found)
    return {kind: tuple(parts[kind]) for kind in ANSWER_KINDS if kind in parts}
