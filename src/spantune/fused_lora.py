"""LoRA on a linear layer in three products: the base's, one down to the rank, and one up, added where it is computed.

PEFT's own forward casts the input to the adapter's fp32 and makes the scaled update as a tensor of the output's size
before it adds it. Weights, names and the saved adapter are PEFT's. Dropout, DoRA, several adapters and merged weights
go PEFT's way.
"""

from __future__ import annotations

from typing import Any

from peft.tuners.lora import Linear
from torch import Tensor, nn

from spantune.errors import ModelError
from spantune.products import FP8, linear
from spantune.quant import Fp8Linear

FUSED = (nn.Linear, Fp8Linear)
"""The very types of linear layer that it is for."""


class FusedLora(Linear):
    """PEFT's LoRA layer with a leaner forward for the plain case."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`x` [..., in] through the base layer and its adapter, in the base's type."""
        if not self._plain(args, kwargs):
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        (name,) = self.active_adapters
        base, up = self.base_layer, self.lora_B[name].weight
        weight, scale = (base.weight.view(FP8), base.scale) if isinstance(base, Fp8Linear) else (base.weight, None)
        rows = x.flatten(0, -2) if scale is not None else x.flatten(0, -2).to(weight.dtype)
        down = self.lora_A[name].weight * self.scaling[name]
        adapters = (down.to(rows.dtype), up.to(rows.dtype))
        found: Tensor = linear(rows, weight, scale, *adapters)
        return (found if base.bias is None else found + base.bias).view(*x.shape[:-1], base.out_features)

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """PEFT's merging, but for a base whose numbers are too coarse to take the update.

        Raises:
            ModelError: the base is FP8.
        """
        if isinstance(self.base_layer, Fp8Linear):
            raise ModelError("an adapter cannot be merged into an FP8 base; merge it into the bf16 model")
        super().merge(*args, **kwargs)

    def _plain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        names = self.active_adapters
        if args or kwargs or self.disable_adapters or self.merged or len(names) != 1 or names[0] not in self.lora_A:
            return False
        (name,) = names
        lively = self.training and not isinstance(self.lora_dropout[name], nn.Identity)
        return not lively and name not in self.lora_variant and self.lora_B[name].bias is None
