"""The error tree: everything that spantune raises for a user's input or machine.

    SpantuneError
    ├── ConfigError     a recipe, an override or a command line that cannot be right
    ├── DataError       a corpus file or a document; knows file, line and field
    ├── ModelError      a model, tokenizer or adapter that is absent or not what it should be
    └── RunError        a run folder that exists, is missing or is damaged

A message says where, what was found, what was expected and what to do. The command line prints it
and exits with 2. Our own bugs are `assert`s and never derive from these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any


class SpantuneError(Exception):
    """Root of the tree; catch it to catch all that a user can mend."""


class ConfigError(SpantuneError):
    """A recipe, override or option that cannot be right."""


class ModelError(SpantuneError):
    """A model, tokenizer or adapter that is absent or not what it should be."""


class RunError(SpantuneError):
    """A run folder that exists already, is missing or is damaged."""


class DataError(SpantuneError):
    """A corpus file or document that cannot be read as what it claims to be.

    Args:
        message: what was found, what was expected and the remedy.
        path: the file, where one is known.
        line: 1-based line in it.
        field: the field of the record.
    """

    def __init__(
        self, message: str, *, path: str | Path | None = None, line: int | None = None, field: str | None = None
    ):
        self.message, self.path, self.line, self.field = message, path, line, field
        where = str(path) if path is not None else ""
        if line is not None:
            where += f":{line}" if where else f"line {line}"
        if field is not None:
            where += f", field {field}" if where else f"field {field}"
        super().__init__(f"{where}: {message}" if where else message)


def nearest(name: str, valid: Iterable[str]) -> str:
    """The clause that ends an "unknown name" message: the nearest valid name, and all of them."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(names)}"


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
