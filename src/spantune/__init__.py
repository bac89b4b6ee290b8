"""spantune: fine-tune open LLMs into entity extractors whose every entity is in the text.

    import spantune

    run = spantune.train(spantune.load_config("recipes/demo.yaml"))
    for document in spantune.load(run.folder).extract(["患者因急性阑尾炎行腹腔镜手术。"]):
        print([(document.surface(entity), entity.label, entity.score) for entity in document.entities])

The names below are the public ones; all else may move. torch is imported when a name needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spantune.core.errors import require_system
from spantune.core.lazy import lazy_exports

if TYPE_CHECKING:
    from spantune.core import (
        Config,
        ConfigError,
        DataError,
        Document,
        Entity,
        Extraction,
        Label,
        ModelError,
        RunError,
        SpantuneError,
        TaskSpec,
        load_config,
    )
    from spantune.data import read, write
    from spantune.extraction import Extractor
    from spantune.extraction import load_run as load
    from spantune.metrics import score
    from spantune.training import init, train

__version__ = "0.1.0"

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
    "init",
    "load",
    "load_config",
    "read",
    "score",
    "train",
    "write",
]

_import, __dir__ = lazy_exports(
    __name__,
    {
        "core": (
            *("Config", "ConfigError", "DataError", "Document", "Entity", "Extraction", "Label", "ModelError"),
            *("RunError", "SpantuneError", "TaskSpec", "load_config"),
        ),
        "data": ("read", "write"),
        "extraction": ("Extractor", "load_run as load"),
        "metrics": ("score",),
        "training": ("init", "train"),
    },
)


def __getattr__(name: str) -> object:
    """Import a public name on its first use.

    Raises:
        ConfigError: spantune does not run on this system.
    """
    if name in __all__:
        require_system()
    return _import(name)
