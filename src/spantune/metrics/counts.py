"""The counts behind every figure: entities as columns of numbers, and how many of them are correct in each document.

The texts are placed one after another on one line, so entities of different documents never overlap. Equal, nested and
overlapping entities can then be found for a whole corpus at once. Equal entities of a document count once. Labels
outside the label set and scores that are not probabilities are errors.
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
"""The columns of a table of counts.

They are the correct predictions, the gold entities that were found (perhaps by an entity outside the slice), all
predictions, and all gold entities.
"""


def quotients(counts: Floats) -> Floats:
    """Return precision, recall and F1 [..., 3] from counts [..., 4]. A quotient whose denominator is 0 is 0.

    F1 is computed from the counts and not from precision and recall, so that equal counts give exactly equal F1.
    """
    correct, found, predicted, gold = (counts[..., column] for column in (CORRECT, FOUND, PREDICTED, GOLD))
    ratios = ((correct, predicted), (found, gold), (2 * correct * found, correct * gold + found * predicted))
    return np.stack([np.divide(a, b, out=np.zeros_like(a), where=b > 0) for a, b in ratios], axis=-1)


@dataclass(frozen=True)
class Side:
    """The different entities of one side, gold or predicted, ordered by document and position.

    All columns have the shape [entities].

    Args:
        document: the index of the document.
        start: the start on the line on which all texts are placed.
        end: the end on that line.
        label: the index of the label.
        nested: whether the entity is inside a longer one of its side, or has a shorter one inside.
        inside: whether the entity is inside a longer one of its side.
        surface: the text of the entity.
        hit: whether the other side has the entity too.
        repeated: how many equal entities were dropped.
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
        """Return the entities at `rows`."""
        columns = {name: getattr(self, name)[rows] for name in Side.__dataclass_fields__ if name != "repeated"}
        return replace(self, **columns)


def sides(pairs: Sequence[tuple[Document, Document]], codes: Sequence[str]) -> tuple[Side, Side]:
    """Return the gold and the predicted entities; `hit` is True if the other side has the same span and label.

    Raises:
        DataError: a label is not in `codes`, or a score is not a probability.
    """
    gold = _side([document for document, _ in pairs], codes, "gold")
    predicted = _side([document for _, document in pairs], codes, "predicted")
    sizes = (*_size(gold, predicted), len(codes))
    gold_keys, predicted_keys = (
        _keys((side.start, side.end - side.start, side.label), sizes) for side in (gold, predicted)
    )
    return _hit(gold, predicted, gold_keys, predicted_keys)


def mentions(gold: Side, predicted: Side) -> tuple[Side, Side]:
    """Return the first entity of each surface and label in a document; `hit` is True if the other side has one too."""
    numbers = {surface: number for number, surface in enumerate({*gold.surface, *predicted.surface})}
    sizes = (0, len(numbers), 1 + int(max(gold.label.max(initial=0), predicted.label.max(initial=0))))
    chosen, keys = [], []
    for side in (gold, predicted):
        surface = np.fromiter((numbers[text] for text in side.surface), dtype=np.int64, count=len(side.surface))
        distinct, rows = np.unique(_keys((side.document, surface, side.label), sizes), return_index=True)
        chosen.append(side.take(np.sort(rows)))
        keys.append(distinct[np.argsort(rows)])
    return _hit(chosen[0], chosen[1], keys[0], keys[1])


def strict(gold: Side, predicted: Side, documents: int, labels: int) -> Floats:
    """Return strict counts [documents, labels + 1, 4] by label; the last row has the sums over the labels."""
    table = np.zeros((documents, labels + 1, 4))
    for row in range(labels):
        table[:, row] = tally(gold, predicted, (gold.label == row, predicted.label == row), documents)
    table[:, -1] = table[:, :-1].sum(axis=1)
    return table


def unannotated(gold: Side, predicted: Side, documents: Sequence[Document]) -> Floats:
    """Return [documents, 3]: 1 if a document has no gold entity, its characters and its predictions; else zeros."""
    empty = np.bincount(gold.document, minlength=len(documents)) == 0
    characters = [len(document.text) for document in documents]
    predictions = np.bincount(predicted.document, minlength=len(documents))
    return np.stack([empty, empty * characters, empty * predictions], axis=1).astype(float)


