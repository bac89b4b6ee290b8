"""Texts with entities that have no offsets: `{"text", "entities": [{"text": "腹痛", "label": "sym"}]}`, JSON or JSONL.

The text may be called `sentence`. Entities may also be pairs of text and label, or an object of texts by label. They
are anchored in the order in which they are stated (see `anchored`). Ambiguous entities are counted, and a text that
does not occur is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from spantune.core import Document
from spantune.data.raw.anchored import anchored, note_lost_places
from spantune.data.raw.answers import is_stated, stated
from spantune.data.raw.document import Item, Options, RawDocument, Sample, each, with_meta
from spantune.data.raw.json_files import read_json, write_json_lines
from spantune.data.raw.json_records import Record, document_id

_TEXTS = ("text", "sentence")
_FIELDS = ("id", "text", "entities")


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    record = sample.record or {}
    return any(isinstance(record.get(name), str) for name in _TEXTS) and is_stated(record.get("entities"))


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of `path`; one without an id is called `<stem>-<number>`.

    Raises:
        DataError: the file is neither JSONL nor an array of objects.
    """

    def parse(record: Record) -> RawDocument:
        field = next((name for name in _TEXTS if name in record.values), "text")
        text = record.text(field, blank=True)
        value: object = [] if options.unannotated else _value(record)
        entities = anchored(record, text, list(stated(record, value, "entities", notes)), notes)
        name = document_id(record, notes)
        return RawDocument(name, text, entities, path, record.line, record.others((*_FIELDS, field)), is_counted=True)

    return each(read_json(path, notes, options.encoding), parse)


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path`, one on each line; `notes` counts the entities that reading would anchor elsewhere.

    Raises:
        DataError: a meta key is one of the layout's own fields, or the file cannot be written.
    """
    write_json_lines(path, (_record(document, notes) for document in documents))


def _value(record: Record) -> object:
    """Return the list or the object of the entities of a record."""
    is_object = isinstance(record.values.get("entities"), dict)
    return record.required("entities") if is_object else record.items("entities")


def _record(document: Document, notes: Counter[str]) -> dict[str, object]:
    note_lost_places(document, notes)
    notes["score left out"] += sum(entity.score is not None for entity in document.entities)
    rows = [{"text": document.surface(entity), "label": entity.label} for entity in document.entities]
    return with_meta({"id": document.id, "text": document.text, "entities": rows}, document, _FIELDS)
