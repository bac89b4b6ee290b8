"""A frozen base whose layers are divided over the GPUs of a training run (FSDP2).

Only the frozen weights of the decoder layers are divided. A layer is gathered before its forward pass and dropped after
it; the same happens for its backward pass. Adapters, head, embeddings and the output layer are whole on every rank. So
they are trained, summed over ranks and saved as with a base that is not divided, and may be of another number type.
"""

from __future__ import annotations

import torch
from torch import nn

from spantune.models.architecture import causal_lm, decoder_layers
from spantune.models.interfaces import CausalLM


def divide_layers(model: CausalLM, device: torch.device, ranks: int) -> int:
    """Divide the frozen weights of the decoder layers over `ranks` processes; all of them must call this.

    Args:
        model: the model with its adapter, on its device; its layers may be compiled.
        device: the device of the model.
        ranks: the number of processes in the process group.

    Returns:
        The number of weights that are divided.
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
    # The root gathers the next layer while one computes; it has no divided weights of its own.
    fully_shard(base, mesh=mesh, reshard_after_forward=False, ignored_params=set(base.parameters()) - divided)
    return count


def gather_layers(model: CausalLM) -> None:
    """Take part in a pass of other ranks through divided layers: gather and drop each layer, without computing it."""
    for layer in decoder_layers(model):
        layer.unshard()  # type: ignore[operator]  # fully_shard adds this method
        layer.reshard()  # type: ignore[operator]
