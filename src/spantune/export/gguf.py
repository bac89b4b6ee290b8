"""To come."""

from __future__ import annotations

from pathlib import Path

from spantune.export.source import Source
from spantune.export.verify import Written


def write_gguf(source: Source, out: Path) -> Written:
    """Write it."""
    raise NotImplementedError
