"""Decoder layers through torch.compile on a GPU: for training, with a choice of what is recomputed in backward.

One layer is compiled for sequences of any length, and all layers share its code. `train.keep` says what a layer keeps
for the backward pass:

    none    its input only; all products are recomputed
    some    also the outputs of attention and of products that are not wide (the MLP's first product is wide)
    fp8     as `most`, but a gated MLP that is one operator keeps its first product in 8 bits
    most    also the outputs of wide products; norms, activations and quantised inputs are recomputed

The random choices of an adapter's dropout are always kept.

For extraction the layers of a frozen model are compiled separately, without a backward pass. This code is used for
decoding passes and for packs of texts that are read.
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
"""The name of a layer's argument for the cache: since transformers 5.24, and before."""
RECOMPILES = 64
_PLAIN = "plain"  # the attribute of a forward compiled for extraction that holds the forward before
Forward: TypeAlias = Callable[..., object]
_LOG = logging.getLogger(__name__)


def compile_layers(model: CausalLM, keep: Keep) -> int:
    """Compile the training forward of each decoder layer of `model`; returns the number of layers.

    If the compiler fails, for example on a machine without a C compiler, a warning is logged and the layers run
    uncompiled.

    Args:
        model: the model with its adapter.
        keep: what a layer keeps for the backward pass.
    """
    import torch._dynamo
    import torch.fx.experimental._config

    torch._dynamo.config.recompile_limit = max(RECOMPILES, torch._dynamo.config.recompile_limit)
    # Otherwise the scale of an adapter would be a tensor on the CPU. Then each layer would run eight kernels there, and
    # before the first step torch would build test programs for the CPU's instructions, which takes 43 s in every run.
    torch._dynamo.config.specialize_float = True
    # Two sizes that are equal in the first pack may differ in the next one.
    torch.fx.experimental._config.use_duck_shape = False
    # This logger warns of in-place operators; a layer has none.
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
    layers, attempt = decoder_layers(model), _Attempt()
    for layer in layers:
        fuse_mlps(layer, keep)
        layer.forward = _only_in_training(layer, layer.forward, attempt.compiled(_keeping(layer.forward, keep)))
    return len(layers)


class _Attempt:
    """The compilation of a model's layers for training; if it fails for one layer, all layers run uncompiled."""

    def __init__(self) -> None:
        self._has_failed = False

    def compiled(self, plain: Forward) -> Forward:
        """Return a function that runs `plain` compiled, and uncompiled after the compiler has failed."""
        from torch._dynamo.exc import TorchDynamoException

        compiled = torch.compile(plain, dynamic=True)

        def forward(*args: object, **kwargs: object) -> object:
            if self._has_failed:
                return plain(*args, **kwargs)
            try:
                return compiled(*args, **kwargs)
            except TorchDynamoException as error:
                if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                    raise  # nothing can be compiled during a capture; the pass is repeated without it, and compiles
                self._has_failed = True
                _LOG.warning("the layers are not compiled, which would be faster: %s", _cause(error))
                return plain(*args, **kwargs)

        return forward


def _cause(error: BaseException) -> str:
    """Return the type and the first line of the innermost cause, since the compiler wraps exceptions in its own."""
    while (inner := getattr(error, "inner_exception", None) or error.__cause__) is not None:
        error = inner
    return f"{type(error).__name__}: {first_line(error)}"


def compile_for_extraction(model: CausalLM) -> None:
    """Compile the forward of each decoder layer for extraction; layers that are compiled already are left unchanged.

    The compiled code is used in evaluation mode, for passes whose `RowView` has stores and for packs with `spans`.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(RECOMPILES, torch._dynamo.config.recompile_limit)
    freeze_adapters(model)
    for number, layer in enumerate(decoder_layers(model)):
        if not hasattr(layer.forward, _PLAIN):
            layer.forward = _in_extraction(number, layer, layer.forward)


def plain_in_extraction(model: CausalLM) -> None:
    """Undo `compile_for_extraction`: the layers run uncompiled again."""
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
    """Return a function that runs `forward` and keeps for the backward pass what `keep` says."""
    contexts = _contexts(keep)

    def checkpointed(*args: object, **kwargs: Any) -> object:
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, preserve_rng_state=False, **kwargs)

    return checkpointed


def _contexts(keep: Keep) -> Any:
    """Return the `context_fn` of `checkpoint`, with a hash; torch caches a traced layer on disk only with one."""
    contexts: Any = partial(create_selective_checkpoint_contexts, _POLICIES[keep])
    contexts.cache_hash = f"{keep} {_code()}"
    return contexts


@cache
def _code() -> str:
    """Return a hash of the code that torch's cache of traced layers does not see: policies and operators' gradients."""
    sources = [inspect.getsource(module) for module in (sys.modules[__name__], packs, lora_linear, gated)]
    return hashlib.sha256("".join(sources).encode()).hexdigest()


def _only_in_training(layer: nn.Module, plain: Forward, compiled: Forward) -> Forward:
    def forward(*args: object, **kwargs: object) -> object:
        return (compiled if layer.training else plain)(*args, **kwargs)

    return forward


def _none(context: object, operator: object, *args: Tensor, **kwargs: object) -> CheckpointPolicy:
    if operator is torch.ops.spantune.gated_mlp.default:  # the operator itself recomputes what it does not keep
        return CheckpointPolicy.MUST_SAVE
    # To draw the same random numbers again, the state of their generator is needed. The compiler cannot restore it on a
    # GPU (torch 2.11), nor can a CUDA graph during its capture.
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
