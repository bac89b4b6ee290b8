"""A gated MLP over frozen weights with LoRA as one operator: down(silu(gate(x)) * up(x)), and its backward pass.

    raw      [rows, 2 size]  the wide product: gate and up, without LoRA's update
    hidden   [rows, size]    silu(gate) * up

Between the two products memory is read and written once in each direction: LoRA's updates are added when the product is
read, and the scales of the rows for FP8 are found at the same time. `raw` is the largest tensor of a layer. For the
backward pass it is recomputed, or kept in 8 bits with a scale for each row and 128 columns, or kept unchanged.

On a GPU these operations are Triton kernels (`gated_triton`). Elsewhere the plain functions of this module compute
them; the kernels are checked against these functions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from spantune.models.kernels.lora_linear import FP8, LIBRARY, product, quantize

COLUMNS = 128
"""The number of columns of a row that share a scale, if the wide product is kept in 8 bits."""
AGAIN, EIGHT, WHOLE = 0, 8, 16
"""What is kept of the wide product for the backward pass: nothing (it is recomputed), 8 bits per number, or all."""


EIGHT_BITS = (8, 9)
"""The lowest compute capability of a GPU that has e4m3 numbers."""
KERNEL_ERROR = 0.02
"""The kernels are used up to this relative error; a few numbers may be rounded differently in 8 bits."""


class Weights(NamedTuple):
    """A frozen weight with its adapter.

    Attributes:
        weight: [out, in], frozen; e4m3 if `scale` is given.
        scale: [out] float32, the scales of an e4m3 weight; else None.
        down: [rank, in], LoRA's A multiplied by the adapter's scale.
        up: [out, rank], LoRA's B.
    """

    weight: Tensor
    scale: Tensor | None
    down: Tensor
    up: Tensor


def gated_mlp(rows: Tensor, wide: Weights, narrow: Weights, keeps: int) -> Tensor:
    """Return the MLP applied to `rows`, [n, out], with gradients for rows and adapters.

    Args:
        rows: [n, in], the inputs, in the type that is computed in.
        wide: the layer [2 size, in] whose first half of outputs is gate and whose second half is up.
        narrow: the layer [out, size] of down.
        keeps: AGAIN, EIGHT or WHOLE: what is kept of the wide product for the backward pass.
    """
    left, row_scale = (None, None) if wide.scale is None else quantize(rows.detach())
    return torch.ops.spantune.gated_mlp(rows, left, row_scale, *wide, *narrow, keeps)[0]  # type: ignore[no-any-return]


# The operators take the fields of Weights one by one: an operator's schema has tensors and numbers only.


def _forward(
    rows: Tensor,
    left: Tensor | None,
    row_scale: Tensor | None,
    wide: Tensor,
    wide_scale: Tensor | None,
    wide_down: Tensor,
    wide_up: Tensor,
    narrow: Tensor,
    narrow_scale: Tensor | None,
    narrow_down: Tensor,
    narrow_up: Tensor,
    keeps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the MLP.

    Returns:
        The output [n, out]; the low-rank products of both layers, [n, rank] each; what is kept of the wide product; and
        its scales. The last two are empty if nothing is kept.
    """
    low = rows @ wide_down.t()
    raw = _wide(rows, left, row_scale, wide, wide_scale)
    kept = raw.new_empty((0, raw.shape[1])), raw.new_empty((0, 0), dtype=torch.float32)
    if keeps == EIGHT:
        count, scales = len(rows), 2 * tiles(raw.shape[1] // 2)
        kept = raw.new_empty(raw.shape, dtype=FP8), raw.new_empty((count, scales), dtype=torch.float32)
    hidden, largest = _activated(raw, low, wide_up, kept if keeps == EIGHT else None)
    if keeps == WHOLE:
        kept = raw, kept[1]
    del raw
    inner_low = hidden @ narrow_down.t()
    inner, inner_scale = (hidden, None) if narrow_scale is None else _quantized(hidden, largest, None)
    output = product(inner, narrow, inner_low, narrow_up, inner_scale, narrow_scale, rows.dtype)
    return output, low, inner_low, *kept


def _shapes(
    rows: Tensor, left: object, row_scale: object, wide: Tensor, wide_scale: object, wide_down: Tensor,
    wide_up: object, narrow: Tensor, narrow_scale: object, narrow_down: Tensor, narrow_up: object, keeps: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    count, kept = rows.shape[0], rows.shape[0] if keeps else 0
    scales = (count, 2 * tiles(narrow.shape[1])) if keeps == EIGHT else (0, 0)
    return (
        rows.new_empty((count, narrow.shape[0])),
        rows.new_empty((count, wide_down.shape[0])),
        rows.new_empty((count, narrow_down.shape[0])),
        rows.new_empty((kept, wide.shape[0]), dtype=FP8 if keeps == EIGHT else rows.dtype),
        rows.new_empty(scales, dtype=torch.float32),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.keeps = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[1:])


def _gradients(ctx: Any, dy: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    narrow_scale = saved[8]
    eight, row_scale = (None, None) if narrow_scale is None else quantize(dy.float() * narrow_scale[None, :])
    dx, wide_down, wide_up, narrow_down, narrow_up = torch.ops.spantune.gated_mlp_backward(
        dy, eight, row_scale, *saved, ctx.keeps
    )
    return dx, None, None, None, None, wide_down, wide_up, None, None, narrow_down, narrow_up, None


def _backward(
    dy: Tensor,
    eight: Tensor | None,
    dy_scale: Tensor | None,
    rows: Tensor,
    left: Tensor | None,
    row_scale: Tensor | None,
    wide: Tensor,
    wide_scale: Tensor | None,
    wide_down: Tensor,
    wide_up: Tensor,
    narrow: Tensor,
    narrow_scale: Tensor | None,
    narrow_down: Tensor,
    narrow_up: Tensor,
    low: Tensor,
    inner_low: Tensor,
    kept: Tensor,
    scales: Tensor,
    keeps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the rows, and of down and up of the wide and then of the narrow layer's adapter."""
    of_inner_low = dy @ narrow_up
    of_narrow_up = dy.t() @ inner_low
    hidden = _of_inputs(dy, eight, dy_scale, narrow, None, None)  # its gradient; _differentiated replaces it by hidden
    raw = kept if keeps else _wide(rows, left, row_scale, wide, wide_scale)
    gradient = torch.empty_like(raw, dtype=rows.dtype) if keeps else raw
    inputs = (kept, scales) if keeps == EIGHT else (raw, low, wide_up)
    largest = _differentiated(inputs, (hidden, of_inner_low, narrow_down), wide_scale, gradient)
    of_narrow_down = of_inner_low.t() @ hidden
    del hidden, raw
    of_low = gradient @ wide_up
    of_wide_up = gradient.t() @ low
    eight, dy_scale = (None, None) if wide_scale is None else _quantized(gradient, largest, wide_scale)
    dx = _of_inputs(gradient, eight, dy_scale, wide, of_low, wide_down.t())
    return dx, of_low.t() @ rows, of_wide_up, of_narrow_down, of_narrow_up


def _gradient_shapes(
    dy: object, eight: object, dy_scale: object, rows: Tensor, left: object, row_scale: object, wide: object,
    wide_scale: object, wide_down: Tensor, wide_up: Tensor, narrow: object, narrow_scale: object, narrow_down: Tensor,
    narrow_up: Tensor, *_: object,
) -> tuple[Tensor, ...]:  # fmt: skip
    weights = (wide_down, wide_up, narrow_down, narrow_up)
    return rows.new_empty(rows.shape), *(weight.new_empty(weight.shape) for weight in weights)


def _wide(rows: Tensor, left: Tensor | None, row_scale: Tensor | None, weight: Tensor, scale: Tensor | None) -> Tensor:
    """Return the wide product without LoRA's update."""
    return product(rows if left is None else left, weight, None, None, row_scale, scale, rows.dtype)


def _of_inputs(
    dy: Tensor, eight: Tensor | None, scale: Tensor | None, weight: Tensor, low: Tensor | None, up: Tensor | None
) -> Tensor:
    """Return the gradient of the inputs of a layer: dy @ weight, plus low @ up.T if these are given.

    Args:
        dy: [n, out], the gradient of the outputs.
        eight: the same in e4m3, which is multiplied instead; None for a weight that is not e4m3.
        scale: [n, 1], the scales of `eight`.
        weight: [out, in].
        low: [n, rank].
        up: [in, rank].
    """
    if eight is None:
        return product(dy, weight.t(), low, up, None, None, dy.dtype)
    turned, ones = torch.ops.spantune.turned(weight), torch.ones(weight.shape[1], device=dy.device)
    return product(eight, turned, low, up, scale, ones, dy.dtype)


# -- what lies between the products ------------------------------------------------------------------------------------


def _activated(raw: Tensor, low: Tensor, up: Tensor, kept: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Return `hidden` [rows, size], and numbers [rows, n] whose maximum is the largest magnitude of the row.

    Args:
        raw: [rows, 2 size], the wide product without its update.
        low: [rows, rank], the low-rank product of the wide layer.
        up: [2 size, rank], the up of the wide layer's adapter.
        kept: the 8-bit copy of the wide product and its scales, which are filled; None for no copy.
    """
    if raw.is_cuda:
        from spantune.models.kernels.gated_triton import activated

        return activated(raw, low, up, kept)
    return activated_plainly(raw, low, up, kept)


def activated_plainly(
    raw: Tensor, low: Tensor, up: Tensor, kept: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Compute the same as `gated_triton.activated`, in plain torch."""
    whole = raw.float() + low.float() @ up.float().t()
    gate, other = whole.chunk(2, 1)
    if kept is not None:
        for half, eight, scales in zip((gate, other), kept[0].chunk(2, 1), kept[1].chunk(2, 1), strict=True):
            blocks = pad(half, (0, -half.shape[1] % COLUMNS)).view(len(half), -1, COLUMNS)
            scales.copy_(blocks.abs().amax(2).clamp(min=1e-12) / 448.0)
            eight.copy_((blocks / scales[:, :, None]).flatten(1)[:, : half.shape[1]])
    hidden = (torch.nn.functional.silu(gate) * other).to(raw.dtype)
    return hidden, hidden.float().abs()


def _differentiated(
    inputs: tuple[Tensor, ...], grad: tuple[Tensor, Tensor, Tensor], scale: Tensor | None, into: Tensor
) -> Tensor:
    """Write the gradient of the wide product to `into`, and replace the gradient of `hidden` by `hidden`.

    Args:
        inputs: the wide product: (raw, low, up), or what was kept of it: (8-bit copy, scales).
        grad: the gradient of `hidden` without its update [rows, size], which is overwritten; and its update, as low
            [rows, rank] and down [rank, size].
        scale: [2 size], the factors on the gradient before it is quantised; None for 1.
        into: [rows, 2 size], the tensor for the gradient.

    Returns:
        Numbers [rows, n] whose maximum is the largest magnitude of the row of the scaled gradient.
    """
    if into.is_cuda:
        from spantune.models.kernels.gated_triton import differentiated

        return differentiated(inputs, grad, scale, into)
    return differentiated_plainly(inputs, grad, scale, into)


def differentiated_plainly(
    inputs: tuple[Tensor, ...], grad: tuple[Tensor, Tensor, Tensor], scale: Tensor | None, into: Tensor
) -> Tensor:
    """Compute the same as `gated_triton.differentiated`, in plain torch."""
    if len(inputs) == 3:
        raw, low, up = inputs
        gate, other = (raw.float() + low.float() @ up.float().t()).chunk(2, 1)
    else:
        halves = zip(inputs[0].chunk(2, 1), inputs[1].chunk(2, 1), strict=True)
        gate, other = (half.float() * s.repeat_interleave(COLUMNS, 1)[:, : half.shape[1]] for half, s in halves)
    of_product, of_low, down = grad
    dy = of_product.float() + of_low.float() @ down.float()
    share = torch.sigmoid(gate)
    silu = gate * share
    of_product.copy_(silu * other)
    into.copy_(torch.cat((dy * other * share * (1 + gate - silu), dy * silu), 1))
    return (into.float() if scale is None else into.float() * scale[None]).abs()


def has_eight_bits(device: torch.device) -> bool:
    """Whether kernels on `device` can write e4m3 numbers."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= EIGHT_BITS


def kernel_error(ranks: tuple[int, int], dtype: torch.dtype, device: torch.device) -> float:
    """Return the largest relative error of the Triton kernels against plain torch, on small random tensors.

    Args:
        ranks: the ranks of the wide and of the narrow layer's adapter.
        dtype: the type that is computed in.
        device: a GPU.
    """
    from spantune.models.kernels import gated_triton

    draw, rows, size = torch.Generator().manual_seed(0), 70, COLUMNS + 32
    wide, narrow = ranks
    shapes = ((rows, 2 * size), (rows, wide), (2 * size, wide), (rows, size), (rows, narrow), (narrow, size))
    given = [torch.randn(*shape, generator=draw).to(device, dtype) for shape in shapes]
    (raw, low, up), (of_product, of_low, down) = given[:3], given[3:]
    scale = torch.rand(2 * size, generator=draw).to(device)
    in_eight = has_eight_bits(device)
    found: list[list[Tensor]] = []
    for kernels in (gated_triton, None):
        activate = kernels.activated if kernels else activated_plainly
        differentiate = kernels.differentiated if kernels else differentiated_plainly
        kept = raw.new_empty(raw.shape, dtype=FP8), raw.new_empty((rows, 2 * tiles(size)), dtype=torch.float32)
        hidden, largest = activate(raw, low, up, kept if in_eight else None)
        results = [hidden, *(kept if in_eight else ())]
        for inputs in ((raw, low, up), kept) if in_eight else ((raw, low, up),):
            again, into = of_product.clone(), torch.empty_like(raw)
            maxima = differentiate(inputs, (again, of_low, down), scale, into)
            results += [again, into]
        quantized = kernels.quantized if kernels else _quantized_plainly
        if in_eight:
            results += [*quantized(hidden, largest, None), *quantized(into, maxima, scale)]
        found.append(results)
    pairs = zip(*found, strict=True)
    errors = [float((ours.float() - exact.float()).norm() / exact.float().norm()) for ours, exact in pairs]
    return max(errors)


def _quantized(rows: Tensor, largest: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return `rows` [n, size] multiplied by `scale` [size] (None for 1) in e4m3, and the scale of each row [n, 1].

    `largest` are the numbers of `_activated` or `_differentiated` for these rows.
    """
    if rows.is_cuda:
        from spantune.models.kernels.gated_triton import quantized

        return quantized(rows, largest, scale)
    return _quantized_plainly(rows, largest, scale)


def _quantized_plainly(rows: Tensor, _: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    return quantize(rows if scale is None else rows.float() * scale[None])


def tiles(size: int) -> int:
    """Return the number of tiles of COLUMNS columns in a row of `size` columns."""
    return -(-size // COLUMNS)


# -- operators ---------------------------------------------------------------------------------------------------------

_WEIGHTS = "Tensor rows, Tensor? left, Tensor? row_scale, " + ", ".join(
    f"Tensor {name}, Tensor? {name}_scale, Tensor {name}_down, Tensor {name}_up" for name in ("wide", "narrow")
)
_FIVE = "(Tensor, Tensor, Tensor, Tensor, Tensor)"
LIBRARY.define(f"gated_mlp({_WEIGHTS}, int keeps) -> {_FIVE}")  # type: ignore[no-untyped-call]
LIBRARY.define(  # type: ignore[no-untyped-call]
    f"gated_mlp_backward(Tensor dy, Tensor? eight, Tensor? dy_scale, {_WEIGHTS}, Tensor low, Tensor inner_low, "
    f"Tensor kept, Tensor scales, int keeps) -> {_FIVE}"
)
LIBRARY.impl("gated_mlp", _forward, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
LIBRARY.impl("gated_mlp_backward", _backward, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("spantune::gated_mlp", _shapes)
torch.library.register_fake("spantune::gated_mlp_backward", _gradient_shapes)
torch.library.register_autograd("spantune::gated_mlp", _gradients, setup_context=_keep, lib=LIBRARY)
