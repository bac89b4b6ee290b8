"""Decoder layers through torch.compile on a GPU: for training, with a choice of what backward computes again.

One layer is compiled for sequences of any length, and all layers share its code. What a layer keeps for backward:

    none    its input only; all products are computed again
    some    also the outputs of attention and of the products that are not wide (the MLP's first product is wide)
    most    also the outputs of wide products; norms, activations and quantised inputs are computed again

What an adapter's dropout leaves of its input is kept in any case.

Extraction compiles the layers by itself, without a backward pass: those of a frozen model, for passes that decode rows
and for packs that are read.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from spantune.core import Keep, first_line
from spantune.models.architecture import decoder_layers, is_wide
from spantune.models.gated_mlp import fuse_mlps
from spantune.models.interfaces import CausalLM
from spantune.models.kernels import gated, lora_linear, packs
from spantune.models.lora import freeze_adapters

CACHE_ARGUMENTS = ("cache", "past_key_values")
"""The names of a layer's argument for the cache, since transformers 5.24 and before."""
RECOMPILES = 64
_PLAIN = "plain"  # the attribute of a forward that is compiled for extraction: the one before
Forward: TypeAlias = Callable[..., object]
_LOG = logging.getLogger(__name__)


def compile_layers(model: CausalLM, keep: Keep) -> int:
    """Compile the training forward of each decoder layer of `model`; returns the number of layers.

    Where the compiler fails, as it does on a machine without a C compiler, the layers run as they are, with a warning.
    """
    import torch._dynamo
    import torch.fx.experimental._config

    torch._dynamo.config.recompile_limit = max(RECOMPILES, torch._dynamo.config.recompile_limit)
    # The scale of an adapter would be a tensor on the CPU: each layer then runs eight kernels there, and before the
    # first step, compiled before or not, torch builds test programs for the CPU's instructions, which takes 43 s.
    torch._dynamo.config.specialize_float = True
    # two sizes that happen to be equal in the first pack need not be so in the next one
    torch.fx.experimental._config.use_duck_shape = False
    # it warns of operators in place, of which a layer has none
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
    layers, attempt = decoder_layers(model), _Attempt()
    for layer in layers:
        fuse_mlps(layer, keep)
        layer.forward = _only_in_training(layer, layer.forward, attempt.compiled(_keeping(layer.forward, keep)))
    return len(layers)


class _Attempt:
    """The compilation of a model's layers for training, which is given up for all of them where it fails for one."""

    def __init__(self) -> None:
        self._has_failed = False

    def compiled(self, plain: Forward) -> Forward:
        """Return `plain` through the compiler, as long as that does not fail."""
        from torch._dynamo.exc import TorchDynamoException

        compiled = torch.compile(plain, dynamic=True)

        def forward(*args: object, **kwargs: object) -> object:
            if self._has_failed:
                return plain(*args, **kwargs)
            try:
                return compiled(*args, **kwargs)
            except TorchDynamoException as error:
                if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                    raise  # where nothing new can be compiled; the same pass compiles it outside
                self._has_failed = True
                _LOG.warning("the layers are not compiled, which would be faster: %s", _cause(error))
                return plain(*args, **kwargs)

        return forward


def _cause(error: BaseException) -> str:
    """What a compiler failed at; its own exceptions begin with where they come from."""
    while (inner := getattr(error, "inner_exception", None) or error.__cause__) is not None:
        error = inner
    return f"{type(error).__name__}: {first_line(error)}"


def compile_for_extraction(model: CausalLM) -> None:
    """Compile the forward of each decoder layer for extraction; nothing happens where that is done.

    It is used by passes whose `RowView` has stores, and for packs of spans, while the model does not train.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(RECOMPILES, torch._dynamo.config.recompile_limit)
    freeze_adapters(model)
    for number, layer in enumerate(decoder_layers(model)):
        if not hasattr(layer.forward, _PLAIN):
            layer.forward = _in_extraction(number, layer, layer.forward)


def plain_in_extraction(model: CausalLM) -> None:
    """Undo `compile_for_extraction`."""
    for layer in decoder_layers(model):
        layer.forward = getattr(layer.forward, _PLAIN, layer.forward)


def _in_extraction(number: int, layer: nn.Module, plain: Forward) -> Forward:
    compiled = torch.compile(plain, dynamic=True)

    def forward(*args: object, **kwargs: Any) -> object:
        view = kwargs.get("rows")
        rows = view.of_layer(number) if view is not None else None
        if layer.training or (rows is None and kwargs.get("spans") is None):
            return plain(*args, **kwargs)
        if rows is not None:
            kwargs |= {"rows": rows, **{name: None for name in CACHE_ARGUMENTS if name in kwargs}}
        return compiled(*args, **kwargs)

    setattr(forward, _PLAIN, plain)
    return forward


def _keeping(forward: Forward, keep: Keep) -> Forward:
    """`forward` that keeps for backward what `keep` says."""
    contexts = _contexts(keep)

    def checkpointed(*args: object, **kwargs: Any) -> object:
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, preserve_rng_state=False, **kwargs)

    return checkpointed


def _contexts(keep: Keep) -> Any:
    """The `context_fn` of `checkpoint`, with the hash without which torch does not cache the traced layer on disk."""
    contexts: Any = partial(create_selective_checkpoint_contexts, _POLICIES[keep])
    contexts.cache_hash = f"{keep} {_code()}"
    return contexts


@cache
def _code() -> str:
    """The hash of what torch's cache of traced layers does not see: the policies, and our operators' gradients."""
    sources = [inspect.getsource(module) for module in (sys.modules[__name__], packs, lora_linear, gated)]
    return hashlib.sha256("".join(sources).encode()).hexdigest()


def _only_in_training(layer: nn.Module, plain: Forward, compiled: Forward) -> Forward:
    def forward(*args: object, **kwargs: object) -> object:
        return (compiled if layer.training else plain)(*args, **kwargs)

    return forward


def _none(context: object, operator: object, *args: Tensor, **kwargs: object) -> CheckpointPolicy:
    if operator is torch.ops.spantune.gated_mlp.default:  # which computes again by itself what it does not keep
        return CheckpointPolicy.MUST_SAVE
    # Drawn again, random numbers need the state of their generator, which the compiler cannot give them on a GPU
    # (torch 2.11), nor a CUDA graph while it is captured.
    if torch.Tag.nondeterministic_seeded in getattr(operator, "tags", ()):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _some(context: object, operator: object, *args: Tensor, **kwargs: object) -> CheckpointPolicy:
    if operator is torch.ops.spantune.pack_attention.default:
        return CheckpointPolicy.MUST_SAVE
    if operator is torch.ops.spantune.linear.default and not is_wide(*args[2].shape):
        return CheckpointPolicy.MUST_SAVE
    return _none(context, operator, *args, **kwargs)


def _most(context: object, operator: object, *args: Tensor, **kwargs: object) -> CheckpointPolicy:
    if operator in (torch.ops.spantune.pack_attention.default, torch.ops.spantune.linear.default):
        return CheckpointPolicy.MUST_SAVE
    return _none(context, operator, *args, **kwargs)


_POLICIES: dict[Keep, Callable[..., CheckpointPolicy]] = {"none": _none, "some": _some, "fp8": _most, "most": _most}
