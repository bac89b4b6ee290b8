"""The bootstrap resamples as it should, and corrections of p-values equal those computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from spantune.metrics import bootstrap
from spantune.metrics.bootstrap import exchange, holm, interval, p_value, resample
from spantune.metrics.counts import quotients


def test_a_resample_is_a_sum_of_as_many_documents() -> None:
    counts = np.column_stack((np.ones(7), np.eye(7)))
    drawn = resample(counts, 400, 0)
    assert drawn.shape == (400, 8) and (drawn[:, 0] == 7).all()
    assert (drawn[:, 1:].sum(axis=1) == 7).all() and drawn.max() > 1
    assert drawn[:, 1:].mean(axis=0) == pytest.approx(np.ones(7), abs=0.2)
    assert drawn[:, 1].var() == pytest.approx(6 / 7, rel=0.2)  # binomial: n p (1 - p)


def test_blocks_do_not_change_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.arange(20.0).reshape(10, 2)
    whole = resample(counts, 3000, 1)
    monkeypatch.setattr(bootstrap, "BLOCK", 30)
    parts = resample(counts, 3000, 1)
    assert parts.shape == whole.shape
    assert interval(parts) == pytest.approx(interval(whole), rel=0.1)


def test_exchange_keeps_the_sum_and_swaps_about_half() -> None:
    first, second = np.eye(9), np.zeros((9, 9))
    ours, theirs = exchange(first, second, 2000, 0)
    assert (ours + theirs == 1).all() and set(np.unique(ours)) == {0.0, 1.0}
    assert ours.mean(axis=0) == pytest.approx(np.full(9, 0.5), abs=0.05)


def test_p_counts_the_observed_difference_itself() -> None:
    assert p_value(np.array([0.0, 0.1, -0.3, 0.2]), 0.2) == pytest.approx(3 / 5)
    assert p_value(np.zeros(99), 0.5) == pytest.approx(0.01)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_quotients_without_a_denominator_are_zero() -> None:
    table = np.array([[0.0, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 3], [2, 1, 4, 4]])
    assert quotients(table).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0.5, 0.25, pytest.approx(1 / 3)]]
