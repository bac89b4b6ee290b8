"""Exports of a run that other engines load: merged weights, a plain adapter, GGUF, and a loader for span heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spantune.core import lazy_exports

if TYPE_CHECKING:
    from spantune.export.job import Exported, export_run
    from spantune.export.source import ExportSettings
    from spantune.export.verify import Verified

__all__ = ["ExportSettings", "Exported", "Verified", "export_run"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "job": ("Exported", "export_run"),
        "source": ("ExportSettings",),
        "verify": ("Verified",),
    },
)
