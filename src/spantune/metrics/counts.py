"""The counts behind every figure: entities as columns of numbers, and what of them is correct in each document.

The texts lie one after another on one line, so that entities of different documents never overlap, and whether
entities are equal, inside one another or overlapping is answered for a whole corpus at once. Equal entities of a
document count once. Refused are labels outside the label set and scores that are no probabilities.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spantune.core import DataError, Document, first_unknown, nearest

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

CORRECT, FOUND, PREDICTED, GOLD = range(4)
"""Columns of a count: correct predictions, gold entities found (of another slice, maybe), and all of either."""


@dataclass(frozen=True)
class Side:
    """The different entities of one side, in order of place.

    `document` and `label` are row numbers, `start` and `end` places on the line of all texts; `nested` says that an
    entity is inside a longer one of its side or has a shorter one inside, `inside` the first of these; `hit` that the
    other side has it too.
    """

    document: Ints
    start: Ints
    end: Ints
    label: Ints
    nested: Bools
    inside: Bools
    surface: NDArray[np.object_]
    hit: Bools
    repeated: int

    def take(self, rows: Ints) -> Side:
        """The entities at `rows` only."""
        columns = {name: getattr(self, name)[rows] for name in Side.__dataclass_fields__ if name != "repeated"}
        return replace(self, **columns)


def sides(pairs: Sequence[tuple[Document, Document]], codes: Sequence[str]) -> tuple[Side, Side]:
    """Gold and predicted entities, with `hit` where the other side has the same place and label.

    Raises:
        DataError: a label is not in `codes`, or a score is no probability.
    """
    gold = _side([one for one, _ in pairs], codes, "gold")
    predicted = _side([other for _, other in pairs], codes, "predicted")
    sizes = (*_size(gold, predicted), len(codes))
    return _hit(
        gold, predicted, *(_keys((one.start, one.end - one.start, one.label), sizes) for one in (gold, predicted))
    )


def mentions(gold: Side, predicted: Side) -> tuple[Side, Side]:
    """The first entity of every surface and label in a document, with `hit` where the other side has such a one."""
    numbers = {surface: number for number, surface in enumerate({*gold.surface, *predicted.surface})}
    sizes = (0, len(numbers), 1 + int(max(gold.label.max(initial=0), predicted.label.max(initial=0))))
    chosen, keys = [], []
    for side in (gold, predicted):
        surface = np.fromiter((numbers[one] for one in side.surface), dtype=np.int64, count=len(side.surface))
        found, rows = np.unique(_keys((side.document, surface, side.label), sizes), return_index=True)
        chosen.append(side.take(np.sort(rows)))
        keys.append(found[np.argsort(rows)])
    return _hit(chosen[0], chosen[1], keys[0], keys[1])


def strict(gold: Side, predicted: Side, documents: int, labels: int) -> Floats:
    """Counts [documents, labels + 1, 4] by label; the last is their sum."""
    table = np.zeros((documents, labels + 1, 4))
    for row in range(labels):
        table[:, row] = tally(gold, predicted, (gold.label == row, predicted.label == row), documents)
    table[:, -1] = table[:, :-1].sum(axis=1)
    return table


def unannotated(gold: Side, predicted: Side, documents: Sequence[Document]) -> Floats:
    """For each document [documents, 3]: whether it has no gold entity and, if so, its characters and predictions."""
    empty = np.bincount(gold.document, minlength=len(documents)) == 0
    characters = [len(document.text) for document in documents]
    guesses = np.bincount(predicted.document, minlength=len(documents))
    return np.stack([empty, empty * characters, empty * guesses], axis=1).astype(float)


def tally(gold: Side, predicted: Side, chosen: tuple[Bools, Bools], documents: int) -> Floats:
    """Counts [documents, 4] of the `chosen` gold and predicted entities."""
    of_gold, of_predicted = chosen
    columns = (
        predicted.document[of_predicted & predicted.hit],
        gold.document[of_gold & gold.hit],
        predicted.document[of_predicted],
        gold.document[of_gold],
    )
    return np.stack([np.bincount(column, minlength=documents) for column in columns], axis=1).astype(float)


def boundary(gold: Side, predicted: Side, documents: int) -> Floats:
    """Counts [documents, 4] of entities with equal places, whatever their labels, one to one."""
    return _counted(gold, predicted, documents, gold.document[_same_places(gold, predicted)[0]], np.ones(1))


def relaxed(gold: Side, predicted: Side, documents: int) -> Floats:
    """Counts [documents, 4] of entities that overlap one of their label, one to one and as many as can be."""
    line = max(gold.end.max(initial=0), predicted.end.max(initial=0))
    spans = [Spans(one.start + one.label * line, one.end + one.label * line) for one in (gold, predicted)]
    rows, pairs = count_pairs(spans[0], spans[1])
    return _counted(gold, predicted, documents, gold.document[rows], pairs)


def partial(gold: Side, predicted: Side, documents: int) -> Floats:
    """Counts [documents, 4] where equal places are correct and other overlaps half, whatever the labels, one to one.

    Pairing equal places first costs nothing: the two halves that such a pair may forgo are worth no more than it.
    """
    equal, its = _same_places(gold, predicted)
    rest = np.flatnonzero(~equal)
    rows, pairs = count_pairs(
        Spans(gold.start[rest], gold.end[rest]), Spans(predicted.start[~its], predicted.end[~its])
    )
    where = np.concatenate((gold.document[equal], gold.document[rest[rows]]))
    return _counted(gold, predicted, documents, where, np.concatenate((np.ones(int(equal.sum())), pairs / 2)))


def _side(documents: Sequence[Document], codes: Sequence[str], name: str) -> Side:
    rows = {code: row for row, code in enumerate(codes)}
    try:
        flat = [(d, e.start, e.end, rows[e.label]) for d, one in enumerate(documents) for e in one.entities]
    except KeyError:
        raise _unknown_label(documents, rows, name) from None
    _require_probabilities(documents, name)
    lengths = np.array([len(one.text) for one in documents], dtype=np.int64)
    offsets = np.cumsum(lengths) - lengths
    table = np.array(flat, dtype=np.int64).reshape(-1, 4)
    table = table[np.lexsort(table.T[::-1])]
    fresh = np.ones(len(table), dtype=bool)
    fresh[1:] = (table[1:] != table[:-1]).any(axis=1)
    document, start, end, label = table[fresh].T
    surface = np.empty(len(document), dtype=object)
    surface[:] = [documents[d].text[s:e] for d, s, e in zip(*(c.tolist() for c in (document, start, end)), strict=True)]
    start, end = start + offsets[document], end + offsets[document]
    around, inside = _nesting(start, end)
    nothing = np.zeros(len(document), dtype=bool)
    return Side(document, start, end, label, around | inside, inside, surface, nothing, int((~fresh).sum()))


def _hit(gold: Side, predicted: Side, ours: Ints, theirs: Ints) -> tuple[Side, Side]:
    return replace(gold, hit=np.isin(ours, theirs)), replace(predicted, hit=np.isin(theirs, ours))


def _nesting(start: Ints, end: Ints) -> tuple[Bools, Bools]:
    """Which entities have a shorter one inside, and which are inside a longer one."""
    order = np.lexsort((-end, start))
    fresh = np.ones(len(order), dtype=bool)
    fresh[1:] = (np.diff(start[order]) != 0) | (np.diff(end[order]) != 0)
    ends = end[order][fresh]
    around, inside = np.zeros((2, len(ends)), dtype=bool)
    inside[1:] = np.maximum.accumulate(ends)[:-1] >= ends[1:]
    around[:-1] = np.minimum.accumulate(ends[::-1])[::-1][1:] <= ends[:-1]
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.cumsum(fresh) - 1
    return around[place], inside[place]


def _same_places(gold: Side, predicted: Side) -> tuple[Bools, Bools]:
    """Which entities of either side have a partner at the same place; a place with two entities can have two pairs."""
    size = _size(gold, predicted)
    keys = []
    for one in (gold, predicted):
        place = _keys((one.start, one.end - one.start), size)
        _, first, inverse = np.unique(place, return_index=True, return_inverse=True)
        rank = np.arange(len(place)) - first[inverse]  # equal places stand together
        keys.append((place, rank))
    ranks = max(int(rank.max(initial=0)) for _, rank in keys) + 1
    mixed = [place * ranks + rank for place, rank in keys]
    return np.isin(mixed[0], mixed[1]), np.isin(mixed[1], mixed[0])


def _counted(gold: Side, predicted: Side, documents: int, where: Ints, weights: NDArray[np.generic]) -> Floats:
    weights = np.broadcast_to(weights, where.shape)
    correct = np.bincount(where, weights=weights, minlength=documents)
    of_predicted = np.bincount(predicted.document, minlength=documents)
    return np.stack([correct, correct, of_predicted, np.bincount(gold.document, minlength=documents)], axis=1)


def _size(gold: Side, predicted: Side) -> tuple[int, int]:
    """One more than the largest start, and than the largest length."""
    starts = [int(side.start.max(initial=0)) for side in (gold, predicted)]
    lengths = [int((side.end - side.start).max(initial=0)) for side in (gold, predicted)]
    return max(starts) + 1, max(lengths) + 1


def _keys(columns: Iterable[Ints], sizes: Iterable[int]) -> Ints:
    """One number for every row of `columns`, whose values are below `sizes`."""
    key: Ints = np.zeros((), dtype=np.int64)
    for column, size in zip(columns, sizes, strict=True):
        key = key * size + column
    return key


def _unknown_label(documents: Sequence[Document], rows: Mapping[str, int], name: str) -> DataError:
    unknown = first_unknown(documents, rows)
    assert unknown is not None
    document, label = unknown[0], unknown[1].label
    return DataError(
        f"document {document.id!r}: {name} label {label!r} is not in the label set; "
        f"{nearest(label, rows)}. Mend the annotation or add the label",
        field="entities",
    )


def _require_probabilities(documents: Sequence[Document], name: str) -> None:
    for document in documents:
        for entity in document.entities:
            if entity.score is not None and not 0 <= entity.score <= 1:
                raise DataError(
                    f"document {document.id!r}: the {name} entity {entity.label!r} at [{entity.start}, {entity.end}) "
                    f"has the score {entity.score}; expected a probability from 0 to 1: mend or remove it",
                    field="entities",
                )


class Spans(NamedTuple):
    """Half-open spans as two columns."""

    start: Ints
    end: Ints


def count_pairs(gold: Spans, predicted: Spans) -> tuple[Ints, Ints]:
    """How many pairs of overlapping spans there can be at most, each span in one pair at most.

    Returns:
        For every group with a pair: the row of one of its gold spans, and its number of pairs.
    """
    groups = _groups(gold, predicted)
    ours, theirs = groups[: len(gold.start)], groups[len(gold.start) :]
    size = int(groups.max(initial=-1)) + 1
    golds, guesses = np.bincount(ours, minlength=size), np.bincount(theirs, minlength=size)
    pairs = np.minimum(golds, guesses)  # exact where it is 0 or 1, since the one span overlaps another
    hard = np.flatnonzero(pairs > 1)
    for group, ones, others in zip(hard, _members(ours, hard), _members(theirs, hard), strict=True):
        start, end = predicted.start[others], predicted.end[others]
        neighbours = [
            np.flatnonzero((start < gold.end[one]) & (gold.start[one] < end)).tolist() for one in ones.tolist()
        ]
        pairs[group] = len(maximum_matching(neighbours))
    found, rows = np.unique(ours, return_index=True)
    return rows[pairs[found] > 0], pairs[found][pairs[found] > 0]


def maximum_matching(neighbours: Sequence[Sequence[int]]) -> dict[int, int]:
    """A largest matching of a bipartite graph, from right to left; `neighbours` are those of each left node."""
    partner: dict[int, int] = {}
    for left in range(len(neighbours)):
        _augment(left, neighbours, partner)
    return partner


def _augment(left: int, neighbours: Sequence[Sequence[int]], partner: dict[int, int]) -> None:
    """Give `left` a partner, others moving to new ones where that frees one; leave all as it is where none can be."""
    came_from: dict[int, int] = {}
    left_by: dict[int, int | None] = {left: None}
    waiting = [left]
    for node in waiting:
        for right in neighbours[node]:
            if right in came_from:
                continue
            came_from[right] = node
            if right in partner:
                left_by[partner[right]] = right
                waiting.append(partner[right])
                continue
            step: int | None = right
            while step is not None:
                partner[step] = came_from[step]
                step = left_by[came_from[step]]
            return


def _groups(gold: Spans, predicted: Spans) -> Ints:
    """The group of every span, gold ones first."""
    start, end = np.concatenate((gold.start, predicted.start)), np.concatenate((gold.end, predicted.end))
    order = np.argsort(start, kind="stable")
    reach = np.maximum.accumulate(end[order])
    groups = np.zeros(len(start), dtype=np.int64)
    groups[order[1:]] = np.cumsum(start[order[1:]] >= reach[:-1])
    return groups


def _members(groups: Ints, chosen: Ints) -> list[Ints]:
    """The rows of every chosen group."""
    order = np.argsort(groups, kind="stable")
    begins = np.searchsorted(groups[order], chosen)
    ends = np.searchsorted(groups[order], chosen, side="right")
    return [order[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
