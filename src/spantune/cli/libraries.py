"""Importing torch and transformers for a command: hide their messages, and import fewer modules to start faster.

The module `transformers.modeling_utils` imports TorchDynamo, distributed tensors and SciPy, which servers, several GPUs
and object detection need. A command that only extracts on a CPU needs none of them, although they take half of its
import time. So these imports are left out, and done later if something needs them after all.
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
    """Hide the banners, progress bars and warnings of libraries, and import torch and transformers.

    Args:
        loading: the source of the model that will be loaded, for a message that is printed at once; None for none.
        whole: whether to import `transformers.modeling_utils` completely, as training needs it. If False and there is
            no GPU, only the part that extraction uses is imported.
    """
    if loading is not None and os.environ.get("RANK", "0") == "0" and importlib.util.find_spec("transformers"):
        say(f"loading {loading.removeprefix('bundled:')} …")
    quiet_children()
    if not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)  # libraries warn about future changes in each other
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its import warns about optional kernels
    with _without_collection():
        if not whole and not shows_gpu():  # with a GPU, more of torch is needed, and the import time matters less
            import_narrowly()
        from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def quiet_children() -> None:
    """Hide the progress bars and messages of libraries, in this process and in processes that it starts later."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a shared machine, busy waiting is ten times slower
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def import_narrowly() -> None:
    """Import `transformers.modeling_utils` without TorchDynamo, distributed tensors and SciPy.

    The decorators of TorchDynamo on some functions of transformers, for servers and for FP8 kernels from a hub, then
    have no effect. Nothing is done if the module is imported already.
    """
    if "transformers.modeling_utils" in sys.modules:
        return
    import torch  # noqa: F401  imported before one of its modules is replaced
    from transformers import utils
    from transformers.utils import import_utils

    with _replaced(DYNAMO, _dynamo()), _replaced(GET_ITEM, _get_item()), _absent(utils, import_utils):
        for name in ("modeling_utils", "masking_utils", "models.auto.modeling_auto"):
            importlib.import_module(f"transformers.{name}")


@contextmanager
def _without_collection() -> Iterator[None]:
    """Turn off garbage collection inside the block, and exclude the objects made in it from later collections.

    These objects belong to modules, which are never freed.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.freeze()
            gc.enable()


def _dynamo() -> ModuleType:
    """Return a stand-in for the module TorchDynamo, whose decorators return the function unchanged.

    Any other attribute imports TorchDynamo and is taken from it.
    """
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
    """Return a stand-in for a module of TorchDynamo, with its only class that attention masks need.

    The real module is imported when the class is used.
    """
    stand_in = ModuleType(GET_ITEM)

    def mode() -> object:
        return importlib.import_module(GET_ITEM).TransformGetItemToIndex()

    vars(stand_in)["TransformGetItemToIndex"] = mode
    return stand_in


@contextmanager
def _replaced(name: str, stand_in: ModuleType) -> Iterator[None]:
    """Use `stand_in` as the module `name` inside the block, unless that module is imported already."""
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
    """Make transformers believe, inside the block, that SciPy, scikit-learn and torch.distributed are not available.

    Args:
        modules: the modules of transformers that have the functions which check this.
    """
    names = ("is_scipy_available", "is_sklearn_available", "is_torch_distributed_available")
    before = [(module, name, getattr(module, name)) for module in modules for name in names]
    for module, name, _ in before:
        setattr(module, name, lambda: False)
    try:
        yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)
