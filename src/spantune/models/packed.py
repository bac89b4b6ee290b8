"""Weights of linear layers in the memory layout of a CPU's bf16 products, for models that only extract.

Otherwise PyTorch converts each weight to this layout at every call. With the few rows of a decoding pass this takes as
long as the product itself. The results are the same to the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spantune.models.architecture import decoder_layers
from spantune.models.interfaces import CausalLM


class PackedLinear(nn.Module):
    """A linear layer with a packed bf16 weight, without gradients; it replaces `layer` and keeps no other copy."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())

    @property
    def weight(self) -> Tensor:
        """The weight [out_features, in_features] in the usual layout, for models whose code reads it directly."""
        return self._packed.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer applied to `x` [..., in_features]: [..., out_features], both in bf16."""
        if x.numel() == 0:
            return x.new_empty(*x.shape[:-1], self.out_features)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return result


def pack_weights(model: CausalLM) -> int:
    """Pack the plain bf16 linear layers of a merged model on a CPU that computes in bf16.

    A packed model cannot be trained, saved or copied.

    Returns:
        The number of packed layers; 0 on any other device, where nothing is changed.
    """
    if not _can_pack():
        return 0
    count = 0
    for layer in decoder_layers(model):
        for parent in list(layer.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear and child.weight.dtype == torch.bfloat16 and child.weight.is_cpu:
                    setattr(parent, name, PackedLinear(child))
                    count += 1
    return count


def _can_pack() -> bool:
    names = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    has_all = all(hasattr(torch.ops.mkldnn, name) for name in names)
    return has_all and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
