"""Bins and the calibration error equal their definitions; the temperature equals the best one of a search."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spantune.metrics import reliability

scores = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.25, 0.5, 0.999, 1.0]))
rows = st.lists(st.tuples(scores, st.booleans()), min_size=1, max_size=60)


def arrays(pairs: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([score for score, _ in pairs]), np.array([right for _, right in pairs])


def log_loss(scores: np.ndarray, right: np.ndarray, temperature: float) -> float:
    tempered = np.clip(scores, 1e-12, 1 - 1e-7) ** (1 / temperature)
    return float(-(np.log(tempered[right]).sum() + np.log1p(-tempered[~right]).sum()))


@given(rows, st.integers(1, 12))
def test_bins_hold_every_prediction_once_and_equal_scores_together(pairs: list[tuple[float, bool]], count: int) -> None:
    values, right = arrays(pairs)
    found = reliability.bins(values, right, count)
    assert len(found) <= count and sum(one.count for one in found) == len(pairs)
    assert all(before.high < after.low for before, after in pairwise(found))
    for one in found:
        mine = [(score, good) for score, good in pairs if one.low <= score <= one.high]
        assert one.count == len(mine)
        assert one.confidence == pytest.approx(sum(score for score, _ in mine) / len(mine))
        assert one.precision == pytest.approx(sum(good for _, good in mine) / len(mine))
    if len(set(values)) == len(values):
        assert max(one.count for one in found) - min(one.count for one in found) <= 1
    mirrored = reliability.bins(values[::-1], right[::-1], count)
    assert [(one.count, one.precision) for one in mirrored] == [(one.count, one.precision) for one in found]


def test_the_calibration_error_of_a_worked_example() -> None:
    values, right = arrays([(0.2, False), (0.4, True), (0.8, True), (1.0, True)])
    found = reliability.bins(values, right, 2)
    assert [(one.confidence, one.precision) for one in found] == [pytest.approx((0.3, 0.5)), pytest.approx((0.9, 1.0))]
    assert reliability.ece(found) == pytest.approx((2 * 0.2 + 2 * 0.1) / 4)
    assert reliability.ece([]) == 0


@given(rows)
def test_no_other_temperature_has_less_log_loss(pairs: list[tuple[float, bool]]) -> None:
    values, right = arrays(pairs)
    found = reliability.fit_temperature(values, right)
    if right.all() or not right.any():
        assert found is None
        return
    assert found is not None
    low, high = reliability.TEMPERATURES
    assert low <= found <= high * (1 + 1e-9)
    others = [log_loss(values, right, temperature) for temperature in np.geomspace(low, high, 300)]
    assert log_loss(values, right, found) <= min(others) * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_found_again_and_the_error_falls(temperature: float) -> None:
    random = np.random.default_rng(0)
    true = random.beta(3, 1, 40_000)
    right = random.random(len(true)) < true
    spoilt = true**temperature
    found = reliability.fit_temperature(spoilt, right)
    assert found == pytest.approx(temperature, rel=0.03)
    mended = reliability.tempered(spoilt, found)
    assert reliability.ece(reliability.bins(mended, right)) < 0.01
    assert (reliability.ece(reliability.bins(spoilt, right)) > 0.05) == (temperature != 1.0)
