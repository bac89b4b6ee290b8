"""The model card of an export: what it finds, how well, from what it was made, and how it is used without spantune."""

from __future__ import annotations

from pathlib import Path

from spantune.export.source import Source


def write_merged_card(source: Source, out: Path) -> None:
    """Write `README.md` for merged weights into `out`."""
    (out / "README.md").write_text(f"# {source.folder.path.name}\n", encoding="utf-8")
