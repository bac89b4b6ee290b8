"""The largest one-to-one matching of overlapping gold and predicted spans.

All spans lie on one line (see `counts.Line`); those that no chain of overlaps joins are in different groups, and
groups are solved apart. Nearly every group has one span on one side and needs no search; the others are solved exactly
by augmenting paths. The trade-off: a group of thousands of spans that all overlap, which no corpus has, takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


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
