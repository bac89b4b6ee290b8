"""Libraries that only one format needs: imported when it is used, and asked for by name when they are absent."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from spantune.errors import ConfigError


def need(module: str, extra: str) -> Any:
    """The module, imported.

    Raises:
        ConfigError: it is not installed; says how to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != library:
            raise  # the library is there and lacks something itself
        raise ConfigError(
            f"this kind of file needs {library}, which is not installed; run pip install 'spantune[{extra}]'"
        ) from None
