"""Products with frozen weights in 16 or 8 bits that a compiler leaves whole, with a low-rank update added to them.

Written as `base + low @ up.T`, the sum costs a copy of the output, which at Phi-4's 35,840 outputs takes longer than
the update. These are operators with registered gradients, not functions of autograd, which torch's cache of traced
layers does not support.

A frozen base in FP8 is one e4m3 copy of each weight, with a scale for each output row, for forward and backward:
forward quantises the input row by row; backward needs only the gradient of the input, for which the weight's scales are
multiplied into dy before that is quantised. On a GPU of the Hopper generation or later the products are computed in
FP8; elsewhere from the same numbers in float32, which saves memory and no time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

FP8 = torch.float8_e4m3fn
HOPPER = (9, 0)
Module = TypeVar("Module", bound=nn.Module)

# The operators take many arguments, since a schema has tensors and numbers only. A library costs less per call than
# torch.library.custom_op, which checks at each call what these operators guarantee.
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
    output: Tensor = torch.ops.spantune.product(rows, weight, low, up, row_scale, scale, dtype)
    return output


def _product(
    rows: Tensor,
    weight: Tensor,
    low: Tensor | None,
    up: Tensor | None,
    row_scale: Tensor | None,
    scale: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    if row_scale is None or scale is None:
        output = rows @ weight.t()
    elif rows.is_cuda:
        output = torch._scaled_mm(
            rows, weight.t(), scale_a=row_scale, scale_b=scale[None, :], out_dtype=torch.bfloat16, use_fast_accum=True
        ).to(dtype)
    else:
        output = ((rows.float() @ weight.t().float()) * row_scale * scale[None, :]).to(dtype)
    return output if low is None or up is None else output.addmm_(low, up.t())


def _product_shape(
    rows: Tensor, weight: Tensor, low: object, up: object, row_scale: object, scale: object, dtype: torch.dtype
) -> Tensor:
    return rows.new_empty((rows.shape[0], weight.shape[0]), dtype=dtype)


LIBRARY.define(  # type: ignore[no-untyped-call]
    "product(Tensor rows, Tensor weight, Tensor? low, Tensor? up, Tensor? row_scale, Tensor? scale, ScalarType dtype)"
    " -> Tensor"
)
LIBRARY.impl("product", _product, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("spantune::product", _product_shape)


def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return `rows` [n, size] in e4m3, and the scale [n, 1] (float32) of each."""
    # 448 is the largest e4m3 number: a literal, since a compiler would treat a name as a variable
    scale = rows.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / 448.0
    return (rows.float() / scale).to(FP8), scale


def linear(rows: Tensor, weight: Tensor, scale: Tensor | None, down: Tensor | None, up: Tensor | None) -> Tensor:
    """Compute rows @ weight.T + rows @ down.T @ up.T, with gradients for all but the weight (e4m3 where it has scales).

    Shapes: rows [n, in], weight [out, in], scale [out], down [rank, in], up [out, rank].
    """
    left, row_scale = (None, None) if scale is None else quantize(rows.detach())
    output, _ = torch.ops.spantune.linear(rows, left, weight, down, up, row_scale, scale)
    return output  # type: ignore[no-any-return]


