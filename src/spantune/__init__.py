"""spantune: fine-tune open LLMs into entity extractors whose every entity is in the text.

    import spantune

    run = spantune.train(spantune.load_config("recipes/demo.yaml"))
    for document in spantune.load(run.folder).extract(["患者因急性阑尾炎行腹腔镜手术。"]):
        print([(document.surface(entity), entity.label, entity.score) for entity in document.entities])

The names below are the public ones; all else may move. torch is imported when a name needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spantune.core.config import Config, load_config
    from spantune.core.document import Document, Entity
    from spantune.core.errors import ConfigError, DataError, ModelError, RunError, SpantuneError
    from spantune.core.task import Label, TaskSpec
    from spantune.data.formats import read, write
    from spantune.extraction.extractor import Extractor
    from spantune.extraction.extractor import load_run as load
    from spantune.extraction.result import Extraction
    from spantune.metrics.scoring import score
    from spantune.training.job import train

__version__ = "0.1.0"

_HOMES = {
    "Config": "core.config",
    "ConfigError": "core.errors",
    "DataError": "core.errors",
    "Document": "core.document",
    "Entity": "core.document",
    "Extraction": "extraction.result",
    "Extractor": "extraction.extractor",
    "Label": "core.task",
    "ModelError": "core.errors",
    "RunError": "core.errors",
    "SpantuneError": "core.errors",
    "TaskSpec": "core.task",
    "load": "extraction.extractor",
    "load_config": "core.config",
    "read": "data.formats",
    "score": "metrics.scoring",
    "train": "training.job",
    "write": "data.formats",
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
