"""spantune: fine-tune open LLMs into entity extractors whose every entity is in the text.

    import spantune

    run = spantune.train(spantune.load_config("recipes/demo.yaml"))
    for document in spantune.load(run.folder).extract(["患者因急性阑尾炎行腹腔镜手术。"]):
        print([(document.surface(entity), entity.label, entity.score) for entity in document.entities])

The names below are the public ones; all else may move. torch is imported when a name needs it.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spantune.config import Config, load_config
    from spantune.document import Document, Entity
    from spantune.errors import ConfigError, DataError, ModelError, RunError, SpantuneError
    from spantune.extract import Extractor
    from spantune.extract import load_run as load
    from spantune.extraction import Extraction
    from spantune.formats import read, write
    from spantune.metrics import score
    from spantune.task import Label, TaskSpec
    from spantune.train import train

__version__ = "0.1.0"

_HOMES = {
    "Config": "config",
    "ConfigError": "errors",
    "DataError": "errors",
    "Document": "document",
    "Entity": "document",
    "Extraction": "extraction",
    "Extractor": "extract",
    "Label": "task",
    "ModelError": "errors",
    "RunError": "errors",
    "SpantuneError": "errors",
    "TaskSpec": "task",
    "load": "extract",
    "load_config": "config",
    "read": "formats",
    "score": "metrics",
    "train": "train",
    "write": "formats",
}

__all__ = [
    "Config",
    "ConfigError",
    "DataError",
    "Document",
    "Entity",
    "Extraction",
    "Extractor",
    "Label",
    "ModelError",
    "RunError",
    "SpantuneError",
    "TaskSpec",
    "load",
    "load_config",
    "read",
    "score",
    "train",
    "write",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'spantune' has no attribute {name!r}")
    home = importlib.import_module(f"spantune.{_HOMES[name]}")
    return getattr(home, "load_run" if name == "load" else name)


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """Keeps the import system from hiding the functions `load` and `train` behind the submodules of those names."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
