"""Attention of rows with few queries each on a CPU: the scores of all rows are one matrix.

    scores         instruction          own keys of each row
    row 1, query   x x x x x x x x x    x x x x
    row 1, query   x x x x x x x x x    x x x x x
    row 3, query   x x x x x x x x x    x x

All rows begin with the instruction; the queries of all rows are multiplied with its keys in one product. The queries of
each row are multiplied with the row's own keys. Keys lie in runs of consecutive slots, so that no key is copied. The
query heads that share a key head are rows of the same product. One softmax serves all rows. A mask hides keys after the
query, keys outside of its window, and columns beyond the keys of its row; it is made once in a pass for each window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """The queries of one row in a pass.

    Attributes:
        row: the index of the row.
        first: the index of the first query among the queries of the pass.
        queries: the number of queries.
        position: the position of the first query in its row.
    """

    row: int
    first: int
    queries: int
    position: int


class Run(NamedTuple):
    """Keys in consecutive slots: those of the positions `position` to `end` - 1, in the slots from `slot` on."""

    position: int
    end: int
    slot: int


@dataclass(frozen=True)
class Runs:
    """The slots of the keys of a pass.

    Attributes:
        shared: the keys of the instruction.
        own: for each span, the keys of its row after the instruction.
    """

    shared: Sequence[Run]
    own: Sequence[Sequence[Run]]


class _Product(NamedTuple):
    """A product of queries with the keys of some slots, and the columns of the scores for its result."""

    queries: slice
    slots: slice
    columns: slice


class JointAttention:
    """The attention of a pass in all layers with the same window.

    Args:
        spans: the queries of each row. The first span begins at the first query of the pass, and each further span
            follows the one before it.
        runs: the slots of the keys of each row.
        window: the window of the layers in tokens; None for no window.
        group: the number of query heads that share a key head.
    """

    def __init__(self, spans: Sequence[Span], runs: Runs, window: int | None, group: int):
        begins = [max(0, span.position - window + 1) if window else 0 for span in spans]
        self._group = group
        tokens = sum(span.queries for span in spans)
        shared = list(_within(runs.shared, min(begins), max(span.position + span.queries for span in spans)))
        self._products = list(_products(slice(0, tokens * group), shared, 0))
        first_own = sum(run.end - run.position for run in shared)
        owns = []
        for span, begin, own in zip(spans, begins, runs.own, strict=True):
            owns.append(list(_within(own, begin, span.position + span.queries)))
            queries = slice(span.first * group, (span.first + span.queries) * group)
            self._products += _products(queries, owns[-1], first_own)
        self._mask = _mask(spans, shared, owns, window).repeat_interleave(group, 0)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return the attention [tokens, heads, size]; all tensors have the same type, fp32 or wider.

        Args:
            query: [heads, tokens, size].
            key: [slots, kv heads, size], the keys of all slots.
            value: [slots, kv heads, size], the values of all slots.
            scale: the factor on the products of queries and keys.
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
    """Yield the parts of runs at the positions from `begin` to `end` - 1."""
    for run in runs:
        first, last = max(run.position, begin), min(run.end, end)
        if first < last:
            yield Run(first, last, run.slot + first - run.position)


def _products(queries: slice, runs: Iterable[Run], column: int) -> Iterator[_Product]:
    """Yield the products of queries with the keys of runs; their scores begin at `column`."""
    for run in runs:
        count = run.end - run.position
        yield _Product(queries, slice(run.slot, run.slot + count), slice(column, column + count))
        column += count


def _mask(spans: Sequence[Span], shared: Sequence[Run], owns: Sequence[Sequence[Run]], window: int | None) -> Tensor:
    """Return the mask [tokens, keys] that is added to scores: minus infinity where a query does not attend to a key."""
    common = [position for run in shared for position in range(run.position, run.end)]
    rows = [[position for run in own for position in range(run.position, run.end)] for own in owns]
    width = max(map(len, rows))
    nowhere = max(span.position + span.queries for span in spans)  # a position after all queries, which is hidden
    places = torch.tensor([common + row + [nowhere] * (width - len(row)) for row in rows])
    counts = torch.tensor([span.queries for span in spans])
    positions = torch.cat([torch.arange(span.position, span.position + span.queries) for span in spans])
    distance = positions[:, None] - places.repeat_interleave(counts, 0)
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
