"""A frozen base whose layers are divided over the GPUs of a training run (FSDP2).

Only the frozen weights of the decoder layers are divided: a layer is gathered before its pass and dropped after it, in
the backward pass again. Adapters, head, embeddings and the output layer stay whole on every rank, so that they are
trained, reduced and saved as without division, in a number type of their own.
"""

from __future__ import annotations

import torch
from torch import nn

from spantune.models.architecture import causal_lm, decoder_layers
from spantune.models.interfaces import CausalLM


def divide_layers(model: CausalLM, device: torch.device, ranks: int) -> int:
    """Divide the frozen weights of the decoder layers over `ranks` processes, all of which call this.

    Args:
        model: with adapters, on its device; compiled or not.
        device: of the model.
        ranks: how many processes the process group has.

    Returns:
        How many weights are divided.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (ranks,))
    layers = decoder_layers(model)
    kept = {weight for weight in model.parameters() if weight.requires_grad}
    divided = {weight for layer in layers for weight in layer.parameters() if weight not in kept}
    count = sum(weight.numel() for weight in divided)
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
    base: nn.Module = causal_lm(model).base_model
    # the root gathers the next layer while one computes; it divides nothing itself
    fully_shard(base, mesh=mesh, reshard_after_forward=False, ignored_params=set(base.parameters()) - divided)
    return count


def gather_layers(model: CausalLM) -> None:
    """Take part in a pass of other ranks through divided layers, without computing: gather each layer, and drop it."""
    for layer in decoder_layers(model):
        layer.unshard()  # type: ignore[operator]  # fully_shard gives it the method
        layer.reshard()  # type: ignore[operator]
