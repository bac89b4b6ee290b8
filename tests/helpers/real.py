"""The folder of real corpora, which may not be redistributed (tests skip without it), and the scripts in `bench/`."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

SHARED = Path(os.environ.get("SPANTUNE_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


def bench(name: str) -> ModuleType:
    """Import a script of `bench/` as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "bench" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their types up there
    spec.loader.exec_module(module)
    return module
