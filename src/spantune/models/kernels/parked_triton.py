"""The Triton kernel with which a GPU reads rows of a table in the host's pinned memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def gathered(table: Tensor, ids: Tensor) -> Tensor:
    """Return the rows [..., size] of `ids` [...], on the device of `ids`; `table` [tokens, size] must be pinned."""
    size = table.shape[1]
    rows = torch.empty((*ids.shape, size), dtype=table.dtype, device=ids.device)
    if ids.numel():
        _gather[(ids.numel(),)](table, ids.contiguous(), rows, size, SIZE=triton.next_power_of_2(size), num_warps=8)
    return rows


@triton.jit  # type: ignore[untyped-decorator]
def _gather(table, ids, rows, size, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    place, column = tl.program_id(0), tl.arange(0, SIZE)
    row = tl.load(ids + place).to(tl.int64)
    values = tl.load(table + row * size + column, mask=column < size)
    tl.store(rows + place.to(tl.int64) * size + column, values, mask=column < size)
