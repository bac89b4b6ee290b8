"""Matrix products that a compiler leaves whole: a frozen weight's, plus a low-rank update added where it is computed.

Written as `base + low @ up.T`, the sum costs a copy of the output, which at Phi-4's 35,840 outputs takes longer than
the update. Types: FP8 with scales by row, or any that a product takes. Gradients are the callers'.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

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


@register_flop_formula(torch.ops.spantune.product)
def _flops(rows: Any, weight: Any, *_: Any, **__: Any) -> int:
    """What a compiler weighs recomputation by."""
    return int(2 * rows[0] * rows[1] * weight[0])