def _linear(
    rows: Tensor,
    left: Tensor | None,
    weight: Tensor,
    down: Tensor | None,
    up: Tensor | None,
    row_scale: Tensor | None,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The output, and rows @ down.T [n, rank], which backward needs; [n, 0] where there is no update."""
    low = None if down is None else rows @ down.t()
    output = _product(rows if left is None else left, weight, low, up, row_scale, scale, rows.dtype)
    return output, rows.new_empty((rows.shape[0], 0)) if low is None else low


def _linear_shapes(
    rows: Tensor, left: object, weight: Tensor, down: Tensor | None, *_: object
) -> tuple[Tensor, Tensor]:
    count = rows.shape[0]
    return rows.new_empty((count, weight.shape[0])), rows.new_empty((count, 0 if down is None else down.shape[0]))


def _keep(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
    rows, _, weight, down, up, _, scale = inputs
    ctx.set_materialize_grads(False)
    is_plain = down is None
    ctx.save_for_backward(None if is_plain else rows, weight, down, up, scale, None if is_plain else output[1])


def _gradients(ctx: Any, dy: Tensor, _: None) -> tuple[Tensor | None, ...]:
    rows, weight, down, up, scale, low = ctx.saved_tensors
    left, transposed, row_scale, ones = _transposed(dy, weight, scale)
    if down is None:
        return product(left, transposed, None, None, row_scale, ones, dy.dtype), *[None] * 6
    of_low = dy @ up
    dx = product(left, transposed, of_low, down.t(), row_scale, ones, dy.dtype)
    return dx, None, None, of_low.t() @ rows, dy.t() @ low, None, None


def _transposed(
    dy: Tensor, weight: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The arguments of `product` for dy [n, out] times `weight` [out, in]: rows, weight [in, out], and their scales."""
    if scale is None:
        return dy, weight.t(), None, None
    left, row_scale = quantize(dy.float() * scale[None, :])
    return left, torch.ops.spantune.turned(weight), row_scale, torch.ones(weight.shape[1], device=dy.device)


def _turned(weight: Tensor) -> Tensor:
    if not weight.is_cuda:
        return weight.t().contiguous()
    from spantune.models.kernels.turn_triton import turned

    return turned(weight)


LIBRARY.define("turned(Tensor weight) -> Tensor")  # type: ignore[no-untyped-call]
LIBRARY.impl("turned", _turned, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("spantune::turned", lambda weight: weight.new_empty(weight.shape[::-1]))


LIBRARY.define(  # type: ignore[no-untyped-call]
    "linear(Tensor rows, Tensor? left, Tensor weight, Tensor? down, Tensor? up, Tensor? row_scale, Tensor? scale)"
    " -> (Tensor, Tensor)"
)
LIBRARY.impl("linear", _linear, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("spantune::linear", _linear_shapes)
torch.library.register_autograd("spantune::linear", _gradients, setup_context=_keep, lib=LIBRARY)


# the costs for a compiler's choice of recomputation


@register_flop_formula(torch.ops.spantune.product)
def _product_flops(rows: Sequence[int], weight: Sequence[int], *_: object, **__: object) -> int:
    return int(2 * rows[0] * rows[1] * weight[0])


@register_flop_formula(torch.ops.spantune.linear)
def _linear_flops(rows: Sequence[int], left: object, weight: Sequence[int], *_: object, **__: object) -> int:
    return _product_flops(rows, weight)


# -- layers ------------------------------------------------------------------------------------------------------------


class Fp8Linear(nn.Linear):
    """A frozen linear layer whose weight is e4m3, stored as bytes so that no library computes in its type.

    Shapes: `weight` [out, in] uint8, `scale` [out] float32.
    """

    scale: Tensor

    def __init__(self, linear: nn.Linear, device: torch.device):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        rows, scale = quantize(linear.weight.detach().to(device))
        self.weight = nn.Parameter(rows.view(torch.uint8), requires_grad=False)
        self.register_buffer("scale", scale[:, 0])
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(device), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        """Multiply `input` [..., in] with the weight, in the type of `input`."""
        rows: Tensor = linear(input.flatten(0, -2), self.weight.view(FP8), self.scale, None, None)
        output = rows.view(*input.shape[:-1], self.out_features)
        return output if self.bias is None else output + self.bias

    def dequantize(self) -> Tensor:
        """Return the weight [out, in] in float32."""
        return self.weight.view(FP8).float() * self.scale[:, None]

    @property
    def W_q(self) -> Tensor:
        """The stored weight; PEFT's DoRA calls `dequantize` where a layer has an attribute of this name."""
        return self.weight


def to_fp8(module: Module, device: torch.device, keep: nn.Module | None = None) -> Module:
    """Move `module` to `device`, with every linear layer but `keep` converted to FP8, one after another.

    Where it is on the CPU, the GPU never holds more than the FP8 layers and the weight of one layer.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child is not keep and _fits(child):
                setattr(parent, name, Fp8Linear(child, device))
    return module.to(device)


def has_fp8(device: torch.device) -> bool:
    """Whether `device` computes products in FP8."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= HOPPER


def _fits(linear: nn.Linear) -> bool:
    """Whether the kernels support the shape: both sizes are multiples of 16."""
    return linear.in_features % 16 == 0 and linear.out_features % 16 == 0
