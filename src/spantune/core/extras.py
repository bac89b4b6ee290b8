"""Optional dependencies: the extras of the package, and the command that installs one where it is missing.

The base installation has no torch. What runs a model is in the extra `train`; formats and trackers that need a library
of their own have further extras.
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


def missing_train(error: ModuleNotFoundError) -> ConfigError | None:
    """Return the error that a user is shown where a module of the extra `train` is missing; None for other modules."""
    if error.name not in TRAIN:
        return None
    return ConfigError(
        f"training or running a model needs torch and other packages, of which {error.name} is not installed; "
        f"run {install_command('train')}"
    )


def install_command(*extras: str) -> str:
    """Return the command that installs `extras`: from the package index, or from where this spantune is from.

    A checkout is named by its path, or by a dot where it is the working folder.
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
    """The checkout that spantune runs or was installed from, or the URL it was installed from; None for an index."""
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
    """The folder of the checkout whose source code is running; None for an installed copy."""
    root = Path(__file__).resolve().parents[3]
    return root if os.access(root / "pyproject.toml", os.R_OK) and (root / "src" / "spantune").is_dir() else None


def _not_installed(purpose: str, library: str, extra: str) -> ConfigError:
    return ConfigError(f"{purpose} needs {library}, which is not installed; run {install_command(extra)}")
