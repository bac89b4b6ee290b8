"""The error tree: everything that spantune raises for a user's input or machine.

    SpantuneError
    ├── ConfigError     an invalid recipe, override or command line
    ├── DataError       an invalid corpus file or document; carries file, line and field
    ├── ModelError      a missing or invalid model, tokenizer or adapter
    └── RunError        a run folder that exists already, is missing or is damaged

A message says where, what was found, what was expected and what to do. The command line prints it
and exits with 2. Bugs in spantune itself are `assert`s and never derive from these.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType


class SpantuneError(Exception):
    """Root of the tree; catch it to catch every error that a user can fix."""


class ConfigError(SpantuneError):
    """An invalid recipe, override or option."""


class ModelError(SpantuneError):
    """A missing or invalid model, tokenizer or adapter."""


class RunError(SpantuneError):
    """A run folder that exists already, is missing or is damaged."""


class DataError(SpantuneError):
    """An invalid corpus file or document.

    Args:
        message: what was found, what was expected and what to do.
        path: the file, if known.
        line: 1-based line in the file.
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
    """Return the end of an "unknown name" message: the most similar valid name, and all valid names."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(names)}"


def need(module: str, extra: str, purpose: str = "this kind of file") -> ModuleType:
    """Import `module`, which the optional dependencies `extra` install; `purpose` begins the error message.

    Raises:
        ConfigError: it is not installed; says how to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != library:
            raise  # the library is installed and lacks a dependency of its own
        raise _not_installed(purpose, library, extra) from None


def require_extra(purpose: str, extra: str, modules: Iterable[str]) -> None:
    """Check before any work that the top-level `modules` of `extra` are installed, without importing them.

    Raises:
        ConfigError: one is not installed; the message begins with `purpose`, such as `model.base=nf4`.
    """
    for module in modules:
        if find_spec(module) is None:
            raise _not_installed(purpose, module, extra)


def require_system() -> None:
    """Check that this is a system that spantune runs on: Linux or macOS.

    Raises:
        ConfigError: it is Windows.
    """
    if sys.platform == "win32":
        raise ConfigError(
            "spantune runs on Linux and macOS; on Windows install it inside WSL, the Windows Subsystem for Linux "
            "(wsl --install)"
        )


def _not_installed(purpose: str, library: str, extra: str) -> ConfigError:
    return ConfigError(f"{purpose} needs {library}, which is not installed; run pip install 'spantune[{extra}]'")
