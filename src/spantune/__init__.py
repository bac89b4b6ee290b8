"""spantune: fine-tune open LLMs into entity extractors whose every entity is in the text.

    import spantune

    result = spantune.train("recipe.yaml", ["run.name=first"])
    document = spantune.load(result.folder).extract("患者因急性阑尾炎行腹腔镜手术。")
    print([(document.surface(entity), entity.label, entity.score) for entity in document.entities])

The names below are the public ones; every other name may move or change. torch is imported only when a name that needs
it is first used.
"""

from __future__ import annotations

import warnings
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
    from spantune.data import Corpus, read, to_dicts, to_pandas, write
    from spantune.data import check_files as check
    from spantune.data import split_corpus as split
    from spantune.export import Exported, ExportSettings, export_run
    from spantune.extraction import Evaluation, Extractor
    from spantune.extraction import calibrate_run as calibrate
    from spantune.extraction import evaluate_run as evaluate
    from spantune.extraction import load_run as load
    from spantune.metrics import Calibration, Comparison, Scores, score
    from spantune.runs import compare_runs as compare
    from spantune.training import Draft, Plan, Result, init, train
    from spantune.training import plan_recipe as plan

__version__ = "0.2.0"

__all__ = [
    "Calibration",
    "Comparison",
    "Config",
    "ConfigError",
    "Corpus",
    "DataError",
    "Document",
    "Draft",
    "Entity",
    "Evaluation",
    "ExportSettings",
    "Exported",
    "Extraction",
    "Extractor",
    "Label",
    "ModelError",
    "Plan",
    "Result",
    "RunError",
    "Scores",
    "SpantuneError",
    "TaskSpec",
    "calibrate",
    "check",
    "compare",
    "evaluate",
    "export_run",
    "init",
    "load",
    "load_config",
    "plan",
    "read",
    "score",
    "split",
    "to_dicts",
    "to_pandas",
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
        "data": ("Corpus", "check_files as check", "read", "split_corpus as split", "to_dicts", "to_pandas", "write"),
        "export": ("ExportSettings", "Exported", "export_run"),
        "extraction": (
            *("Evaluation", "Extractor"),
            *("calibrate_run as calibrate", "evaluate_run as evaluate", "load_run as load"),
        ),
        "metrics": ("Calibration", "Comparison", "Scores", "score"),
        "runs": ("compare_runs as compare",),
        "training": ("Draft", "Plan", "Result", "init", "plan_recipe as plan", "train"),
    },
)


def __getattr__(name: str) -> object:
    """Import a public name on its first use.

    Raises:
        AttributeError: the package has no such name.
        ConfigError: spantune does not run on this system, or a package that the name needs is not installed.
    """
    if name in __all__:
        require_system()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm warns so when a notebook imports it
        return _import(name)
