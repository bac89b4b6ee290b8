"""The Triton kernel that turns a matrix of bytes: tiles are read and written in whole lines.

Products in FP8 read both of their matrices along the sum, so that the gradient of an input takes each weight turned.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 128  # rows and columns of a tile


def turned(matrix: Tensor) -> Tensor:
    """Return a contiguous [columns, rows] of `matrix` [rows, columns], contiguous and of one byte an entry."""
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
