"""Whether extraction compiles a model's layers, and a check that compiled layers compute what plain layers compute."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable

from torch import Tensor, nn

from spantune.core import config, first_line
from spantune.models import CausalLM, compile_for_extraction, decoder_layers, is_compilable, plain_in_extraction

LARGE = 10**9
"""The number of weights from which on compiling saves time, if a few hundred documents are extracted."""
COMPARED_LAYER = 1
"""The layer whose output is compared between compiled and plain layers; behind it, rounding errors of FP8 add up."""
COMPILED_ERROR = 0.25
"""The largest relative error allowed: FP8 rounding gives up to 0.15 with random weights, a wrong result is near 1."""
_LOG = logging.getLogger(__name__)


def is_worth_compiling(model: CausalLM, settings: config.Extract, *, is_bulk: bool) -> bool:
    """Whether to compile the layers of a model now.

    Args:
        model: a causal LM.
        settings: the section `extract`; its `compile` is `on`, `off` or `auto`.
        is_bulk: whether more documents wait than are computed together.
    """
    if settings.compile == "off" or next(model.parameters()).device.type != "cuda" or not is_compilable(model):
        return False
    return settings.compile == "on" or (is_bulk and sum(weight.numel() for weight in model.parameters()) >= LARGE)


def compile_checked(model: CausalLM, compute: Callable[[bool], object], tokens: int) -> bool:
    """Compile the layers of a model; if that fails or changes the result, undo it and log a warning.

    Args:
        model: the model, whose weights are frozen.
        compute: runs one pass without a CUDA graph; its argument says whether the layers are compiled (True) or plain.
        tokens: how many tokens of the pass are compared, from the first on.

    Returns:
        Whether the layers are compiled now.
    """
    layers = decoder_layers(model)
    layer = layers[min(COMPARED_LAYER, len(layers) - 1)]
    wanted, began = _states(layer, lambda: compute(False), tokens), time.perf_counter()
    try:
        compile_for_extraction(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice of the compiler
            found = _states(layer, lambda: compute(True), tokens)
        error = float((found - wanted).norm() / wanted.norm())
        if error < COMPILED_ERROR:
            _LOG.info("the layers were compiled in %.0f s", time.perf_counter() - began)
            return True
        reason = f"they are off by {error:.1g} here"
    except Exception as exception:  # the errors of a compiler have no common class
        reason = first_line(exception)
    _LOG.warning("the layers are not compiled, which would be faster: %s", reason)
    plain_in_extraction(model)
    return False


def _states(layer: nn.Module, compute: Callable[[], object], tokens: int) -> Tensor:
    """Return the output [tokens, size] of a layer for the first tokens of a pass, in float32."""
    states: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        states.append((output if isinstance(output, Tensor) else output[0])[0, :tokens].float().clone())

    hook = layer.register_forward_hook(keep)
    try:
        compute()
    finally:
        hook.remove()
    return states[-1]
