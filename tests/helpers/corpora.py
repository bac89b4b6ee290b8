"""The fixture files of the corpus formats, the entities in them, and small corpus files made in a test."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from spantune.core import Document
from spantune.data import Corpus, formats

FIXTURES = Path(__file__).parents[1] / "fixtures"

# The entities in the first four sentences of every fixture.
CLINIC = [
    [("右肩", "bod"), ("右肩疼痛", "sym")],
    [],
    [("血钾", "ite"), ("螺内酯", "dru")],
    [("皮肤科", "dep"), ("带状疱疹", "dis")],
]


def file_of(folder: Path, name: str, content: str | Sequence[object]) -> Path:
    """Write `content` to the file `name` in `folder`.

    Values are written as a JSON array if the name ends with `.json`, else as one JSON value per line.
    """
    if not isinstance(content, str):
        rows = [json.dumps(value, ensure_ascii=False) for value in content]
        content = "[" + ",\n".join(rows) + "]" if name.endswith(".json") else "".join(f"{row}\n" for row in rows)
    path = folder / name
    path.write_text(content, encoding="utf-8", newline="")
    return path


def spans(documents: Iterable[Document]) -> list[list[tuple[str, int, str]]]:
    """Return (surface, start, label) of every entity, for each document."""
    return [[(document.surface(e), e.start, e.label) for e in document.entities] for document in documents]


def round_trip(documents: Sequence[Document], format: str, name: str) -> tuple[Corpus, dict[str, int]]:
    """Write documents in `format`, read them again, and return them with the notes of the writer.

    If any document has an entity, the format of the file must be recognised too.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        notes = formats.write(path, documents, format)
        if any(document.entities for document in documents):
            assert formats.detect(path) == format
        return formats.read(path, format), notes
