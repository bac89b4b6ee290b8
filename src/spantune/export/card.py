"""The model card of an export: what it finds, how well, from what it was made, and how it is used without spantune."""

from __future__ import annotations

from pathlib import Path

from spantune.export.source import Source
from spantune.models import PlainLora


def write_merged_card(source: Source, out: Path) -> None:
    """Write `README.md` for merged weights into `out`."""
    (out / "README.md").write_text(f"# {source.folder.path.name}\n", encoding="utf-8")


def write_adapter_card(source: Source, out: Path, base: str, lora: PlainLora) -> None:
    """Write `README.md` for a plain adapter on the model `base` into `out`."""
    (out / "README.md").write_text(f"# {source.folder.path.name} {base} {lora.rank}\n", encoding="utf-8")


def write_spans_card(source: Source, out: Path) -> None:
    """Write `README.md` for merged weights with a head and its loader into `out`."""
    (out / "README.md").write_text(f"# {source.folder.path.name}\n", encoding="utf-8")
