"""The Triton kernel that sums the gradients of a pack's keys and values over the copies of the prefix."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 256  # the columns that a program sums


def gathered(of_keys: Tensor, of_values: Tensor, own: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the tokens' keys and values, both [tokens, heads, size]; summed in a fixed order.

    Args:
        of_keys: [keys, heads, size], the gradients of all keys, copies included.
        of_values: [keys, heads, size], the gradients of all values, copies included.
        own: [tokens], the key of each token that is not a copy.
        copies: [examples, prefix], the keys that are copies of the prefix.
    """
    tokens, (examples, shared) = len(own), copies.shape
    keys, values = (gradient.new_empty((tokens, *gradient.shape[1:])) for gradient in (of_keys, of_values))
    width = of_keys[0].numel()
    _sum[(tokens, triton.cdiv(width, COLUMNS))](
        of_keys.contiguous(), of_values.contiguous(), own, copies.contiguous(), keys, values, width, examples, shared,
        COLUMNS=COLUMNS, num_warps=2,
    )  # fmt: skip
    return keys, values


@triton.jit  # type: ignore[untyped-decorator]
def _sum(  # type: ignore[no-untyped-def]
    of_keys, of_values, own, copies, keys, values, width, examples, shared, COLUMNS: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    place = tl.load(own + token) * width + column
    of_key = tl.load(of_keys + place, mask=inside, other=0.0).to(tl.float32)
    of_value = tl.load(of_values + place, mask=inside, other=0.0).to(tl.float32)
    if token < shared:
        for example in range(examples):
            place = tl.load(copies + example * shared + token) * width + column
            of_key += tl.load(of_keys + place, mask=inside, other=0.0).to(tl.float32)
            of_value += tl.load(of_values + place, mask=inside, other=0.0).to(tl.float32)
    place = token * width + column
    tl.store(keys + place, of_key.to(keys.dtype.element_ty), mask=inside)
    tl.store(values + place, of_value.to(values.dtype.element_ty), mask=inside)
