"""CCKS' clinical records (Yidu-S4K), JSONL of `{"originalText", "entities": [{"start_pos", "end_pos", "label_type"}]}`.

Offsets count from 0, and `end_pos` is exclusive, as in the published example of CCKS 2020. The texts of entities are
not in the file, so offsets cannot be verified. Other fields than originalText and entities become the document's meta,
and meta is written as fields.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from spantune.core import Document
from spantune.data.raw.document import Item, Options, RawEntity, Sample, with_meta
from spantune.data.raw.json_files import read_documents, write_json_lines
from spantune.data.raw.json_records import Record

_ENTITY_FIELDS = ("start_pos", "end_pos", "label_type")
_OVERLAP = "overlap"  # a field of some years; it is counted as not read unless it is 0


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    record = sample.record or {}
    rows = record.get("entities")
    return isinstance(record.get("originalText"), str) and (rows is None or isinstance(rows, list))


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of `path`, with the ids `<stem>-<number>`, counted from 1.

    Raises:
        DataError: the file is neither JSONL nor an array of objects.
    """
    return read_documents(path, notes, options, "originalText", partial(_entity, notes=notes))


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path`, one on each line; `notes` counts losses.

    Raises:
        DataError: a meta key is one of the layout's own fields, or the file cannot be written.
    """
    write_json_lines(path, (_record(document, notes) for document in documents))


def _entity(row: Record, notes: Counter[str]) -> RawEntity:
    start, end = row.integer("start_pos"), row.integer("end_pos")
    known = _ENTITY_FIELDS if row.values.get(_OVERLAP) else (*_ENTITY_FIELDS, _OVERLAP)
    row.note_others(known, notes)
    return RawEntity(start, end, row.text("label_type"), field=row.place("end_pos"))


def _record(document: Document, notes: Counter[str]) -> dict[str, object]:
    notes["id left out"] += 1
    notes["score left out"] += sum(entity.score is not None for entity in document.entities)
    rows = [
        {"label_type": entity.label, _OVERLAP: 0, "start_pos": entity.start, "end_pos": entity.end}
        for entity in document.entities
    ]
    return with_meta({"originalText": document.text, "entities": rows}, document, ())
