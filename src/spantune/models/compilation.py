"""Decoder layers through torch.compile for training on a GPU, with a choice of what backward computes again.

One layer is compiled and all share its code, for sequences of any length. What a layer keeps for backward:

    none    its input only; all products are computed again
    some    also attention and the products that are not wide (the MLP's first is), the dear ones for their size
    most    also the wide products; norms, activations and quantising are computed again

Extraction, which has other shapes, goes through the layers as they are.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from spantune.core import Keep
from spantune.models.architecture import decoder_layers, is_wide
from spantune.models.kernels import lora_linear, packs

RECOMPILES = 64


def compile_layers(model: Any, keep: Keep) -> int:
    """Compile the training forward of the decoder layers of `model`; returns how many there are."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(RECOMPILES, torch._dynamo.config.recompile_limit)
    layers = decoder_layers(model)
    for layer in layers:
        layer.forward = _only_in_training(
            layer, layer.forward, torch.compile(_keeping(layer.forward, keep), dynamic=True)
        )
    return len(layers)


def _keeping(forward: Callable[..., Any], keep: Keep) -> Callable[..., Any]:
    """`forward` with what it keeps for backward chosen."""
    contexts = _contexts(keep)

    def kept(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, preserve_rng_state=False, **kwargs)

    return kept


def _contexts(keep: Keep) -> Any:
    """What tells `checkpoint` what to keep, with the hash without which torch stores no traced layer for later runs."""
    contexts: Any = partial(create_selective_checkpoint_contexts, _POLICIES[keep])
    contexts.cache_hash = f"{keep} {_code()}"
    return contexts


@cache
def _code() -> str:
    """What torch's cache of traced layers cannot see in their graphs: the policies, and our operators' gradients."""
    sources = [inspect.getsource(module) for module in (sys.modules[__name__], packs, lora_linear)]
    return hashlib.sha256("".join(sources).encode()).hexdigest()


def _only_in_training(layer: Any, plain: Callable[..., Any], compiled: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled if layer.training else plain)(*args, **kwargs)

    return forward


def _none(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.PREFER_RECOMPUTE


def _some(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if operator is torch.ops.spantune.pack_attention.default:
        return CheckpointPolicy.MUST_SAVE
    if operator is torch.ops.spantune.linear.default and not is_wide(*args[2].shape):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _most(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if operator in (torch.ops.spantune.pack_attention.default, torch.ops.spantune.linear.default):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


_POLICIES: dict[Keep, Callable[..., CheckpointPolicy]] = {"none": _none, "some": _some, "most": _most}
