"""spantune's own JSONL: `{"id", "text", "entities": [{"start", "end", "label", "text", "score"?}], "meta"?}` a line.

Offsets are half-open code points, and an entity's `text` is verified against them, so that a file with offsets of
another kind is refused instead of trained on. Ids are unique; a record without one is called `<stem>-<line>`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from spantune.document import Document, Entity, to_record
from spantune.formats.files import replacing
from spantune.formats.record import Record, misplaced, read_json_lines

_FIELDS = ("id", "text", "entities", "meta")
_ENTITY_FIELDS = ("start", "end", "label", "text", "score")


def claims(sample: dict[str, Any] | str) -> bool:
    """Whether `sample`, an object of the file or its first lines, can only be this format."""
    if isinstance(sample, str):
        return False
    rows = sample.get("entities")
    if isinstance(rows, list) and rows:
        return isinstance(rows[0], dict) and "start" in rows[0]
    return isinstance(rows, list) and "id" in sample and "text" in sample


def read(path: Path, notes: Counter[str]) -> Iterator[Document]:
    """Yield the documents of `path`; `notes` counts what was made, ignored or could not be verified.

    Raises:
        DataError: a field is missing, of the wrong type or at odds with the text, or an id is repeated.
    """
    lines: dict[str, int] = {}
    for record in read_json_lines(path, notes):
        if "id" in record.values:
            name = record.text("id")
        else:
            name = f"{path.stem}-{record.line}"
            notes["id made from the line number"] += 1
        if name in lines:
            raise record.error(f"the id {name!r} is repeated; line {lines[name]} has it too: make ids unique", "id")
        lines[name] = record.line
        text = record.text("text", blank=True)
        entities = tuple(_entity(row, text, notes) for row in record.rows("entities"))
        for field in record.others(_FIELDS):
            notes[f"field {field!r} not read; put it under meta"] += 1
        yield Document(name, text, entities, record.object("meta"))


def write(path: Path, documents: Iterable[Document], notes: Counter[str]) -> None:
    """Write `documents` to `path`, one a line; nothing is left out.

    Raises:
        DataError: the file cannot be written.
    """
    with replacing(path) as file:
        for document in documents:
            file.write(json.dumps(to_record(document), ensure_ascii=False) + "\n")


def _entity(row: Record, text: str, notes: Counter[str]) -> Entity:
    start, end = row.integer("start"), row.integer("end")
    if not 0 <= start < end <= len(text):
        raise row.error(
            f"[{start}, {end}) is empty or outside the text of {len(text)} characters; expected half-open offsets in "
            "code points: mend them",
            "end",
        )
    if "text" not in row.values:
        notes["entity without its text: offsets not verified"] += 1
    elif (surface := row.text("text")) != text[start:end]:
        raise row.error(f"{misplaced(text, start, surface)}; the offsets say {text[start:end]!r}", "text")
    for field in row.others(_ENTITY_FIELDS):
        notes[f"entity field {field!r} not read"] += 1
    return Entity(start, end, row.text("label"), _score(row))


def _score(row: Record) -> float | None:
    if "score" not in row.values:
        return None
    score = row.values["score"]
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise row.error(f"found {score!r}; expected a probability from 0 to 1: mend or remove it", "score")
    return float(score)
