"""What a command does before it imports torch and transformers: hide their messages, and keep their imports short.

transformers' base of all models imports TorchDynamo, distributed tensors and SciPy, for servers, several GPUs and the
detection of objects. A command that only extracts uses none of them, and they are half of its imports: so they are left
out, and imported later should something ask for them after all.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from spantune.core import say, shows_gpu

DYNAMO = "torch._dynamo"
GET_ITEM = f"{DYNAMO}._trace_wrapped_higher_order_op"


def quiet(loading: str | None = None, *, whole: bool = False) -> None:
    """Hide the banners and progress bars of libraries, and the messages that spantune's own replace; import torch.

    Args:
        loading: the source of the model that is about to be loaded, which is said at once.
        whole: import all of transformers' base of models, as training needs; else, where there is no GPU, only what
            extraction uses.
    """
    if loading is not None and os.environ.get("RANK", "0") == "0" and importlib.util.find_spec("transformers"):
        say(f"loading {loading.removeprefix('bundled:')} …")
    quiet_children()
    if not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)  # libraries warn of each other's changes
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of optional kernels when it is imported
    with _without_collection():
        if not whole and not shows_gpu():  # a GPU needs more of torch, and time on its CPU matters less
            import_narrowly()
        from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def quiet_children() -> None:
    """Hide the progress bars and messages of libraries, in this process and in those that it starts."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a shared machine, spinning threads are ten times slower
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def import_narrowly() -> None:
    """Import transformers' base of all models without TorchDynamo, distributed tensors and SciPy.

    Its functions that are marked for TorchDynamo, of servers and of kernels for FP8 from a hub, are then not marked.
    """
    if "transformers.modeling_utils" in sys.modules:
        return
    import torch  # noqa: F401  before its part is replaced
    from transformers import utils
    from transformers.utils import import_utils

    with _replaced(DYNAMO, _dynamo()), _replaced(GET_ITEM, _get_item()), _absent(utils, import_utils):
        for name in ("modeling_utils", "masking_utils", "models.auto.modeling_auto"):
            importlib.import_module(f"transformers.{name}")


@contextmanager
def _without_collection() -> Iterator[None]:
    """Do not search for reference cycles in the block; what it made is never searched, since modules stay."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.freeze()
            gc.enable()


def _dynamo() -> ModuleType:
    """A module whose marks for TorchDynamo change nothing; whoever asks for anything else gets TorchDynamo itself."""
    stand_in = ModuleType(DYNAMO)
    spec = importlib.util.find_spec(DYNAMO)
    stand_in.__path__ = list(spec.submodule_search_locations or []) if spec else []

    def mark(function: Callable[..., Any] | None = None, *_: object, **__: object) -> Callable[..., Any]:
        return function or mark

    def real(name: str) -> object:
        sys.modules.pop(DYNAMO, None)
        return getattr(importlib.import_module(DYNAMO), name)

    vars(stand_in).update(allow_in_graph=mark, assume_constant_result=mark, disable=mark, __getattr__=real)
    return stand_in


def _get_item() -> ModuleType:
    """The module of the one thing that masks need of TorchDynamo, which is imported when a mask needs it."""
    stand_in = ModuleType(GET_ITEM)

    def mode() -> object:
        return importlib.import_module(GET_ITEM).TransformGetItemToIndex()

    vars(stand_in)["TransformGetItemToIndex"] = mode
    return stand_in


@contextmanager
def _replaced(name: str, stand_in: ModuleType) -> Iterator[None]:
    """Let `stand_in` be the module `name` inside the block, unless that is imported already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


@contextmanager
def _absent(*modules: ModuleType) -> Iterator[None]:
    """Let transformers find neither SciPy, scikit-learn nor torch's distributed package inside the block."""
    names = ("is_scipy_available", "is_sklearn_available", "is_torch_distributed_available")
    before = [(module, name, getattr(module, name)) for module in modules for name in names]
    for module, name, _ in before:
        setattr(module, name, lambda: False)
    try:
        yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)
