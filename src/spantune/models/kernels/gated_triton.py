"""Triton kernels of a gated MLP: activation, LoRA's update and the maxima for FP8 in one pass over memory.

A program computes a tile of rows and columns. It adds LoRA's update when it reads the tile, so that the update is never
stored by itself. It also stores the largest magnitude of each of its rows; a second kernel computes the scale of a row
from those of all its tiles. Rows and columns of a tile that are outside the tensor are masked. All sums are in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spantune.models.kernels.gated import COLUMNS

ACTIVATING = (64, 8, 128)  # rows of a tile, warps, registers per thread (0: any number); the fastest when measured
DIFFERENTIATING = (32, 4, 0)  # the same for the backward pass
RANKS = 64  # the most ranks of an update that a program adds in one step
CHUNK = 4096  # the columns that a program quantises


def activated(raw: Tensor, low: Tensor, up: Tensor, kept: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Return silu(gate) * up [rows, size], where gate and up are the halves of raw + low @ up.T.

    Args:
        raw: [rows, 2 size], gate and up side by side, without LoRA's update.
        low: [rows, rank], the low-rank product of the update.
        up: [2 size, rank], the up of the adapter.
        kept: two tensors that are filled with gate and up in 8 bits: e4m3 [rows, 2 size], and the scales in float32
            [rows, 2 tiles]; None for no copy.

    Returns:
        The result, and the largest magnitude of each row in each tile [rows, tiles].
    """
    rows, size = raw.shape[0], raw.shape[1] // 2
    tiles = triton.cdiv(size, COLUMNS)
    product, largest = raw.new_empty((rows, size)), raw.new_empty((rows, tiles), dtype=torch.float32)
    eight, scales = kept or (raw, largest)
    lines, options = _tile(ACTIVATING)
    _activate[(tiles, triton.cdiv(rows, lines))](
        raw, low, up, product, largest, eight, scales, rows, size, low.shape[1], tiles,
        KEEPS=kept is not None, ROWS=lines, COLUMNS=COLUMNS, **_ranks(low), **options,
    )  # fmt: skip
    return product, largest


def differentiated(
    inputs: tuple[Tensor, ...],
    grad: tuple[Tensor, Tensor, Tensor],
    scale: Tensor | None,
    into: Tensor,
) -> Tensor:
    """Write the gradient of gate and up to `into`, and silu(gate) * up to `grad[0]`.

    Args:
        inputs: gate and up, either as (raw, low, up) of `activated`, or as the two tensors `kept` that it has filled.
        grad: the gradient of silu(gate) * up without its update [rows, size], which is overwritten; and its update, as
            low [rows, rank] and down [rank, size].
        scale: [2 size] float32, the factors on the gradient before it is quantised; None for 1.
        into: [rows, 2 size], the tensor for the gradient; it may be `raw` itself.

    Returns:
        The largest magnitude of the scaled gradient in each row and tile [rows, 2 tiles].
    """
    of_product, of_low, down = grad
    rows, size = of_product.shape
    tiles = triton.cdiv(size, COLUMNS)
    largest = of_product.new_empty((rows, 2 * tiles), dtype=torch.float32)
    raw, *others = inputs
    low, up, scales = (*others, largest) if len(others) == 2 else (of_low, into, others[0])
    lines, options = _tile(DIFFERENTIATING)
    _differentiate[(tiles, triton.cdiv(rows, lines))](
        raw, scales, low, up, of_product, of_low, down, largest if scale is None else scale, into, largest,
        rows, size, low.shape[1], of_low.shape[1], tiles,
        KEPT=len(inputs) == 2, SCALED=scale is not None, ROWS=lines, COLUMNS=COLUMNS,
        **_ranks(low), **_ranks(of_low, "GRAD_"), **options,
    )  # fmt: skip
    return largest


