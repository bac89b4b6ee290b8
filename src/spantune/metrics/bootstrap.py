"""Chance in a figure: percentile bootstrap, paired bootstrap, approximate randomisation and Holm's correction.

All resample whole documents, whose entities depend on one another. A corpus drawn with replacement is a row of weights,
and its counts are one matrix product, so that ten thousand of them take about a second. The products are of single
precision, exact while a count stays below 2 ** 24.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from spantune.metrics.counts import CORRECT, FOUND, GOLD, PREDICTED

Floats = NDArray[np.float64]

LEVEL = (2.5, 97.5)
"""Percentiles of an interval: 95 %."""
BLOCK = 1_250_000
"""Weights at a time: 250 resamples of 5,000 documents."""


def resample(counts: Floats, resamples: int, seed: int) -> Floats:
    """Sums [resamples, columns] of as many documents, drawn with replacement, as `counts` [documents, columns] has."""
    documents = len(counts)
    random = np.random.default_rng(seed)
    exact = counts.astype(np.float32)
    drawn = []
    for size in _blocks(resamples, documents):
        places = random.integers(documents, size=(size, documents), dtype=np.int32)
        places += np.arange(size, dtype=np.int32)[:, None] * documents
        weights = np.bincount(places.ravel(), minlength=size * documents).reshape(size, documents)
        drawn.append(weights.astype(np.float32) @ exact)
    return np.concatenate(drawn).astype(float)


def exchange(first: Floats, second: Floats, trials: int, seed: int) -> tuple[Floats, Floats]:
    """Sums [trials, columns] of two systems when each document's counts change sides with probability one half."""
    documents = len(first)
    random = np.random.default_rng(seed)
    gap = (second - first).astype(np.float32)
    moved = []
    for size in _blocks(trials, documents):
        bits = np.unpackbits(
            np.frombuffer(random.bytes(size * -(-documents // 8)), dtype=np.uint8).reshape(size, -1), axis=1
        )
        moved.append(bits[:, :documents].astype(np.float32) @ gap)
    shift = np.concatenate(moved).astype(float)
    return first.sum(axis=0) + shift, second.sum(axis=0) - shift


def quotients(counts: Floats) -> Floats:
    """Precision, recall and F1 in the last axis of `counts`, whose columns are those of `spantune.counts`.

    A quotient without a denominator is 0. F1 is computed of whole numbers, so that equal counts have equal F1.
    """
    correct, found, predicted, gold = (counts[..., column] for column in (CORRECT, FOUND, PREDICTED, GOLD))
    crossed = correct * gold + found * predicted
    parts = ((correct, predicted), (found, gold), (2 * correct * found, crossed))
    return np.stack([np.divide(a, b, out=np.zeros_like(a), where=b > 0) for a, b in parts], axis=-1)


def average(counts: Floats) -> Floats:
    """Mean precision, recall and F1 [resamples, 3] over the labels of `counts` [resamples, labels, 4] that have any."""
    measured = counts[..., PREDICTED] + counts[..., GOLD] > 0
    total = (quotients(counts) * measured[..., None]).sum(axis=1)
    mean: Floats = total / np.maximum(measured.sum(axis=1), 1)[:, None]
    return mean


def interval(values: Floats) -> Floats:
    """The bounds of the middle 95 % of `values` along the first axis, in a new first axis."""
    return np.percentile(values, LEVEL, axis=0)


def p_value(drawn: Floats, observed: float) -> float:
    """Share of `drawn` differences that are at least as far from 0 as `observed`, which counts as one of them."""
    return float((1 + (np.abs(drawn) >= abs(observed) - 1e-12).sum()) / (1 + len(drawn)))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for being several, by Holm's method."""
    adjusted = [0.0] * len(p_values)
    least = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


def _blocks(count: int, documents: int) -> Iterator[int]:
    size = max(1, BLOCK // documents)
    for begin in range(0, count, size):
        yield min(size, count - begin)