def tally(gold: Side, predicted: Side, chosen: tuple[Bools, Bools], documents: int) -> Floats:
    """Return counts [documents, 4] of the gold and predicted entities for which `chosen` is True."""
    of_gold, of_predicted = chosen
    columns = (
        predicted.document[of_predicted & predicted.hit],
        gold.document[of_gold & gold.hit],
        predicted.document[of_predicted],
        gold.document[of_gold],
    )
    return np.stack([np.bincount(column, minlength=documents) for column in columns], axis=1).astype(float)


def boundary(gold: Side, predicted: Side, documents: int) -> Floats:
    """Return counts [documents, 4] in which an equal span is correct, whatever its label; pairs are one to one."""
    return _counted(gold, predicted, documents, gold.document[_same_places(gold, predicted)[0]], np.ones(1))


def relaxed(gold: Side, predicted: Side, documents: int) -> Floats:
    """Return counts [documents, 4] in which an overlap with an entity of the same label is correct.

    The pairs are a maximum matching: each entity is in one pair at most, and there are as many pairs as possible.
    """
    line = max(gold.end.max(initial=0), predicted.end.max(initial=0))
    spans = [Spans(side.start + side.label * line, side.end + side.label * line) for side in (gold, predicted)]
    rows, pairs = count_pairs(spans[0], spans[1])
    return _counted(gold, predicted, documents, gold.document[rows], pairs)


def partial(gold: Side, predicted: Side, documents: int) -> Floats:
    """Return counts [documents, 4] in which an equal span is correct and another overlap counts as half.

    Labels are ignored, and entities are paired one to one. Equal spans are paired first. That loses nothing: such a
    pair may prevent two overlaps, but these are worth no more than the pair.
    """
    equal, also_equal = _same_places(gold, predicted)
    rest = np.flatnonzero(~equal)
    rows, pairs = count_pairs(
        Spans(gold.start[rest], gold.end[rest]), Spans(predicted.start[~also_equal], predicted.end[~also_equal])
    )
    where = np.concatenate((gold.document[equal], gold.document[rest[rows]]))
    return _counted(gold, predicted, documents, where, np.concatenate((np.ones(int(equal.sum())), pairs / 2)))


def _side(documents: Sequence[Document], codes: Sequence[str], name: str) -> Side:
    rows = {code: row for row, code in enumerate(codes)}
    try:
        flat = [
            (row, entity.start, entity.end, rows[entity.label])
            for row, document in enumerate(documents)
            for entity in document.entities
        ]
    except KeyError:
        raise _unknown_label(documents, rows, name) from None
    _require_probabilities(documents, name)
    lengths = np.array([len(document.text) for document in documents], dtype=np.int64)
    offsets = np.cumsum(lengths) - lengths
    table = np.array(flat, dtype=np.int64).reshape(-1, 4)
    table = table[np.lexsort(table.T[::-1])]
    distinct = np.ones(len(table), dtype=bool)
    distinct[1:] = (table[1:] != table[:-1]).any(axis=1)
    document, start, end, label = table[distinct].T
    surface = np.empty(len(document), dtype=object)
    columns = (column.tolist() for column in (document, start, end))
    surface[:] = [documents[row].text[begin:stop] for row, begin, stop in zip(*columns, strict=True)]
    start, end = start + offsets[document], end + offsets[document]
    around, inside = _nesting(start, end)
    no_hit = np.zeros(len(document), dtype=bool)
    return Side(document, start, end, label, around | inside, inside, surface, no_hit, int((~distinct).sum()))


def _hit(gold: Side, predicted: Side, gold_keys: Ints, predicted_keys: Ints) -> tuple[Side, Side]:
    gold_hit, predicted_hit = np.isin(gold_keys, predicted_keys), np.isin(predicted_keys, gold_keys)
    return replace(gold, hit=gold_hit), replace(predicted, hit=predicted_hit)


def _nesting(start: Ints, end: Ints) -> tuple[Bools, Bools]:
    """Return for each entity whether it has a shorter one inside, and whether it is inside a longer one."""
    order = np.lexsort((-end, start))
    distinct = np.ones(len(order), dtype=bool)
    distinct[1:] = (np.diff(start[order]) != 0) | (np.diff(end[order]) != 0)
    ends = end[order][distinct]
    around, inside = np.zeros((2, len(ends)), dtype=bool)
    inside[1:] = np.maximum.accumulate(ends)[:-1] >= ends[1:]
    around[:-1] = np.minimum.accumulate(ends[::-1])[::-1][1:] <= ends[:-1]
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.cumsum(distinct) - 1
    return around[place], inside[place]