def quantized(rows: Tensor, largest: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return `rows` multiplied by `scale` in e4m3 [n, size], and the scale of each row in float32 [n, 1].

    Args:
        rows: [n, size].
        largest: [n, tiles], the largest magnitudes of each row multiplied by `scale`, by tile.
        scale: [size], the factors on the columns; None for 1.
    """
    count, size = rows.shape
    eight = torch.empty((count, size), dtype=torch.float8_e4m3fn, device=rows.device)
    row_scale = torch.empty((count, 1), dtype=torch.float32, device=rows.device)
    tiles = largest.shape[1]
    _quantize[(count, triton.cdiv(size, CHUNK))](
        rows, largest, row_scale if scale is None else scale, eight, row_scale, size, tiles,
        SCALED=scale is not None, TILES=triton.next_power_of_2(tiles), CHUNK=CHUNK, num_warps=8,
    )  # fmt: skip
    return eight, row_scale


def _tile(chosen: tuple[int, int, int]) -> tuple[int, dict[str, int]]:
    """Return the number of rows of a tile, and the options of the launch."""
    rows, warps, registers = chosen
    return rows, {"num_warps": warps} | ({"maxnreg": registers} if registers else {})


def _ranks(low: Tensor, prefix: str = "") -> dict[str, int]:
    """Return the number of ranks of an update that a program adds in one step, and the number of steps, by name."""
    rank = low.shape[1]
    ranks = min(RANKS, max(16, int(triton.next_power_of_2(rank))))
    return {f"{prefix}RANKS": ranks, f"{prefix}STEPS": triton.cdiv(rank, ranks)}


@triton.jit  # type: ignore[untyped-decorator]
def _left(low, row, rows, rank, step, RANKS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Load the part of low [rows, rank] for one step."""
    place = step * RANKS + tl.arange(0, RANKS)
    inside = (row < rows)[:, None] & (place < rank)[None, :]
    return tl.load(low + row[:, None] * rank + place[None, :], mask=inside, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _right(up, column, size, rank, step, of_rank, of_column, RANKS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Load the part of a weight for one step; an entry is at rank * of_rank + column * of_column."""
    place = step * RANKS + tl.arange(0, RANKS)
    inside = (place < rank)[:, None] & (column < size)[None, :]
    return tl.load(up + place[:, None] * of_rank + column[None, :] * of_column, mask=inside, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _updated(  # type: ignore[no-untyped-def]
    gate, other, low, up, row, column, rows, size, rank, RANKS: tl.constexpr, STEPS: tl.constexpr
):
    """Return the tiles of gate and up with LoRA's update."""
    for step in tl.static_range(STEPS):
        left = _left(low, row, rows, rank, step, RANKS)
        gate = tl.dot(left, _right(up, column, size, rank, step, 1, rank, RANKS), gate, input_precision="ieee")
        right = _right(up + size * rank, column, size, rank, step, 1, rank, RANKS)
        other = tl.dot(left, right, other, input_precision="ieee")
    return gate, other


@triton.jit  # type: ignore[untyped-decorator]
def _activate(  # type: ignore[no-untyped-def]
    raw, low, up, product, largest, eight, scales, rows, size, rank, tiles,
    KEEPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    tile, first = tl.program_id(0), tl.program_id(1) * ROWS
    local = tl.arange(0, ROWS)
    row, column = first + local, tile * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < size)[None, :]
    begin = first.to(tl.int64) * size
    at = local[:, None] * (2 * size) + column[None, :]
    source = raw + 2 * begin + at
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(source + size, mask=inside, other=0.0).to(tl.float32)
    gate, other = _updated(gate, other, low, up, row, column, rows, size, rank, RANKS, STEPS)
    if KEEPS:
        target, place = eight + 2 * begin + at, scales + row * 2 * tiles + tile
        scale = tl.maximum(tl.max(tl.abs(gate), 1), 1e-12) / 448.0
        tl.store(place, scale, mask=row < rows)
        tl.store(target, (gate / scale[:, None]).to(eight.dtype.element_ty), mask=inside)
        scale = tl.maximum(tl.max(tl.abs(other), 1), 1e-12) / 448.0
        tl.store(place + tiles, scale, mask=row < rows)
        tl.store(target + size, (other / scale[:, None]).to(eight.dtype.element_ty), mask=inside)
    result = (gate * tl.sigmoid(gate) * other).to(product.dtype.element_ty)
    tl.store(product + begin + local[:, None] * size + column[None, :], result, mask=inside)
    tl.store(largest + row * tiles + tile, tl.max(tl.abs(result.to(tl.float32)), 1), mask=row < rows)


@triton.jit  # type: ignore[untyped-decorator]
def _differentiate(  # type: ignore[no-untyped-def]
    raw, scales, low, up, of_product, of_low, down, scale, into, largest, rows, size, rank, grad_rank, tiles,
    KEPT: tl.constexpr, SCALED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
    STEPS: tl.constexpr, GRAD_RANKS: tl.constexpr, GRAD_STEPS: tl.constexpr,
):  # fmt: skip
    tile, first = tl.program_id(0), tl.program_id(1) * ROWS
    local = tl.arange(0, ROWS)
    row, column = first + local, tile * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < size)[None, :]
    begin = first.to(tl.int64) * size
    at = local[:, None] * (2 * size) + column[None, :]
    source = raw + 2 * begin + at
    from_product = of_product + begin + local[:, None] * size + column[None, :]
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(source + size, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(from_product, mask=inside, other=0.0).to(tl.float32)
    place = row * 2 * tiles + tile
    if KEPT:
        gate *= tl.load(scales + place, mask=row < rows, other=0.0)[:, None]
        other *= tl.load(scales + place + tiles, mask=row < rows, other=0.0)[:, None]
    else:
        gate, other = _updated(gate, other, low, up, row, column, rows, size, rank, RANKS, STEPS)
    for step in tl.static_range(GRAD_STEPS):
        left = _left(of_low, row, rows, grad_rank, step, GRAD_RANKS)
        right = _right(down, column, size, grad_rank, step, size, 1, GRAD_RANKS)
        grad = tl.dot(left, right, grad, input_precision="ieee")
    share = tl.sigmoid(gate)
    silu = gate * share
    tl.store(from_product, (silu * other).to(of_product.dtype.element_ty), mask=inside)
    of_gate = (grad * other * share * (1.0 + gate - silu)).to(into.dtype.element_ty)
    of_other = (grad * silu).to(into.dtype.element_ty)
    target = into + 2 * begin + at
    tl.store(target, of_gate, mask=inside)
    tl.store(target + size, of_other, mask=inside)
    scaled_gate, scaled_other = of_gate.to(tl.float32), of_other.to(tl.float32)
    if SCALED:
        scaled_gate *= tl.load(scale + column, mask=column < size, other=0.0)[None, :]
        scaled_other *= tl.load(scale + size + column, mask=column < size, other=0.0)[None, :]
    tl.store(largest + place, tl.max(tl.abs(scaled_gate), 1), mask=row < rows)
    tl.store(largest + place + tiles, tl.max(tl.abs(scaled_other), 1), mask=row < rows)


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
