"""Every point of the threshold curve, and each choice on it, equals a new count at that threshold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spantune.metrics import thresholds
from spantune.metrics.thresholds import Curve, Point

scores = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.3, np.nextafter(0.3, 1), 0.7, 1.0]))


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[tuple[float, bool]], int]:
    pairs = draw(st.lists(st.tuples(scores, st.booleans()), min_size=1, max_size=40))
    return pairs, sum(right for _, right in pairs) + draw(st.integers(0, 20))


def made(case: tuple[list[tuple[float, bool]], int]) -> Curve:
    pairs, gold = case
    return thresholds.curve(np.array([score for score, _ in pairs]), np.array([right for _, right in pairs]), gold)


def counted(case: tuple[list[tuple[float, bool]], int], threshold: float) -> Point:
    kept = [right for score, right in case[0] if score >= threshold]
    return Point(threshold, len(kept), sum(kept), case[1])


@given(cases())
def test_every_point_is_what_counting_gives(case: tuple[list[tuple[float, bool]], int]) -> None:
    found = made(case)
    points = [found.point(index) for index in range(len(found.kept))]
    assert points == [counted(case, point.threshold) for point in points]
    assert points[0].threshold == 0 and points[0].kept == len(case[0])
    assert {point.kept for point in points} == {counted(case, score).kept for score, _ in case[0]}
    assert found.f1.tolist() == pytest.approx([point.f1 for point in points])
    assert found.precision.tolist() == pytest.approx([point.precision for point in points])


@given(cases(), st.floats(0.01, 1))
def test_choices_are_the_best_of_all_thresholds(case: tuple[list[tuple[float, bool]], int], wanted: float) -> None:
    found = made(case)
    every = [counted(case, score) for score, _ in case[0]]
    best = thresholds.best_f1(found)
    assert best.f1 == max(point.f1 for point in every)
    assert best.kept == max(point.kept for point in every if point.f1 == best.f1)
    good = [point for point in every if point.precision >= wanted]
    reached = thresholds.reaching(found, wanted)
    assert (reached is None) == (not good)
    if reached:
        assert reached.kept == max(point.kept for point in good) and reached.precision >= wanted
    assert thresholds.most_precise(found).precision == max(point.precision for point in every)


@given(cases())
def test_near_equal_thresholds_are_the_run_of_points_around_the_best(
    case: tuple[list[tuple[float, bool]], int],
) -> None:
    found = made(case)
    low, high = thresholds.near_best(found)
    best = thresholds.best_f1(found)
    assert low <= best.threshold <= high
    points = [found.point(index) for index in range(len(found.kept))]
    near = [point.f1 >= best.f1 - thresholds.NEAR - 1e-12 for point in points]
    inside = [low <= point.threshold <= high for point in points]
    assert all(good for good, mine in zip(near, inside, strict=True) if mine)
    edges = [place for place in (inside.index(True) - 1, len(inside) - inside[::-1].index(True)) if place >= 0]
    assert not any(points[place].f1 > best.f1 - thresholds.NEAR + 1e-12 for place in edges if place < len(points))


def test_thresholds_lie_halfway_between_scores() -> None:
    found = made(([(0.2, False), (0.6, True), (0.6, False), (0.9, True)], 3))
    assert found.thresholds.tolist() == pytest.approx([0, 0.4, 0.75])
    assert found.kept.tolist() == [4, 3, 1] and found.correct.tolist() == [2, 2, 1]


def test_thinning_keeps_the_ends() -> None:
    found = made(([(place / 500, place % 3 > 0) for place in range(500)], 400))
    few = thresholds.thinned(found, 11)
    assert len(few) == 11 and few[0] == found.point(0) and few[-1] == found.point(499)
    assert len(thresholds.thinned(made(([(0.5, True)], 1)), 11)) == 1
