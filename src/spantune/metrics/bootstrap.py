"""Uncertainty of figures: percentile bootstrap, paired bootstrap, approximate randomisation and Holm's correction.

All of them resample whole documents, because the entities of a document depend on one another. A resampled corpus is a
row of weights, and its counts are one matrix product, so that ten thousand of them take about a second. The products
have single precision, which is exact as long as a count is below 2 ** 24.

Sources: Efron and Tibshirani, An Introduction to the Bootstrap, 1993; Noreen, Computer-Intensive Methods for Testing
Hypotheses, 1989 (approximate randomisation); Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from spantune.metrics.counts import GOLD, PREDICTED, Floats, quotients

LEVEL = (2.5, 97.5)
"""The percentiles that bound a 95 % interval."""
BLOCK = 1_250_000
"""The number of weights that are computed at a time: 250 resamples of 5,000 documents."""


def resample(counts: Floats, resamples: int, seed: int) -> Floats:
    """Return sums [resamples, columns] over corpora drawn with replacement from `counts` [documents, columns]."""
    documents = len(counts)
    random = np.random.default_rng(seed)
    exact = counts.astype(np.float32)
    drawn = []
    for size in _blocks(resamples, documents):
        indices = random.integers(documents, size=(size, documents), dtype=np.int32)
        indices += np.arange(size, dtype=np.int32)[:, None] * documents
        weights = np.bincount(indices.ravel(), minlength=size * documents).reshape(size, documents)
        drawn.append(weights.astype(np.float32) @ exact)
    return np.concatenate(drawn).astype(float)


def exchange(first: Floats, second: Floats, trials: int, seed: int) -> tuple[Floats, Floats]:
    """Return sums [trials, columns] of two systems after exchanging each document's counts with probability 1/2.

    Args:
        first: the counts of the first system [documents, columns].
        second: those of the second system, in the same order of documents.
        trials: the number of trials.
        seed: the seed.
    """
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


def average(counts: Floats) -> Floats:
    """Return mean precision, recall and F1 [resamples, 3] over the labels of `counts` [resamples, labels, 4].

    A label that occurs neither in gold nor in predictions is left out of the mean.
    """
    measured = counts[..., PREDICTED] + counts[..., GOLD] > 0
    total = (quotients(counts) * measured[..., None]).sum(axis=1)
    mean: Floats = total / np.maximum(measured.sum(axis=1), 1)[:, None]
    return mean


def interval(values: Floats) -> Floats:
    """Return the bounds [2, ...] of the middle 95 % of `values` [resamples, ...]."""
    return np.percentile(values, LEVEL, axis=0)


def p_value(drawn: Floats, observed: float) -> float:
    """Return the p-value: the share of differences that are at least as far from 0 as `observed`.

    `observed` counts as one of the `drawn` differences, so that p is never 0.
    """
    return float((1 + (np.abs(drawn) >= abs(observed) - 1e-12).sum()) / (1 + len(drawn)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values after Holm's correction for multiple comparisons, in the same order."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _blocks(count: int, documents: int) -> Iterator[int]:
    size = max(1, BLOCK // documents)
    for begin in range(0, count, size):
        yield min(size, count - begin)
