"""Whether scores mean what they say: reliability bins, expected calibration error, a fitted temperature.

A score is the product of the probabilities of an entity's unforced tokens, so the temperature divides its
logarithm: p becomes p^(1/T), the same T for each factor. That keeps the order of all scores and moves their
level, which the logit scaling of Guo et al. (2017) cannot: it leaves 0.5 where it is. One parameter mends a level, not
the shape of a curve. The bins hold equally many scores instead of being equally wide: scores crowd near 1,
and wide bins would be empty on the left and one heap on the right. It refuses nothing: see `calibration`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


BINS = 10
TEMPERATURES = (0.05, 20.0)
"""Bounds of a fitted temperature."""
_LOWEST, _HIGHEST = 1e-12, 1 - 1e-7  # a float32 probability comes no nearer to 1 without being it
_HALVINGS = 60


@dataclass(frozen=True)
class Bin:
    """Predictions with scores from `low` to `high`: how many, their mean score, and the share that is right."""

    low: float
    high: float
    count: int
    confidence: float
    precision: float


def bins(scores: NDArray[np.float64], right: NDArray[np.bool_], count: int = BINS) -> list[Bin]:
    """At most `count` bins of about equally many scores, lowest first; equal scores share one.

    Args:
        scores: probabilities [predictions].
        right: whether each prediction is [predictions].
    """
    order = np.argsort(scores, kind="stable")
    scores, right = scores[order], right[order]
    wanted = np.arange(1, count + 1) * len(scores) // count
    ends = np.unique(np.searchsorted(scores, scores[wanted[wanted > 0] - 1], side="right"))
    starts = [0, *ends[:-1]]
    return [
        Bin(
            float(scores[start]),
            float(scores[end - 1]),
            int(end - start),
            float(scores[start:end].mean()),
            float(right[start:end].mean()),
        )
        for start, end in zip(starts, ends, strict=True)
    ]


def ece(found: Sequence[Bin]) -> float:
    """Expected calibration error: the mean distance of confidence and precision, by count; 0 is perfect."""
    total = sum(one.count for one in found)
    return sum(one.count * abs(one.confidence - one.precision) for one in found) / total if total else 0.0


def fit_temperature(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> float | None:
    """The T, within `TEMPERATURES`, whose p^(1/T) has the least log loss; None unless some are right and some wrong.

    The log loss is convex in 1/T, so that halving the interval on its slope finds the one minimum.
    """
    if right.all() or not right.any():
        return None
    costs = -np.log(np.clip(scores, _LOWEST, _HIGHEST))  # of a right one: cost / T
    of_right = float(costs[right].sum())
    wrong = costs[~right]

    def slope(inverse: float) -> float:
        return of_right - float((wrong / np.expm1(inverse * wrong)).sum())

    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if slope(middle) < 0:
            low = middle
        else:
            high = middle
    return 2 / (low + high)


def tempered(scores: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """p^(1/T) of each score."""
    raised: NDArray[np.float64] = scores ** (1 / temperature)
    return raised
