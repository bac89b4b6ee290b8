"""Linear layers with frozen weights in 16 or 8 bits, with a low-rank update (LoRA) added to the product.

Written as `base + low @ up.T`, the sum makes a copy of the output. At Phi-4's 35,840 outputs this takes longer than the
update itself; here the update is added in place. The products are operators with registered gradients, which a compiler
does not take apart. Functions of autograd are not used, since torch's cache of traced layers does not support them.

With a base in FP8, each weight is stored once, in e4m3 with a scale for each output, and is used in the forward and the
backward pass. The forward pass quantises the input row by row. The backward pass needs only the gradient of the input:
the scales of the weight are multiplied into dy, and then dy is quantised row by row. On a GPU of the Hopper generation
or later the products are computed in FP8. Elsewhere the same numbers are multiplied in float32, which saves memory but
no time.
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

# The operators take many arguments, since the schema of an operator has tensors and numbers only. A call of an operator
# of a library costs less than one of torch.library.custom_op, which checks at each call what these operators guarantee.
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
    """Return rows @ weight.T + low @ up.T, [n, out] in `dtype`; without gradients.

    Args:
        rows: [n, in].
        weight: [out, in].
        low: [n, rank]; None for no update.
        up: [out, rank]; None for no update.
        row_scale: [n, 1], the scales of `rows` if rows and weight are e4m3; else None.
        scale: [out], the scales of `weight` if rows and weight are e4m3; else None.
        dtype: the type of the result.
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
    """Return `rows` [n, size] in e4m3, and the scale of each row [n, 1] in float32."""
    # 448 is the largest e4m3 number. It is a literal, since a compiler would treat a name as a variable.
    scale = rows.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / 448.0
    return (rows.float() / scale).to(FP8), scale


def linear(rows: Tensor, weight: Tensor, scale: Tensor | None, down: Tensor | None, up: Tensor | None) -> Tensor:
    """Return rows @ weight.T + rows @ down.T @ up.T, [n, out], with gradients for `rows`, `down` and `up`.

    Args:
        rows: [n, in].
        weight: [out, in], frozen; e4m3 if `scale` is given.
        scale: [out], the scales of an e4m3 weight; else None.
        down: [rank, in], LoRA's A multiplied by the adapter's scale; None for no update.
        up: [out, rank], LoRA's B; None for no update.
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
    """Return the output, and rows @ down.T [n, rank] for the backward pass; the latter is [n, 0] without an update."""
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
    """Return the arguments of `product` that compute dy [n, out] @ weight [out, in].

    Returns:
        The rows, the transposed weight [in, out], the scales of the rows, and the scales of the transposed weight.
    """
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


# A compiler uses these costs to choose what it recomputes.


@register_flop_formula(torch.ops.spantune.product)
def _product_flops(rows: Sequence[int], weight: Sequence[int], *_: object, **__: object) -> int:
    return int(2 * rows[0] * rows[1] * weight[0])


@register_flop_formula(torch.ops.spantune.linear)
def _linear_flops(rows: Sequence[int], left: object, weight: Sequence[int], *_: object, **__: object) -> int:
    return _product_flops(rows, weight)


# -- layers ------------------------------------------------------------------------------------------------------------


class Fp8Linear(nn.Linear):
    """A frozen linear layer with an e4m3 weight.

    `weight` [out, in] is stored as uint8, so that no library takes e4m3 for the type to compute in; `scale` [out] is
    float32.

    Args:
        linear: the layer that is converted.
        device: the device of the new layer.
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
        """Return the layer applied to `input` [..., in]: [..., out], in the type of `input`."""
        rows: Tensor = linear(input.flatten(0, -2), self.weight.view(FP8), self.scale, None, None)
        output = rows.view(*input.shape[:-1], self.out_features)
        return output if self.bias is None else output + self.bias

    def dequantize(self) -> Tensor:
        """Return the weight [out, in] in float32."""
        return self.weight.view(FP8).float() * self.scale[:, None]

    @property
    def W_q(self) -> Tensor:
        """The stored weight; PEFT's DoRA calls `dequantize` on layers with an attribute of this name."""
        return self.weight


def to_fp8(module: Module, device: torch.device, keep: nn.Module | None = None) -> Module:
    """Convert every linear layer of `module` except `keep` to FP8 on `device`, and move the rest of it there.

    Layers whose sizes are not multiples of 16 are not converted. The layers are converted one after another. So if
    `module` is on the CPU, the GPU holds at most the FP8 layers and the weight of one other layer.
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
    """Whether FP8 products support the shape of a layer: both sizes must be multiples of 16."""
    return linear.in_features % 16 == 0 and linear.out_features % 16 == 0
