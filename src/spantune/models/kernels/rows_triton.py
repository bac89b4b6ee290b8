"""The Triton kernel of `RowView`: all rows of a pass at once, each over its own slots.

One program computes a block of a row's queries with all the query heads that share a key head, over the keys of the
row in order (flash attention's online softmax). It reads only keys that are attended to, supports prompts and single
tokens, and its launch depends on shapes only, so that a CUDA graph can capture it. Accumulates in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

KEYS = 64  # keys of a step
QUERIES = 8  # fewest queries of a row in a block


def queries_per_block(group: int) -> int:
    """Return the queries of a row in a block, where `group` query heads share a key head."""
    return _lines(group) // group


# A kernel and its launcher take tensors and numbers one by one.


def attend_blocks(
    query: Tensor, key: Tensor, value: Tensor, slots: Tensor, blocks: Tensor, scale: float, window: int | None
) -> Tensor:
    """Return attention [1, tokens, heads, size] of queries [heads, tokens, size] over slots [slots, kv heads, size].

    Each of `blocks` [blocks, 4] is (row, first query, queries, position of the first); one with 0 queries is skipped.
    """
    heads, tokens, size = query.shape
    group = heads // key.shape[1]
    attended = query.new_empty(1, tokens, heads, size)
    _attend[(len(blocks), key.shape[1])](
        query, key, value, attended, slots, blocks, scale * 1.4426950408889634, window or 0,
        query.stride(0), query.stride(1), slots.stride(0), heads, size,
        GROUP=group, SIZE=max(16, triton.next_power_of_2(size)), LINES=_lines(group), KEYS=KEYS,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
    )  # fmt: skip
    return attended


def _lines(group: int) -> int:
    return max(16, int(triton.next_power_of_2(QUERIES * group)))


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    query, key, value, attended, slots, blocks, scale, window,
    query_head, query_token, slots_row, heads, size,
    GROUP: tl.constexpr, SIZE: tl.constexpr, LINES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A line of the block is one query of one head: line i is query i // GROUP of head i % GROUP of the group."""
    block = blocks + tl.program_id(0) * 4
    row, first, count, position = tl.load(block), tl.load(block + 1), tl.load(block + 2), tl.load(block + 3)
    if count == 0:
        return
    kv_head, kv_heads = tl.program_id(1), tl.num_programs(1)
    line = tl.arange(0, LINES)
    column = tl.arange(0, SIZE)
    number, head = line // GROUP, kv_head * GROUP + line % GROUP
    inside = (number < count)[:, None] & (column < size)[None, :]
    from_query = query + head[:, None] * query_head + (first + number)[:, None] * query_token + column[None, :]
    queries = tl.load(from_query, mask=inside, other=0.0)
    place = position + number
    end = position + count
    begin = tl.where(window > 0, tl.maximum(position - window + 1, 0) // KEYS * KEYS, 0)
    largest = tl.full([LINES], float("-inf"), tl.float32)
    total = tl.zeros([LINES], tl.float32)
    result = tl.zeros([LINES, SIZE], tl.float32)
    for start in range(begin, end, KEYS):
        at = start + tl.arange(0, KEYS)
        slot = tl.load(slots + row * slots_row + at, mask=at < end, other=0).to(tl.int64)
        entry = (slot * kv_heads + kv_head)[:, None] * size + column[None, :]
        there = (at < end)[:, None] & (column < size)[None, :]
        keys = tl.load(key + entry, mask=there, other=0.0)
        weight = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        seen = (at[None, :] <= place[:, None]) & (at < end)[None, :]
        seen = seen & ((window == 0) | (place[:, None] - at[None, :] < window))
        weight = tl.where(seen, weight, float("-inf"))
        now = tl.maximum(largest, tl.max(weight, 1))
        finite = tl.where(now == float("-inf"), 0.0, now)  # a line that has seen no key yet
        weight = tl.exp2(weight - finite[:, None])
        fade = tl.exp2(largest - finite)
        values = tl.load(value + entry, mask=there, other=0.0)
        result = result * fade[:, None] + tl.dot(weight.to(values.dtype), values, input_precision=PRECISION)
        total = total * fade + tl.sum(weight, 1)
        largest = now
    result = result / total[:, None]
    to = attended + ((first + number)[:, None] * heads + head[:, None]) * size + column[None, :]
    tl.store(to, result.to(attended.dtype.element_ty), mask=inside)
