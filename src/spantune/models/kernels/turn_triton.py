"""The Triton kernel that transposes a matrix of bytes: tiles are read and written in whole lines.

FP8 products read both matrices along the dimension that is summed. So the gradient of an input needs the transposed
weight.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 128  # the rows, and the columns, of a tile


def turned(matrix: Tensor) -> Tensor:
    """Return the transpose [columns, rows] of `matrix` [rows, columns]; both are contiguous, an entry has one byte."""
    rows, columns = matrix.shape
    target = matrix.new_empty((columns, rows))
    grid = (triton.cdiv(rows, TILE), triton.cdiv(columns, TILE))
    _turn[grid](matrix.view(torch.uint8), target.view(torch.uint8), rows, columns, SIZE=TILE, num_warps=8)
    return target


@triton.jit  # type: ignore[untyped-decorator]
def _turn(source, target, rows, columns, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    column = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tile = tl.load(source + row[:, None].to(tl.int64) * columns + column[None, :], mask=inside)
    tl.store(target + column[:, None].to(tl.int64) * rows + row[None, :], tl.trans(tile), mask=tl.trans(inside))
