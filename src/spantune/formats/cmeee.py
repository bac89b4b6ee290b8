"""CBLUE's CMeEE: a JSON array, or JSONL, of `{"text", "entities": [{"start_idx", "end_idx", "type", "entity"}]}`.

`end_idx` is inclusive and counts from 0, and `entity` must be what stands there; anything else is refused. Fields
beside text and entities are the document's meta, both ways. An array is held in memory while it is read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from spantune.document import Document, Entity
from spantune.errors import DataError
from spantune.formats.files import read_lines, replacing
from spantune.formats.record import Record, misplaced, read_json_array, read_json_lines

_FIELDS = ("text", "entities")
_ENTITY_FIELDS = ("start_idx", "end_idx", "type", "entity")


def claims(sample: dict[str, Any] | str) -> bool:
    """Whether `sample`, an object of the file or its first lines, can only be this format."""
    rows = sample.get("entities") if isinstance(sample, dict) else None
    if not (isinstance(rows, list) and rows and isinstance(rows[0], dict)):
        return False
    return "start_idx" in rows[0] and ("entity" in rows[0] or "type" in rows[0])


def read(path: Path, notes: Counter[str]) -> Iterator[Document]:
    """Yield the documents of `path`, called `<stem>-<number>`, counted from 1 (`<stem>-<line>` in JSONL).

    Raises:
        DataError: a field is missing or of the wrong type, or an entity is not where it claims to be.
    """
    _, first = next(read_lines(path, Counter()))
    is_array = first.lstrip().startswith("[")
    for record in (read_json_array if is_array else read_json_lines)(path, notes):
        text = record.text("text", blank=True)
        entities = tuple(_entity(row, text, notes) for row in record.rows("entities"))
        number = record.number if is_array else record.line
        yield Document(f"{path.stem}-{number}", text, entities, record.others(_FIELDS))


def write(path: Path, documents: Iterable[Document], notes: Counter[str]) -> None:
    """Write `documents` to `path`: JSONL when its name ends so, else an array; `notes` counts what has no place.

    Raises:
        DataError: a meta key is one of the layout's own fields, or the file cannot be written.
    """
    opening, between, closing = ("", "\n", "\n") if path.suffix.lower() == ".jsonl" else ("[\n", ",\n", "\n]\n")
    with replacing(path) as file:
        before = opening
        for document in documents:
            file.write(before + json.dumps(_record(document, notes), ensure_ascii=False))
            before = between
        file.write(closing if before == between else opening + closing)


def _record(document: Document, notes: Counter[str]) -> dict[str, Any]:
    if taken := sorted(set(document.meta) & set(_FIELDS)):
        raise DataError(f"document {document.id!r}: the layout uses the meta key {taken[0]!r}; rename it")
    rows = [
        {"start_idx": entity.start, "end_idx": entity.end - 1, "type": entity.label, "entity": document.surface(entity)}
        for entity in document.entities
    ]
    notes["id left out"] += 1
    notes["score left out"] += sum(entity.score is not None for entity in document.entities)
    return {"text": document.text, "entities": rows, **document.meta}


def _entity(row: Record, text: str, notes: Counter[str]) -> Entity:
    start, end = row.integer("start_idx"), row.integer("end_idx")
    label, surface = row.text("type"), row.text("entity")
    if start < 0 or text[start : start + len(surface)] != surface:
        raise row.error(misplaced(text, start, surface), "entity")
    if end != start + len(surface) - 1:
        raise row.error(
            f"found {end} for {len(surface)} characters from {start}; expected {start + len(surface) - 1} (the last "
            "character, inclusive): mend it",
            "end_idx",
        )
    for field in row.others(_ENTITY_FIELDS):
        notes[f"entity field {field!r} not read"] += 1
    return Entity(start, end + 1, label)
