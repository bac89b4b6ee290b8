"""Triton kernels of a gated MLP: activation, LoRA's update and the maxima for FP8 in one pass over memory.

A program computes a tile of rows and columns. The update of the product is added as the tile is read, so that it never
goes over memory by itself, and each tile leaves the largest magnitude of its rows, from which a second pass knows the
scale of a row. Tiles of a dropped size are masked. All sums are in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spantune.models.kernels.gated import COLUMNS

ROWS = 64  # of a tile, which has COLUMNS columns
RANKS = 64  # of an update, that a tile adds at a time
CHUNK = 4096  # columns that a program quantises


def activated(raw: Tensor, low: Tensor, up: Tensor, kept: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Return silu(gate) * up [rows, size] of `raw` [rows, 2 size] with its update, and maxima [rows, tiles].

    Args:
        raw: gate and up of the product, one beside the other, without the update.
        low: [rows, rank].
        up: [2 size, rank].
        kept: e4m3 [rows, 2 size] and float32 [rows, 2 tiles], to be filled with the inputs of the activation.
    """
    rows, size = raw.shape[0], raw.shape[1] // 2
    tiles = triton.cdiv(size, COLUMNS)
    product, largest = raw.new_empty((rows, size)), raw.new_empty((rows, tiles), dtype=torch.float32)
    eight, scales = kept or (raw, largest)
    _activate[(tiles, triton.cdiv(rows, ROWS))](
        raw, low, up, product, largest, eight, scales, rows, size, low.shape[1], tiles,
        KEEPS=kept is not None, ROWS=ROWS, COLUMNS=COLUMNS, RANKS=_ranks(low), num_warps=8, num_stages=2,
    )  # fmt: skip
    return product, largest


def differentiated(
    inputs: tuple[Tensor, ...],
    grad: tuple[Tensor, Tensor, Tensor],
    scale: Tensor | None,
    into: Tensor,
) -> Tensor:
    """Write the gradient of the activation's inputs to `into` [rows, 2 size], and silu(gate) * up over `grad[0]`.

    Args:
        inputs: as `activated` takes or fills them: raw product, low and up; or what was kept of their sum.
        grad: of the activation, without its update: [rows, size], low [rows, rank] and down [rank, size].
        scale: [2 size] float32, what the gradient is multiplied by before it is quantised; None: 1.
        into: may be the raw product itself.

    Returns:
        The maxima [rows, 2 tiles] of the scaled gradient.
    """
    of_product, of_low, down = grad
    rows, size = of_product.shape
    tiles = triton.cdiv(size, COLUMNS)
    largest = of_product.new_empty((rows, 2 * tiles), dtype=torch.float32)
    raw, *others = inputs
    low, up, scales = (*others, largest) if len(others) == 2 else (of_low, into, others[0])
    _differentiate[(tiles, triton.cdiv(rows, ROWS))](
        raw, scales, low, up, of_product, of_low, down, largest if scale is None else scale, into, largest,
        rows, size, low.shape[1], of_low.shape[1], tiles,
        KEPT=len(inputs) == 2, SCALED=scale is not None, ROWS=ROWS, COLUMNS=COLUMNS,
        RANKS=_ranks(low), GRAD_RANKS=_ranks(of_low), num_warps=8, num_stages=2,
    )  # fmt: skip
    return largest


