"""Gated MLPs of decoder layers, each computed as one operator; gate and up must be one layer, as in Phi-3 and Phi-4."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from spantune.core import Keep, first_line
from spantune.models.kernels.gated import (
    AGAIN,
    EIGHT,
    KERNEL_ERROR,
    WHOLE,
    gated_mlp,
    has_eight_bits,
    kernel_error,
    tiles,
)
from spantune.models.lora import FusedLora

log = logging.getLogger(__name__)
SILU = ("SiLU", "SiLUActivation")  # the names in torch and in transformers
KEPT: dict[Keep, int] = {"none": AGAIN, "some": AGAIN, "fp8": EIGHT, "most": WHOLE}


def gated_parts(module: nn.Module) -> tuple[nn.Linear, nn.Linear] | None:
    """Return the layer of gate and up, and the layer of down, of a gated MLP; None for any other module."""
    wide, narrow = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    is_silu = type(getattr(module, "activation_fn", None)).__name__ in SILU
    # PEFT's layers are no nn.Linear; the linear layer is inside.
    is_linear = all(isinstance(getattr(part, "base_layer", part), nn.Linear) for part in (wide, narrow))
    return cast("tuple[nn.Linear, nn.Linear]", (wide, narrow)) if is_silu and is_linear else None


def kept_bytes(outputs: int, keep: Keep, width: int) -> int:
    """Return the bytes that an MLP keeps per token of its wide product (gate and up).

    Args:
        outputs: the number of outputs of the wide product.
        keep: what a layer keeps for the backward pass.
        width: the bytes of a number of the wide product.
    """
    bits = KEPT[keep]
    return (bits == EIGHT) * (outputs + 4 * 2 * tiles(outputs // 2)) + (bits == WHOLE) * outputs * width


def fuse_mlps(layer: nn.Module, keep: Keep) -> int:
    """Compute the gated MLPs of `layer` as one operator each in training, where `gated_mlp` supports them.

    Args:
        layer: a decoder layer with its adapters.
        keep: what the layer keeps for the backward pass.

    Returns:
        The number of MLPs that are computed in this way.
    """
    count = 0
    for module in layer.modules():
        wide, narrow = gated_parts(module) or (None, None)
        if isinstance(wide, FusedLora) and isinstance(narrow, FusedLora) and _agrees(wide, narrow):
            keeps = KEPT[keep]
            if keeps == EIGHT and not has_eight_bits(wide.base_layer.weight.device):
                keeps = WHOLE
            module.forward = _fused(module, module.forward, keeps)
            count += 1
    return count


def _agrees(wide: FusedLora, narrow: FusedLora) -> bool:
    """Whether the kernels for these layers agree with plain torch; True on a CPU, which has no kernels."""
    of_wide, of_narrow = wide.weights(torch.bfloat16), narrow.weights(torch.bfloat16)
    if of_wide is None or of_narrow is None or not of_wide.weight.is_cuda:
        return True
    dtype = torch.bfloat16 if of_wide.scale is not None else of_wide.weight.dtype
    return _is_exact((len(of_wide.down), len(of_narrow.down)), dtype, of_wide.weight.device)


@cache
def _is_exact(ranks: tuple[int, int], dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels agree with plain torch; a warning is logged if they do not, or cannot be compiled."""
    try:
        error = kernel_error(ranks, dtype, device)
    except Exception as problem:  # Triton may raise any error; training then goes on without the kernels
        log.warning("the kernels of gated MLPs cannot be compiled, and steps may take longer: %s", first_line(problem))
        return False
    if error > KERNEL_ERROR:
        log.warning("the kernels of gated MLPs are not used: on this GPU they differ by %.2g from plain torch", error)
    return error <= KERNEL_ERROR


def _fused(module: nn.Module, plain: Callable[[Tensor], Tensor], keeps: int) -> Any:
    def forward(x: Tensor) -> Tensor:
        # The layers are looked up at each call, since the model may get other adapters, or none, after training.
        wide, narrow = module.gate_up_proj, module.down_proj
        if not module.training or not isinstance(wide, FusedLora) or not isinstance(narrow, FusedLora):
            return plain(x)
        of_wide, of_narrow = wide.weights(x.dtype), narrow.weights(x.dtype)
        if of_wide is None or of_narrow is None:
            return plain(x)
        rows = x.flatten(0, -2) if of_wide.scale is not None else x.flatten(0, -2).to(of_wide.weight.dtype)
        return gated_mlp(rows, of_wide, of_narrow, keeps).view(x.shape)

    return forward
