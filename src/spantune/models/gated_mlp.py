"""The gated MLPs of decoder layers as one operator each, where gate and up are one layer, as in Phi-3 and 4."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from spantune.core import Keep
from spantune.models.kernels.gated import AGAIN, EIGHT, WHOLE, gated_mlp, tiles
from spantune.models.lora import FusedLora

SILU = ("SiLU", "SiLUActivation")  # of torch and of transformers
KEPT: dict[Keep, int] = {"none": AGAIN, "some": AGAIN, "fp8": EIGHT, "most": WHOLE}


def gated_parts(module: nn.Module) -> tuple[nn.Linear, nn.Linear] | None:
    """Return gate and up in one layer, and down, of an MLP that is so made; None for any other module."""
    wide, narrow = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    is_silu = type(getattr(module, "activation_fn", None)).__name__ in SILU
    # PEFT's layers are not linear layers of torch
    is_linear = all(isinstance(getattr(part, "base_layer", part), nn.Linear) for part in (wide, narrow))
    return cast("tuple[nn.Linear, nn.Linear]", (wide, narrow)) if is_silu and is_linear else None


def kept_bytes(outputs: int, keep: Keep, width: int) -> int:
    """Return the bytes that an MLP keeps for each token of its wide product, whose numbers have `width` bytes."""
    bits = KEPT[keep]
    return (bits == EIGHT) * (outputs + 4 * 2 * tiles(outputs // 2)) + (bits == WHOLE) * outputs * width


def fuse_mlps(layer: nn.Module, keep: Keep) -> int:
    """Let each MLP of `layer` that `gated_mlp` can compute do so while it trains; returns how many there are.

    Args:
        layer: with its adapters.
        keep: decides what is kept for backward.
    """
    count = 0
    for module in layer.modules():
        wide, narrow = gated_parts(module) or (None, None)
        if isinstance(wide, FusedLora) and isinstance(narrow, FusedLora):
            module.forward = _fused(module.forward, wide, narrow, KEPT[keep])
            count += 1
    return count


def _fused(plain: Callable[[Tensor], Tensor], wide: FusedLora, narrow: FusedLora, keeps: int) -> Any:
    def forward(x: Tensor) -> Tensor:
        of_wide, of_narrow = wide.weights(x.dtype), narrow.weights(x.dtype)
        if not wide.training or of_wide is None or of_narrow is None:
            return plain(x)
        rows = x.flatten(0, -2) if of_wide.scale is not None else x.flatten(0, -2).to(of_wide.weight.dtype)
        return gated_mlp(rows, of_wide, of_narrow, keeps).view(x.shape)

    return forward
