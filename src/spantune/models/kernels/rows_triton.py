"""The Triton kernel of `RowView`: attention of all rows of a pass at once, each row over its own slots.

One program computes a block of a row's queries, for all query heads that share a key head. It goes over the keys of the
row in order (flash attention's online softmax), and reads only keys that the queries attend to. Sums are in float32. A
row may have one query or many, as in a prompt. The launch depends on shapes only, so that a CUDA graph can capture it.

In a pass with few tokens the keys of a row are divided over several programs, and a second kernel adds their sums.
Otherwise most of the GPU would wait for a few long rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

DIVIDED = {32: 8, 64: 4}  # by the most tokens of a pass, the number of programs over which a row's keys are divided
QUERIES = 8  # a block has room for at least this many queries of a row


def queries_per_block(group: int) -> int:
    """Return the most queries of a row in a block, if `group` query heads share a key head."""
    return _lines(group) // group


# A kernel and its launcher take tensors and numbers one by one.


def attend_blocks(
    query: Tensor, key: Tensor, value: Tensor, slots: Tensor, blocks: Tensor, scale: float, window: int | None
) -> Tensor:
    """Return the attention [1, tokens, heads, size] of the queries of a pass.

    Args:
        query: [heads, tokens, size].
        key: [slots, kv heads, size], the keys of all slots.
        value: [slots, kv heads, size], the values of all slots.
        slots: [rows, positions], the slot of the key at each position of each row.
        blocks: [blocks, 4], each block's row, the index of its first query, its number of queries, and the position of
            the first one; a block with 0 queries is skipped.
        scale: the factor on the products of queries and keys.
        window: the attention window in tokens; None or 0 for no window.
    """
    heads, tokens, size = query.shape
    group, shares = heads // key.shape[1], _shares(tokens)
    attended = query.new_empty(1, tokens, heads, size)
    sums = attended if shares == 1 else query.new_empty(shares, tokens, heads, size, dtype=torch.float32)
    totals = attended if shares == 1 else query.new_empty(2, shares, tokens, heads, dtype=torch.float32)
    width = max(16, triton.next_power_of_2(size))
    keys, stages = _step(width * query.element_size(), shares)
    _attend[(len(blocks), key.shape[1], shares)](
        query, key, value, sums, totals, slots, blocks, scale * 1.4426950408889634, window or 0,
        query.stride(0), query.stride(1), slots.stride(0), heads, size, tokens,
        GROUP=group, SIZE=width, LINES=_lines(group), KEYS=keys, SHARES=shares,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32", num_warps=4, num_stages=stages,
    )  # fmt: skip
    if shares > 1:
        _join[(tokens, heads)](sums, totals, attended, heads, size, tokens, SIZE=width, SHARES=shares, num_warps=1)
    return attended


def _step(line: int, shares: int) -> tuple[int, int]:
    """Return the number of keys that a program reads in one step, and the number of stages of its pipeline.

    The values are the fastest ones that were measured.

    Args:
        line: the bytes of a key.
        shares: the number of programs over which the keys of a row are divided.
    """
    if shares > 1:
        return 32, 4
    return (128, 2) if line <= 256 else (64, 3)


def _shares(tokens: int) -> int:
    """Return the number of programs over which the keys of a row are divided, by the tokens of a pass."""
    return next((shares for most, shares in DIVIDED.items() if tokens <= most), 1)


def _lines(group: int) -> int:
    return max(16, int(triton.next_power_of_2(QUERIES * group)))


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    query, key, value, attended, totals, slots, blocks, scale, window,
    query_head, query_token, slots_row, heads, size, tokens,
    GROUP: tl.constexpr, SIZE: tl.constexpr, LINES: tl.constexpr, KEYS: tl.constexpr, SHARES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute a block. Line i of it is query i // GROUP of the block, for head i % GROUP of the group.

    With SHARES > 1 the program computes one share of the keys: `attended` [shares, tokens, heads, size] gets the
    weighted sum of values before its division, and `totals` [2, shares, tokens, heads] the largest score of the share
    and the sum of its weights.
    """
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
    stop, share = end, tl.program_id(2)
    if SHARES > 1:
        each = tl.cdiv(tl.cdiv(end - begin, KEYS), SHARES) * KEYS
        begin += share * each
        stop = tl.minimum(end, begin + each)
    largest = tl.full([LINES], float("-inf"), tl.float32)
    total = tl.zeros([LINES], tl.float32)
    result = tl.zeros([LINES, SIZE], tl.float32)
    for start in range(begin, stop, KEYS):
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
        finite = tl.where(now == float("-inf"), 0.0, now)  # 0 for a line that has attended to no key yet
        weight = tl.exp2(weight - finite[:, None])
        fade = tl.exp2(largest - finite)
        values = tl.load(value + entry, mask=there, other=0.0)
        result = result * fade[:, None] + tl.dot(weight.to(values.dtype), values, input_precision=PRECISION)
        total = total * fade + tl.sum(weight, 1)
        largest = now
    cell = (share * tokens + first + number) * heads + head
    if SHARES > 1:
        there = number < count
        tl.store(totals + cell, largest, mask=there)
        tl.store(totals + SHARES * tokens * heads + cell, total, mask=there)
    else:
        result = result / total[:, None]
    to = attended + cell[:, None] * size + column[None, :]
    tl.store(to, result.to(attended.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _join(  # type: ignore[no-untyped-def]
    sums, totals, attended, heads, size, tokens, SIZE: tl.constexpr, SHARES: tl.constexpr
):
    """Add the sums of all shares for one token and one head.

    Each sum is multiplied by 2 ** (largest score of its share - largest score of all shares) before.
    """
    cell = tl.program_id(0) * heads + tl.program_id(1)
    share, column = tl.arange(0, SHARES), tl.arange(0, SIZE)
    largest = tl.load(totals + share * tokens * heads + cell)
    total = tl.load(totals + (SHARES + share) * tokens * heads + cell)
    fade = tl.exp2(largest - tl.max(largest, 0))
    at = (share * tokens * heads + cell)[:, None] * size + column[None, :]
    values = tl.load(sums + at, mask=(column < size)[None, :], other=0.0)
    result = tl.sum(values * fade[:, None], 0) / tl.sum(total * fade, 0)
    tl.store(attended + cell * size + column, result.to(attended.dtype.element_ty), mask=column < size)
