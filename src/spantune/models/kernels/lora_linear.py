"""Products with frozen weights that a compiler leaves whole, with a low-rank update added where they are computed.

Written as `base + low @ up.T`, the sum costs a copy of the output, which at Phi-4's 35,840 outputs takes longer than
the update. Types: FP8 with scales by row, or any that a product takes. Operators with registered gradients, not
functions of autograd, which torch's cache of traced layers passes by.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

FP8 = torch.float8_e4m3fn

# Its arguments stay apart, however many: an operator's schema knows tensors and numbers only.
# cheaper a call than torch.library.custom_op, which checks what these ops keep to
LIBRARY = torch.library.Library("spantune", "FRAGMENT")  # type: ignore[no-untyped-call]


def product(
    rows: Tensor,
    weight: Tensor,
    low: Tensor | None,
    up: Tensor | None,
    row_scale: Tensor | None,
    scale: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """`rows` [n, in] times `weight` [out, in], plus `low` [n, rank] times `up` [out, rank]; [n, out] in `dtype`.

    With `row_scale` [n, 1] and `scale` [out], rows and weight are e4m3 and the product is scaled by both.
    """
    found: Tensor = torch.ops.spantune.product(rows, weight, low, up, row_scale, scale, dtype)
    return found


def _product(rows: Tensor, weight: Tensor, low: Any, up: Any, row_scale: Any, scale: Any, dtype: torch.dtype) -> Tensor:
    if row_scale is None:
        found = rows @ weight.t()
    elif rows.is_cuda:
        found = torch._scaled_mm(
            rows, weight.t(), scale_a=row_scale, scale_b=scale[None, :], out_dtype=torch.bfloat16, use_fast_accum=True
        ).to(dtype)
    else:
        found = ((rows.float() @ weight.t().float()) * row_scale * scale[None, :]).to(dtype)
    return found if low is None else found.addmm_(low, up.t())


def _shape(rows: Tensor, weight: Tensor, low: Any, up: Any, row_scale: Any, scale: Any, dtype: torch.dtype) -> Tensor:
    return rows.new_empty((rows.shape[0], weight.shape[0]), dtype=dtype)


LIBRARY.define(  # type: ignore[no-untyped-call]
    "product(Tensor rows, Tensor weight, Tensor? low, Tensor? up, Tensor? row_scale, Tensor? scale, ScalarType dtype)"
    " -> Tensor"
)
LIBRARY.impl("product", _product, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("spantune::product", _shape)


def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`rows` [n, size] in e4m3, and the scale [n, 1] (float32) of each."""
    # 448 is the largest e4m3: a literal, which a compiler takes for no variable
    scale = rows.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / 448.0
    return (rows.float() / scale).to(FP8), scale


def linear(rows: Tensor, weight: Tensor, scale: Tensor | None, down: Tensor | None, up: Tensor | None) -> Tensor:
    """rows @ weight.T + rows @ down.T @ up.T, with a gradient for all but the weight (e4m3 where it has scales).

    Shapes: rows [n, in], weight [out, in], scale [out], down [rank, in], up [out, rank].
    """
    left, row_scale = (None, None) if scale is None else quantize(rows.detach())
    found: Tensor = torch.ops.spantune.linear(rows, left, weight, down, up, row_scale, scale)
    return found


def _linear(rows: Tensor, left: Any, weight: Tensor, down: Any, up: Any, row_scale: Any, scale: Any) -> Tensor:
    low = None if down is None else rows @ down.t()
    return _product(rows if left is None else left, weight, low, up, row_scale, scale, rows.dtype)


def _linear_shape(rows: Tensor, left: Any, weight: Tensor, *_: Any) -> Tensor:
    return rows.new_empty((rows.shape[0], weight.shape[0]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, _, weight, down, up, _, scale = inputs
    ctx.save_for_backward(None if down is None else rows, weight, down, up, scale)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    rows, weight, down, up, scale = ctx.saved_tensors
    left, turned, row_scale, ones = _transposed(dy, weight, scale)
    if down is None:
        return product(left, turned, None, None, row_scale, ones, dy.dtype), *[None] * 6
    of_low = dy @ up
    dx = product(left, turned, of_low, down.t(), row_scale, ones, dy.dtype)
    # the rows' low rank again, which costs less than keeping it would
    return dx, None, None, of_low.t() @ rows, dy.t() @ (rows @ down.t()), None, None


def _transposed(
    dy: Tensor, weight: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """What `product` takes for dy [n, out] times `weight` [out, in]: rows, weight [in, out], and their scales."""
    if scale is None:
        return dy, weight.t(), None, None
    left, row_scale = quantize(dy.float() * scale[None, :])
    return left, weight.t().contiguous(), row_scale, torch.ones(weight.shape[1], device=dy.device)


LIBRARY.define(  # type: ignore[no-untyped-call]
    "linear(Tensor rows, Tensor? left, Tensor weight, Tensor? down, Tensor? up, Tensor? row_scale, Tensor? scale)"
    " -> Tensor"
)
LIBRARY.impl("linear", _linear, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("spantune::linear", _linear_shape)
torch.library.register_autograd("spantune::linear", _gradients, setup_context=_keep, lib=LIBRARY)


# what a compiler weighs recomputation by


@register_flop_formula(torch.ops.spantune.product)
def _product_flops(rows: Any, weight: Any, *_: Any, **__: Any) -> int:
    return int(2 * rows[0] * rows[1] * weight[0])


@register_flop_formula(torch.ops.spantune.linear)
def _linear_flops(rows: Any, left: Any, weight: Any, *_: Any, **__: Any) -> int:
    return _product_flops(rows, weight)
