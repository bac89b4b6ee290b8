"""Make gguf and transformers read GGUF files three times as fast, with the same results."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gguf
import numpy as np


class QuickReader(gguf.GGUFReader):
    """A GGUF reader that slices plain arrays, since slicing a memory map runs Python code half a million times."""

    def _get(self, *arguments: Any, **more: Any) -> Any:
        if isinstance(self.data, np.memmap):
            self.data = self.data.view(np.ndarray)
        return super()._get(*arguments, **more)


def read_quickly(setattr: Callable[[Any, str, Any], None]) -> None:
    """Replace two names of gguf by `setattr`, so that a file and a table of tensor names are read only once."""
    setattr(gguf, "GGUFReader", functools.cache(QuickReader))
    setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
