"""CBLUE's CMeEE: a JSON array, or JSONL, of `{"text", "entities": [{"start_idx", "end_idx", "type", "entity"}]}`.

`end_idx` is inclusive and counts from 0, and `entity` must be the text at these offsets; anything else is refused.
Other fields than text and entities become the document's meta, and meta is written as fields.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from spantune.core import Document
from spantune.data.raw.document import Item, Options, RawEntity, Sample, with_meta
from spantune.data.raw.json_files import read_documents, write_json
from spantune.data.raw.json_records import Record

_ENTITY_FIELDS = ("start_idx", "end_idx", "type", "entity")


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    rows = sample.record.get("entities") if sample.record else None
    if not (isinstance(rows, list) and rows and isinstance(rows[0], dict)):
        return False
    return "start_idx" in rows[0] and ("entity" in rows[0] or "type" in rows[0])


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of `path`, with the ids `<stem>-<number>`, counted from 1.

    Raises:
        DataError: the file is neither JSONL nor an array of objects.
    """
    return read_documents(path, notes, options, "text", partial(_entity, notes=notes))


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path`: as JSONL if its name ends in `.jsonl`, else as an array; `notes` counts losses.

    Raises:
        DataError: a meta key is one of the layout's own fields, or the file cannot be written.
    """
    write_json(path, (_record(document, notes) for document in documents))


def _record(document: Document, notes: Counter[str]) -> dict[str, object]:
    rows = [
        {"start_idx": entity.start, "end_idx": entity.end - 1, "type": entity.label, "entity": document.surface(entity)}
        for entity in document.entities
    ]
    notes["id left out"] += 1
    notes["score left out"] += sum(entity.score is not None for entity in document.entities)
    return with_meta({"text": document.text, "entities": rows}, document, ())


def _entity(row: Record, notes: Counter[str]) -> RawEntity:
    start, end = row.integer("start_idx"), row.integer("end_idx")
    row.note_others(_ENTITY_FIELDS, notes)
    return RawEntity(start, end + 1, row.text("type"), row.text("entity"), field=row.place("entity"))
