"""Optional dependencies: check that the packages of an extra are installed, and name the command that installs them.

The base installation has no torch. The extra `train` has the packages that run a model. Formats and trackers that need
a library have further extras.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

from spantune.core.errors import ConfigError

TRAIN = (
    *("torch", "transformers", "peft", "accelerate", "llguidance", "safetensors"),
    *("modelscope", "swanlab", "PIL", "httpx2", "tenacity"),
)
"""The top-level modules of the extra `train`."""


def need(module: str, extra: str, purpose: str = "this kind of file") -> ModuleType:
    """Import and return a module of an optional dependency.

    Args:
        module: the name of the module, such as `pyarrow.fs`.
        extra: the extra that installs it, such as `ray`.
        purpose: what needs the module; it begins the error message.

    Raises:
        ConfigError: the library is not installed. The message has the command that installs it.
        ModuleNotFoundError: the library is installed, but a module that it imports is not.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != library:
            raise  # the library is installed and lacks a dependency of its own
        raise _not_installed(purpose, library, extra) from None


def require_extra(purpose: str, extra: str, modules: Iterable[str]) -> None:
    """Check that `modules` are installed without importing them, so that a missing one is reported before any work.

    Args:
        purpose: what needs the modules, such as `model.base=nf4`; it begins the error message.
        extra: the extra that installs them.
        modules: names of top-level modules.

    Raises:
        ConfigError: a module is not installed. The message has the command that installs it.
    """
    for module in modules:
        if find_spec(module) is None:
            raise _not_installed(purpose, module, extra)


def missing_train(error: ModuleNotFoundError) -> ConfigError | None:
    """Return the error to show to a user if `error` is about a module of the extra `train`; None for other modules."""
    if error.name not in TRAIN:
        return None
    return ConfigError(
        f"training or running a model needs torch and other packages, of which {error.name} is not installed; "
        f"run {install_command('train')}"
    )


def install_command(*extras: str) -> str:
    """Return the command that installs `extras` from the same source as this spantune.

    The source is the package index, a URL, or a checkout, which is named by its path, or by a dot if it is the working
    folder. Example: `pip install 'spantune[train]'`.
    """
    names = f"[{','.join(extras)}]"
    source = _source()
    if source is None:
        return f"pip install 'spantune{names}'"
    if isinstance(source, str):
        return f"pip install 'spantune{names} @ {source}'"
    place = "." if source == Path.cwd() else source
    return f"pip install {'-e ' if _checkout() else ''}'{place}{names}'"


def _source() -> Path | str | None:
    """Return the source of spantune: the folder of a checkout, a URL, or None for a package index.

    The source of an installed package is read from its `direct_url.json` (PEP 610).
    """
    if (checkout := _checkout()) is not None:
        return checkout
    try:
        stated = json.loads(metadata.distribution("spantune").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, OSError, ValueError):
        return None
    url = stated.get("url")
    if not isinstance(url, str):
        return None
    if "dir_info" in stated:
        return Path(unquote(urlsplit(url).path))
    version_control = stated.get("vcs_info", {}).get("vcs")
    return f"{version_control}+{url}" if version_control else url


def _checkout() -> Path | None:
    """Return the folder of the checkout whose source code is running; None for an installed copy."""
    root = Path(__file__).resolve().parents[3]
    return root if os.access(root / "pyproject.toml", os.R_OK) and (root / "src" / "spantune").is_dir() else None


def _not_installed(purpose: str, library: str, extra: str) -> ConfigError:
    return ConfigError(f"{purpose} needs {library}, which is not installed; run {install_command(extra)}")
