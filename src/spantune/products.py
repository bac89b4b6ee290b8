"""Matrix products that a compiler leaves whole: a frozen weight's, plus a low-rank update added where it is computed.

Written as `base + low @ up.T`, the sum costs a copy of the output, which at Phi-4's 35,840 outputs takes longer than
the update. Types: FP8 with scales by row, or any that a product takes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


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
    found: Tensor = _product(rows, weight, low, up, row_scale, scale, dtype)
    return found


@torch.library.custom_op("spantune::product", mutates_args=())
def _product(
    rows: Tensor,
    weight: Tensor,
    low: Tensor | None,
    up: Tensor | None,
    row_scale: Tensor | None,
    scale: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """As `product`."""
    if row_scale is None or scale is None:
        found = rows @ weight.t()
    elif rows.is_cuda:
        found = torch._scaled_mm(
            rows, weight.t(), scale_a=row_scale, scale_b=scale[None, :], out_dtype=torch.bfloat16, use_fast_accum=True
        ).to(dtype)
    else:
        found = ((rows.float() @ weight.t().float()) * row_scale * scale[None, :]).to(dtype)
    return found if low is None or up is None else found.addmm_(low, up.t())


@_product.register_fake
def _(rows: Tensor, weight: Tensor, low: Any, up: Any, row_scale: Any, scale: Any, dtype: torch.dtype) -> Tensor:
    return rows.new_empty((rows.shape[0], weight.shape[0]), dtype=dtype)


@register_flop_formula(torch.ops.spantune.product)  # type: ignore[untyped-decorator]
def _flops(rows: Any, weight: Any, *_: Any, **__: Any) -> int:
    """What the compiler weighs recomputation by."""
    return int(2 * rows[0] * rows[1] * weight[0])
