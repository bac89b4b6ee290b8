"""The values that every layer passes on, the error tree, and the few things that all need of the operating system."""

from __future__ import annotations

from spantune.core import config
from spantune.core.config import Config, Keep, Normalize, load_config, parse_config
from spantune.core.document import Document, Entity, encodable, half_surrogate, to_record
from spantune.core.errors import ConfigError, DataError, ModelError, RunError, SpantuneError, nearest, need
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
from spantune.core.files import replacing, replacing_path, require_folder, sha256_of
from spantune.core.lazy import lazy_exports
from spantune.core.signals import Interrupted, Stopped, StopRequest
from spantune.core.task import Label, TaskSpec
from spantune.core.terminal import bar, console, track

__all__ = [
    "Config",
    "ConfigError",
    "DataError",
    "Document",
    "Entity",
    "Extraction",
    "Interrupted",
    "Keep",
    "Label",
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
    "from_document",
    "from_prediction_record",
    "half_surrogate",
    "lazy_exports",
    "load_config",
    "nearest",
    "need",
    "parse_config",
    "replacing",
    "replacing_path",
    "require_folder",
    "sha256_of",
    "to_document",
    "to_prediction_record",
    "to_record",
    "track",
]
