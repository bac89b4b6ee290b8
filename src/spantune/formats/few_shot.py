"""`few_shot_ner_sft`'s JSONL: `{"text", "entities": [{"start_idx", "end_idx", "entity_text", "entity_label"}], …}`.

In the published data every `end_idx` is one too small, so an entity is anchored on `start_idx` and the length of its
text, which must be what stands there; `end_idx` only has to fit one of three rules, and which one is noted. What
fits none is refused. Fields beside text and entities are the document's meta, both ways.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from spantune.document import Document, Entity
from spantune.errors import DataError
from spantune.formats.files import replacing
from spantune.formats.record import Record, misplaced, read_json_lines

INCLUSIVE = "end_idx inclusive"
HALF_OPEN = "end_idx half-open, mended"
OFF_BY_ONE = "end_idx one too small, mended"
MIXED = "end_idx against the file's main rule"

_RULES = {-1: INCLUSIVE, 0: HALF_OPEN, -2: OFF_BY_ONE}
_FIELDS = ("text", "entities")
_ENTITY_FIELDS = ("start_idx", "end_idx", "entity_text", "entity_label")


def claims(sample: dict[str, Any] | str) -> bool:
    """Whether `sample`, an object of the file or its first lines, can only be this format."""
    rows = sample.get("entities") if isinstance(sample, dict) else None
    if not (isinstance(rows, list) and rows and isinstance(rows[0], dict)):
        return False
    return "entity_text" in rows[0] or "entity_label" in rows[0]


def read(path: Path, notes: Counter[str]) -> Iterator[Document]:
    """Yield the documents of `path`, called `<stem>-<line>`; at the end `notes` says which rule `end_idx` follows.

    Raises:
        DataError: a field is missing or of the wrong type, or an entity is not where it claims to be.
    """
    rules: Counter[str] = Counter()
    for record in read_json_lines(path, notes):
        text = record.text("text", blank=True)
        entities = tuple(_entity(row, text, rules, notes) for row in record.rows("entities"))
        yield Document(f"{path.stem}-{record.line}", text, entities, record.others(_FIELDS))
    notes.update(rules)
    if len(rules) > 1:
        notes[MIXED] = rules.total() - max(rules.values())


def write(path: Path, documents: Iterable[Document], notes: Counter[str]) -> None:
    """Write `documents` to `path` with inclusive `end_idx`; `notes` counts what the layout has no place for.

    Raises:
        DataError: a meta key is one of the layout's own fields, or the file cannot be written.
    """
    with replacing(path) as file:
        for document in documents:
            file.write(json.dumps(_record(document, notes), ensure_ascii=False) + "\n")


def _record(document: Document, notes: Counter[str]) -> dict[str, Any]:
    if taken := sorted(set(document.meta) & set(_FIELDS)):
        raise DataError(f"document {document.id!r}: the layout uses the meta key {taken[0]!r}; rename it")
    rows = [
        {
            "start_idx": entity.start,
            "end_idx": entity.end - 1,
            "entity_text": document.surface(entity),
            "entity_label": entity.label,
        }
        for entity in document.entities
    ]
    notes["id left out"] += 1
    notes["score left out"] += sum(entity.score is not None for entity in document.entities)
    return {"text": document.text, "entities": rows, **document.meta}


def _entity(row: Record, text: str, rules: Counter[str], notes: Counter[str]) -> Entity:
    start, end = row.integer("start_idx"), row.integer("end_idx")
    surface, label = row.text("entity_text"), row.text("entity_label")
    length = len(surface)
    if start < 0 or text[start : start + length] != surface:
        raise row.error(misplaced(text, start, surface), "entity_text")
    rule = _RULES.get(end - start - length)
    if rule is None:
        raise row.error(
            f"found {end} for {length} characters from {start}; expected {start + length - 1} (inclusive), "
            f"{start + length} (half-open) or {start + length - 2} (the published data's): mend it",
            "end_idx",
        )
    rules[rule] += 1
    for field in row.others(_ENTITY_FIELDS):
        notes[f"entity field {field!r} not read"] += 1
    return Entity(start, start + length, label)
