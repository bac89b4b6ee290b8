"""Lazy exports of a package: a name is imported on its first use, so that names that do not need torch load quickly."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence

from spantune.core.extras import missing_train


def lazy_exports(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return the functions `__getattr__` and `__dir__` of a package whose names are imported on first use (PEP 562).

    The first use of a name raises a ConfigError if the name needs a package of the extra `train` that is not installed.

    Args:
        package: the `__name__` of the package.
        modules: the name of a module, relative to the package, to the names that it exports. `"name as alias"` exports
            `name` under the name `alias`.
    """
    homes = {}
    for module, names in modules.items():
        for name in names:
            source, _, alias = name.partition(" as ")
            homes[alias or source] = (f"{package}.{module}", source)

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, source = homes[name]
        try:
            value: object = getattr(importlib.import_module(module), source)
        except ModuleNotFoundError as error:
            raise missing_train(error) or error from None
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(homes)
