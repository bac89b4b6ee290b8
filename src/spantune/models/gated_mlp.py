"""The gated MLPs of decoder layers as one operator each, where gate and up are one layer, as Phi-3's and Phi-4's are."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from spantune.core import Keep
from spantune.models.kernels.gated import AGAIN, EIGHT, WHOLE, gated_mlp
from spantune.models.lora import FusedLora

SILU = ("SiLU", "SiLUActivation")  # of torch and of transformers
KEPT: dict[Keep, int] = {"none": AGAIN, "some": AGAIN, "fp8": EIGHT, "most": WHOLE}


def fuse_mlps(layer: nn.Module, keep: Keep) -> int:
    """Let each MLP of `layer` that `gated_mlp` can compute do so while it trains; returns how many there are.

    Args:
        layer: with its adapters.
        keep: decides what is kept for backward.
    """
    count = 0
    for module in layer.modules():
        layers = (getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None))
        is_silu = type(getattr(module, "activation_fn", None)).__name__ in SILU
        if is_silu and all(isinstance(part, FusedLora) for part in layers):
            module.forward = _fused(module, module.forward, KEPT[keep])
            count += 1
    return count


def _fused(module: nn.Module, plain: Callable[[Tensor], Tensor], keeps: int) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        wide, narrow = (part.weights(x.dtype) for part in (module.gate_up_proj, module.down_proj))
        if not module.training or wide is None or narrow is None:
            return plain(x)
        rows = x.flatten(0, -2)
        return gated_mlp(rows if wide.scale is not None else rows.to(wide.weight.dtype), wide, narrow, keeps).view(x.shape)

    return forward
