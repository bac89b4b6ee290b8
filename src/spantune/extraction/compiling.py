"""Whether extraction compiles a model's layers, and the check that compiled layers compute what plain ones do."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from torch import Tensor

from spantune.core import config
from spantune.models import CausalLM, compile_for_extraction, is_compilable, plain_in_extraction

LARGE = 10**9
"""From so many weights on, the compiler's time is won back by a few hundred documents."""
COMPILED_ERROR = 0.1
"""The largest relative error: the roundings of all layers add up to 0.05 with FP8; a wrong result is far above."""
_LOG = logging.getLogger(__name__)


def is_worth_compiling(model: CausalLM, settings: config.Extract, *, is_bulk: bool) -> bool:
    """Whether to compile the layers of a model now.

    Args:
        model: the model.
        settings: the section `extract`.
        is_bulk: whether more documents wait than are computed together.
    """
    if settings.compile == "off" or next(model.parameters()).device.type != "cuda" or not is_compilable(model):
        return False
    return settings.compile == "on" or (is_bulk and sum(weight.numel() for weight in model.parameters()) >= LARGE)


def compile_checked(model: CausalLM, compute: Callable[[bool], Tensor]) -> bool:
    """Compile the layers of a model; undone, with a warning, where that fails or changes what is computed.

    Args:
        model: the model, whose weights are frozen.
        compute: computes something with compiled layers (True) or plain ones.

    Returns:
        Whether the layers are compiled now.
    """
    wanted, began = compute(False).float(), time.perf_counter()
    try:
        compile_for_extraction(model)
        found = compute(True).float()
        error = float((found - wanted).norm() / wanted.norm())
        if error < COMPILED_ERROR:
            _LOG.info("the layers were compiled in %.0f s", time.perf_counter() - began)
            return True
        reason = f"they are off by {error:.1g} here"
    except Exception as exception:  # a compiler's errors have no common class
        reason = (str(exception).splitlines() or [type(exception).__name__])[0]
    _LOG.warning("the layers are not compiled, which would be faster: %s", reason)
    plain_in_extraction(model)
    return False