def quantized(rows: Tensor, largest: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return `rows` [n, size], times `scale` [size], in e4m3 with the scale [n, 1] of each, from its maxima."""
    count, size = rows.shape
    eight = torch.empty((count, size), dtype=torch.float8_e4m3fn, device=rows.device)
    row_scale = torch.empty((count, 1), dtype=torch.float32, device=rows.device)
    tiles = largest.shape[1]
    _quantize[(count, triton.cdiv(size, CHUNK))](
        rows, largest, row_scale if scale is None else scale, eight, row_scale, size, tiles,
        SCALED=scale is not None, TILES=triton.next_power_of_2(tiles), CHUNK=CHUNK, num_warps=8,
    )  # fmt: skip
    return eight, row_scale


def _ranks(low: Tensor) -> int:
    return min(RANKS, max(16, int(triton.next_power_of_2(low.shape[1]))))


@triton.jit  # type: ignore[untyped-decorator]
def _update(low, up, row, column, rows, size, rank, RANK_STEP, COLUMN_STEP, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
    """The tile of low [rows, rank] @ up, whose entry for rank r and column c is at r * RANK_STEP + c * COLUMN_STEP."""
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, rank, RANKS):
        place = first + tl.arange(0, RANKS)
        left = tl.load(
            low + row[:, None] * rank + place[None, :], mask=(row < rows)[:, None] & (place < rank)[None, :], other=0.0
        )
        right = tl.load(
            up + place[:, None] * RANK_STEP + column[None, :] * COLUMN_STEP,
            mask=(place < rank)[:, None] & (column < size)[None, :],
            other=0.0,
        )
        total = tl.dot(left, right, total, input_precision="ieee")
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _activate(  # type: ignore[no-untyped-def]
    raw, low, up, product, largest, eight, scales, rows, size, rank, tiles,
    KEEPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tile * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < size)[None, :]
    at = row[:, None].to(tl.int64) * (2 * size) + column[None, :]
    gate = _update(low, up, row, column, rows, size, rank, 1, rank, ROWS, COLUMNS, RANKS)
    gate += tl.load(raw + at, mask=inside, other=0.0).to(tl.float32)
    other = _update(low, up + size * rank, row, column, rows, size, rank, 1, rank, ROWS, COLUMNS, RANKS)
    other += tl.load(raw + at + size, mask=inside, other=0.0).to(tl.float32)
    if KEEPS:
        scale = tl.maximum(tl.max(tl.abs(gate), 1), 1e-12) / 448.0
        tl.store(scales + row * 2 * tiles + tile, scale, mask=row < rows)
        tl.store(eight + at, (gate / scale[:, None]).to(eight.dtype.element_ty), mask=inside)
        scale = tl.maximum(tl.max(tl.abs(other), 1), 1e-12) / 448.0
        tl.store(scales + row * 2 * tiles + tiles + tile, scale, mask=row < rows)
        tl.store(eight + at + size, (other / scale[:, None]).to(eight.dtype.element_ty), mask=inside)
    result = (gate * tl.sigmoid(gate) * other).to(product.dtype.element_ty)
    tl.store(product + row[:, None].to(tl.int64) * size + column[None, :], result, mask=inside)
    tl.store(largest + row * tiles + tile, tl.max(tl.abs(result.to(tl.float32)), 1), mask=row < rows)


@triton.jit  # type: ignore[untyped-decorator]
def _differentiate(  # type: ignore[no-untyped-def]
    raw, scales, low, up, of_product, of_low, down, scale, into, largest, rows, size, rank, grad_rank, tiles,
    KEPT: tl.constexpr, SCALED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
    GRAD_RANKS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tile * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < size)[None, :]
    at = row[:, None].to(tl.int64) * (2 * size) + column[None, :]
    gate = tl.load(raw + at, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(raw + at + size, mask=inside, other=0.0).to(tl.float32)
    if KEPT:
        gate *= tl.load(scales + row * 2 * tiles + tile, mask=row < rows, other=0.0)[:, None]
        other *= tl.load(scales + row * 2 * tiles + tiles + tile, mask=row < rows, other=0.0)[:, None]
    else:
        gate += _update(low, up, row, column, rows, size, rank, 1, rank, ROWS, COLUMNS, RANKS)
        other += _update(low, up + size * rank, row, column, rows, size, rank, 1, rank, ROWS, COLUMNS, RANKS)
    from_product = of_product + row[:, None].to(tl.int64) * size + column[None, :]
    grad = _update(of_low, down, row, column, rows, size, grad_rank, size, 1, ROWS, COLUMNS, GRAD_RANKS)
    grad += tl.load(from_product, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    silu = gate * share
    tl.store(from_product, (silu * other).to(of_product.dtype.element_ty), mask=inside)
    of_gate = (grad * other * share * (1.0 + gate - silu)).to(into.dtype.element_ty)
    of_other = (grad * silu).to(into.dtype.element_ty)
    tl.store(into + at, of_gate, mask=inside)
    tl.store(into + at + size, of_other, mask=inside)
    scaled_gate, scaled_other = of_gate.to(tl.float32), of_other.to(tl.float32)
    if SCALED:
        scaled_gate *= tl.load(scale + column, mask=column < size, other=0.0)[None, :]
        scaled_other *= tl.load(scale + size + column, mask=column < size, other=0.0)[None, :]
    place = largest + row * 2 * tiles + tile
    tl.store(place, tl.max(tl.abs(scaled_gate), 1), mask=row < rows)
    tl.store(place + tiles, tl.max(tl.abs(scaled_other), 1), mask=row < rows)


@triton.jit  # type: ignore[untyped-decorator]
def _quantize(  # type: ignore[no-untyped-def]
    rows, largest, scale, eight, row_scale, size, tiles,
    SCALED: tl.constexpr, TILES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    row, chunk = tl.program_id(0), tl.program_id(1)
    place = tl.arange(0, TILES)
    most = tl.max(tl.load(largest + row * tiles + place, mask=place < tiles, other=0.0), 0)
    own = tl.maximum(most, 1e-12) / 448.0
    column = chunk * CHUNK + tl.arange(0, CHUNK)
    at = row.to(tl.int64) * size + column
    values = tl.load(rows + at, mask=column < size, other=0.0).to(tl.float32)
    if SCALED:
        values *= tl.load(scale + column, mask=column < size, other=0.0)
    tl.store(eight + at, (values / own).to(eight.dtype.element_ty), mask=column < size)
    if chunk == 0:
        tl.store(row_scale + row, own)