def _same_places(gold: Side, predicted: Side) -> tuple[Bools, Bools]:
    """Return for each entity of both sides whether it has a partner with the same span, in a pairing one to one."""
    size = _size(gold, predicted)
    keys = []
    for side in (gold, predicted):
        place = _keys((side.start, side.end - side.start), size)
        _, first, inverse = np.unique(place, return_index=True, return_inverse=True)
        rank = np.arange(len(place)) - first[inverse]  # equal spans are adjacent
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
    """Return the largest start plus one, and the largest length plus one."""
    starts = [int(side.start.max(initial=0)) for side in (gold, predicted)]
    lengths = [int((side.end - side.start).max(initial=0)) for side in (gold, predicted)]
    return max(starts) + 1, max(lengths) + 1


def _keys(columns: Iterable[Ints], sizes: Iterable[int]) -> Ints:
    """Return one number for every row of `columns`, different for different rows; values must be below `sizes`."""
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
        f"{nearest(label, rows)}. Add the label, or give it another name: spantune data map FILE OLD=NEW --out "
        "NEW_FILE",
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
    """Half-open spans as two columns [spans]."""

    start: Ints
    end: Ints


def count_pairs(gold: Spans, predicted: Spans) -> tuple[Ints, Ints]:
    """Pair overlapping spans so that each is in one pair at most and the number of pairs is as large as possible.

    The spans are divided into groups that do not touch each other, and the pairs of each group are counted.

    Returns:
        For each group with a pair, the row of one of its gold spans [groups], and its number of pairs [groups].
    """
    groups = _groups(gold, predicted)
    of_gold, of_predicted = groups[: len(gold.start)], groups[len(gold.start) :]
    size = int(groups.max(initial=-1)) + 1
    gold_counts, predicted_counts = np.bincount(of_gold, minlength=size), np.bincount(of_predicted, minlength=size)
    pairs = np.minimum(gold_counts, predicted_counts)  # exact for 0 and 1: a single span overlaps another of its group
    hard = np.flatnonzero(pairs > 1)
    for group, gold_rows, predicted_rows in zip(
        hard, _members(of_gold, hard), _members(of_predicted, hard), strict=True
    ):
        start, end = predicted.start[predicted_rows], predicted.end[predicted_rows]
        neighbours = [
            np.flatnonzero((start < gold.end[row]) & (gold.start[row] < end)).tolist() for row in gold_rows.tolist()
        ]
        pairs[group] = len(maximum_matching(neighbours))
    with_gold, rows = np.unique(of_gold, return_index=True)
    group_pairs = pairs[with_gold]
    return rows[group_pairs > 0], group_pairs[group_pairs > 0]


def maximum_matching(neighbours: Sequence[Sequence[int]]) -> dict[int, int]:
    """Return a maximum matching of a bipartite graph as {right node: left node}, by augmenting paths (Berge, 1957).

    Args:
        neighbours: for each left node, the right nodes that it may be matched with.
    """
    partner: dict[int, int] = {}
    for left in range(len(neighbours)):
        _augment(left, neighbours, partner)
    return partner


def _augment(left: int, neighbours: Sequence[Sequence[int]], partner: dict[int, int]) -> None:
    """Match the node `left` along an augmenting path, found by breadth-first search; without one, change nothing."""
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
    """Return the number of the group of every span, gold spans first. Spans of different groups do not overlap."""
    start, end = np.concatenate((gold.start, predicted.start)), np.concatenate((gold.end, predicted.end))
    order = np.argsort(start, kind="stable")
    reach = np.maximum.accumulate(end[order])
    groups = np.zeros(len(start), dtype=np.int64)
    groups[order[1:]] = np.cumsum(start[order[1:]] >= reach[:-1])
    return groups


def _members(groups: Ints, chosen: Ints) -> list[Ints]:
    """Return the rows of every group in `chosen`."""
    order = np.argsort(groups, kind="stable")
    begins = np.searchsorted(groups[order], chosen)
    ends = np.searchsorted(groups[order], chosen, side="right")
    return [order[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
