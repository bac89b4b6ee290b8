"""The matching of gold and predicted entities has the maximum size for all kinds of groups."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spantune.metrics.counts import Spans, count_pairs, maximum_matching

places = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=5).map(
    lambda found: [(start, start + length) for start, length in found]
)


def columns(spans: list[tuple[int, int]]) -> Spans:
    return Spans(*(np.array([span[side] for span in spans], dtype=np.int64) for side in (0, 1)))


def by_permutation(gold: list[tuple[int, int]], predicted: list[tuple[int, int]]) -> int:
    few, many = sorted((gold, predicted), key=len)
    return max(
        sum(a[0] < b[1] and b[0] < a[1] for a, b in zip(few, order, strict=True))
        for order in permutations(many, len(few))
    )


@pytest.mark.no_cover
@settings(max_examples=1000, deadline=None)
@given(places, places)
def test_as_many_pairs_as_any_assignment_has(gold: list[tuple[int, int]], predicted: list[tuple[int, int]]) -> None:
    rows, pairs = count_pairs(columns(gold), columns(predicted))
    assert pairs.sum() == by_permutation(gold, predicted)
    assert len(set(rows.tolist())) == len(rows) and all(0 <= row < len(gold) for row in rows)


def test_a_greedy_pair_is_given_up_for_two() -> None:
    """(0, 10) is paired with (7, 10), so that (0, 3) can have the long prediction."""
    gold, predicted = [(0, 10), (0, 3)], [(0, 10), (7, 10)]
    assert count_pairs(columns(gold), columns(predicted))[1].tolist() == [2]


@pytest.mark.parametrize(("gold", "predicted"), [([], []), ([(0, 1)], []), ([], [(0, 1)]), ([(0, 2)], [(2, 4)])])
def test_nothing_that_overlaps_is_no_pair(gold: list[tuple[int, int]], predicted: list[tuple[int, int]]) -> None:
    rows, pairs = count_pairs(columns(gold), columns(predicted))
    assert len(rows) == len(pairs) == 0


def test_a_long_augmenting_path_needs_no_recursion() -> None:
    """Left k can pair with right k and k + 1; the last can pair only with right 0, so all others must change."""
    size = 3000
    neighbours = [[node, node + 1] for node in range(size)] + [[0]]
    assert len(maximum_matching(neighbours)) == size + 1
