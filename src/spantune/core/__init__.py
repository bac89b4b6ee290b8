"""Documents, tasks and recipes, the error tree, and helpers for files, signals and the terminal."""

from __future__ import annotations

from spantune.core import config
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
from spantune.core.files import (
    first_line,
    fsync_path,
    replace_text,
    replacing,
    replacing_path,
    require_folder,
    sha256_of,
)
from spantune.core.lazy import lazy_exports
from spantune.core.signals import Interrupted, Stopped, StopRequest
from spantune.core.task import Label, TaskSpec, first_unknown
from spantune.core.terminal import bar, console, track

__all__ = [
    "Config",
    "ConfigError",
    "DataError",
    "Document",
    "Entity",
    "Interrupted",
    "Keep",
    "Label",
    "ModelError",
    "Normalize",
    "RunError",
    "SpantuneError",
    "StopRequest",
    "Stopped",
    "TaskSpec",
    "bar",
    "config",
    "console",
    "encodable",
    "first_line",
    "first_unknown",
    "fsync_path",
    "half_surrogate",
    "lazy_exports",
    "load_config",
    "nearest",
    "need",
    "parse_config",
    "replace_text",
    "replacing",
    "replacing_path",
    "require_extra",
    "require_folder",
    "sha256_of",
    "to_record",
    "track",
]
