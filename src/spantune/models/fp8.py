"""The frozen base in FP8: one e4m3 copy of each weight serves forward and backward.

A weight has one scale for each output row. Forward quantises the input row by row; backward needs only the gradient
of the input, for which the weight's scales are folded into dy before that is quantised, so that no second copy is
kept. On a GPU of the Hopper generation or later the products run in FP8; elsewhere they are computed from the same
numbers in float32, which saves memory and no time. NF4 and int8 are bitsandbytes' (see `load`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spantune.models.kernels.lora_linear import FP8, linear, quantize

HOPPER = (9, 0)


class Fp8Linear(nn.Linear):
    """A frozen linear layer whose weight is e4m3, kept as bytes so that nothing takes it for a type to compute in.

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
        """`input` [..., in] times the weight, in the type of `input`."""
        rows: Tensor = linear(input.flatten(0, -2), self.weight.view(FP8), self.scale, None, None)
        output = rows.view(*input.shape[:-1], self.out_features)
        return output if self.bias is None else output + self.bias

    def dequantize(self) -> Tensor:
        """The weight [out, in] in float32."""
        return self.weight.view(FP8).float() * self.scale[:, None]

    @property
    def W_q(self) -> Tensor:
        """The stored weight; the name by which PEFT's DoRA knows that it has to call `dequantize`."""
        return self.weight


def to_fp8(module: Any, device: torch.device, keep: Any = None) -> Any:
    """Move `module` to `device`, every linear layer in it but `keep` as FP8, one after the other.

    It may be on the CPU: the GPU then never holds more than the FP8 layers and one layer's weight.
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
    """Whether the kernels take the shape: both sizes are multiples of 16."""
    return linear.in_features % 16 == 0 and linear.out_features % 16 == 0
