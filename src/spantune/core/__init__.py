"""Documents, tasks and recipes, the error tree, and helpers for files, signals and the terminal."""

from __future__ import annotations

from spantune.core import config
from spantune.core.anchoring import Anchors, occurrences
from spantune.core.config import Config, Keep, Normalize, load_config, parse_config
from spantune.core.document import Document, Entity, encodable, half_surrogate, to_record
from spantune.core.errors import (
    ConfigError,
    DataError,
    ModelError,
    RunError,
    SpantuneError,
    nearest,
    need,
    require_extra,
)
from spantune.core.extraction import (
    Extraction,
    Prediction,
    Problem,
    ProblemKind,
    Status,
    as_extraction,
    from_document,
    from_prediction_record,
    to_document,
    to_prediction_record,
)
from spantune.core.files import (
    Locked,
    file_lock,
    first_line,
    fsync_path,
    replace_text,
    replacing,
    replacing_path,
    require_folder,
    sha256_of,
)
from spantune.core.foreign import foreign
from spantune.core.json_text import non_finite, to_json
from spantune.core.lazy import lazy_exports
from spantune.core.signals import Interrupted, Stopped, StopRequest
from spantune.core.task import Label, TaskSpec, first_unknown
from spantune.core.terminal import bar, console, track

__all__ = [
    "Anchors",
    "Config",
    "ConfigError",
    "DataError",
    "Document",
    "Entity",
    "Extraction",
    "Interrupted",
    "Keep",
    "Label",
    "Locked",
    "ModelError",
    "Normalize",
    "Prediction",
    "Problem",
    "ProblemKind",
    "RunError",
    "SpantuneError",
    "Status",
    "StopRequest",
    "Stopped",
    "TaskSpec",
    "as_extraction",
    "bar",
    "config",
    "console",
    "encodable",
    "file_lock",
    "first_line",
    "first_unknown",
    "foreign",
    "from_document",
    "from_prediction_record",
    "fsync_path",
    "half_surrogate",
    "lazy_exports",
    "load_config",
    "nearest",
    "need",
    "non_finite",
    "occurrences",
    "parse_config",
    "replace_text",
    "replacing",
    "replacing_path",
    "require_extra",
    "require_folder",
    "sha256_of",
    "to_document",
    "to_json",
    "to_prediction_record",
    "to_record",
    "track",
]
