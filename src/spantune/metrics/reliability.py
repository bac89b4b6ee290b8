"""How well scores are calibrated: reliability bins, expected calibration error, and a fitted temperature.

The score of a written entity is the product of the probabilities of its unforced tokens. The temperature T therefore
divides the logarithm of the score: p becomes p^(1/T), which applies the same T to each factor. That keeps the order of
all scores and changes their level. The logit scaling of Guo et al. (2017) cannot do so, since it leaves 0.5 unchanged.
One parameter corrects a level, not the shape of a curve.

Bins hold equal numbers of scores instead of having equal widths. Scores are dense near 1, so most bins of equal width
would be empty.
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
"""The lowest and the highest temperature that is fitted."""
_LOWEST, _HIGHEST = 1e-12, 1 - 1e-7  # close to the largest float32 below 1
_HALVINGS = 60


@dataclass(frozen=True)
class Bin:
    """The predictions with scores from `low` to `high`: their number, mean score (`confidence`) and precision."""

    low: float
    high: float
    count: int
    confidence: float
    precision: float


def bins(scores: NDArray[np.float64], right: NDArray[np.bool_], count: int = BINS) -> list[Bin]:
    """Return at most `count` bins with about equal numbers of scores, lowest first. Equal scores are in one bin.

    Args:
        scores: the score of each prediction, from 0 to 1 [predictions].
        right: whether each prediction is in gold [predictions].
        count: the most bins.
    """
    order = np.argsort(scores, kind="stable")
    scores, right = scores[order], right[order]
    cuts = np.arange(1, count + 1) * len(scores) // count
    ends = np.unique(np.searchsorted(scores, scores[cuts[cuts > 0] - 1], side="right"))
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


def ece(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error: the mean of |confidence - precision|, weighted by count; 0 is perfect.

    Source: Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, 2015.
    """
    total = sum(bin.count for bin in bins)
    return sum(bin.count * abs(bin.confidence - bin.precision) for bin in bins) / total if total else 0.0


def fit_temperature(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> float | None:
    """Return the T within `TEMPERATURES` for which p^(1/T) has the lowest log loss.

    The log loss is convex in 1/T, so bisection on its slope finds the minimum.

    Args:
        scores: the score of each prediction, from 0 to 1 [predictions].
        right: whether each prediction is in gold [predictions].

    Returns:
        None if all predictions are right, or all are wrong: the loss then has no minimum.
    """
    if right.all() or not right.any():
        return None
    costs = -np.log(np.clip(scores, _LOWEST, _HIGHEST))  # the loss of a right prediction is its cost divided by T
    right_cost = float(costs[right].sum())
    wrong = costs[~right]

    def slope(inverse: float) -> float:
        return right_cost - float((wrong / np.expm1(inverse * wrong)).sum())

    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if slope(middle) < 0:
            low = middle
        else:
            high = middle
    return 2 / (low + high)


def tempered(scores: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Return p^(1/T) for each score p [predictions]."""
    raised: NDArray[np.float64] = scores ** (1 / temperature)
    return raised
