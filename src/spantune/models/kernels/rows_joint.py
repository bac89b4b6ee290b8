"""Attention of rows with few queries each on a CPU, all rows in one matrix of scores.

    scores         instruction          own keys of each row
    row 1, query   x x x x x x x x x    x x x x
    row 1, query   x x x x x x x x x    x x x x x
    row 3, query   x x x x x x x x x    x x

The queries of all rows are multiplied with the keys of the instruction, which all rows begin with, in one product, and
those of each row with the row's own keys, which lie in runs of consecutive slots, so that no key is copied. The query
heads that share a key head are rows of the same product. One softmax serves all rows; a mask, made once a pass for each
window, hides what lies behind a query, outside its window, or beyond the keys of its row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """The queries of one row in a pass: `queries` of them from index `first`, at positions from `position`."""

    row: int
    first: int
    queries: int
    position: int


class Run(NamedTuple):
    """Keys in consecutive slots: those of the positions from `position` to before `end`, from `slot` on."""

    position: int
    end: int
    slot: int


@dataclass(frozen=True)
class Runs:
    """Where the keys of a pass are: those of the instruction, and of each span's row those behind the instruction."""

    shared: Sequence[Run]
    own: Sequence[Sequence[Run]]


class _Product(NamedTuple):
    """Queries that are multiplied with the keys of some slots, and the columns of the scores where the result goes."""

    queries: slice
    slots: slice
    columns: slice


class JointAttention:
    """The attention of a pass in layers of one window; spans begin at the pass's first query and follow each other.

    Args:
        spans: the queries of each row.
        runs: the keys of each row.
        window: of the layers, in tokens; None where they have none.
        group: the query heads that share a key head.
    """

    def __init__(self, spans: Sequence[Span], runs: Runs, window: int | None, group: int):
        begins = [max(0, span.position - window + 1) if window else 0 for span in spans]
        self._group = group
        self._tokens = sum(span.queries for span in spans)
        shared = list(_within(runs.shared, min(begins), max(span.position + span.queries for span in spans)))
        self._products = list(_products(slice(0, self._tokens * group), shared, 0))
        first_own = sum(run.end - run.position for run in shared)
        owns = []
        for span, begin, own in zip(spans, begins, runs.own, strict=True):
            owns.append(list(_within(own, begin, span.position + span.queries)))
            queries = slice(span.first * group, (span.first + span.queries) * group)
            self._products += _products(queries, owns[-1], first_own)
        self._mask = _mask(spans, shared, owns, window).repeat_interleave(group, 0)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention [tokens, heads, size] of queries [heads, tokens, size] over slots [slots, kv heads, size].

        All are of one dtype, fp32 or wider, and the result too.
        """
        kv_heads, size = key.shape[1:]
        # [kv heads, tokens * group, size], so that the queries of a row are consecutive
        queries = query.view(kv_heads, self._group, -1, size).transpose(1, 2).reshape(kv_heads, -1, size)
        keys, values = key.permute(1, 2, 0), value.transpose(0, 1)
        scores = self._mask.to(queries.dtype).repeat(kv_heads, 1, 1)
        for product in self._products:
            part = scores[:, product.queries, product.columns]
            part.baddbmm_(queries[:, product.queries], keys[:, :, product.slots], alpha=scale)
        weights = scores.softmax(-1)
        attended = torch.zeros_like(queries)
        for product in self._products:
            part = attended[:, product.queries]
            part.baddbmm_(weights[:, product.queries, product.columns], values[:, product.slots])
        return attended.view(kv_heads, -1, self._group, size).transpose(0, 1).flatten(1, 2)


def _within(runs: Iterable[Run], begin: int, end: int) -> Iterator[Run]:
    """The parts of runs between two positions."""
    for run in runs:
        first, last = max(run.position, begin), min(run.end, end)
        if first < last:
            yield Run(first, last, run.slot + first - run.position)


def _products(queries: slice, runs: Iterable[Run], column: int) -> Iterator[_Product]:
    """The products of queries with the keys of runs, whose scores begin at a column."""
    for run in runs:
        count = run.end - run.position
        yield _Product(queries, slice(run.slot, run.slot + count), slice(column, column + count))
        column += count


def _mask(spans: Sequence[Span], shared: Sequence[Run], owns: Sequence[Sequence[Run]], window: int | None) -> Tensor:
    """What is added to the scores [tokens, keys]: minus infinity where a query does not attend to a key."""
    common = [position for run in shared for position in range(run.position, run.end)]
    rows = [[position for run in own for position in range(run.position, run.end)] for own in owns]
    width = max(map(len, rows))
    nowhere = max(span.position + span.queries for span in spans)  # behind every query
    places = torch.tensor([common + row + [nowhere] * (width - len(row)) for row in rows])
    counts = torch.tensor([span.queries for span in spans])
    positions = torch.cat([torch.arange(span.position, span.position + span.queries) for span in spans])
    distance = positions[:, None] - places.repeat_interleave(counts, 0)
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
