"""spantune's own JSONL: `{"id", "text", "entities": [{"start", "end", "label", "text", "score"?}], "meta"?}` a line.

A JSON array of such objects, as other tools write them, is read too; its ids may be numbers. A predictions file of
a run has the model's `answer` too, which only `read_extractions` reads. Offsets are half-open code points, and an
entity's `text` is verified against them, so that a file with offsets of another kind is refused instead of trained on.
Ids are unique; a record without one is called `<stem>-<line>`, in an array `<stem>-<number>`. Of corrections that
`spantune serve` stored, those in force are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from spantune.core import Document, to_record
from spantune.data.raw import tabular
from spantune.data.raw.corrections import in_force
from spantune.data.raw.document import Item, Options, RawDocument, Sample, each
from spantune.data.raw.json_records import Record, begins_array, document_id, read_json, write_json_lines

_FIELDS = ("id", "text", "entities", "meta", "answer")


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format; a text without entities does not show it."""
    rows = sample.record.get("entities") if sample.record else None
    return isinstance(rows, list) and bool(rows) and isinstance(rows[0], dict) and "start" in rows[0]


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of `path`; `notes` counts what was made or ignored.

    Raises:
        DataError: the file is neither JSONL nor an array of objects.
    """
    is_array = begins_array(path, options.encoding)

    def parse(record: Record) -> RawDocument:
        if is_array:
            name = document_id(record, notes)
        elif "id" in record.values:
            name = record.text("id")
        else:
            name = f"{path.stem}-{record.line}"
            notes["id made from the line number"] += 1
        entities = tuple(tabular.entity(row, notes) for row in record.entities(optional=options.unannotated))
        for field in record.others(_FIELDS):
            notes[f"field {field!r} not read; put it under meta"] += 1
        text = record.text("text", blank=True)
        return RawDocument(name, text, entities, path, record.line, record.mapping("meta"))

    return in_force(each(read_json(path, notes, options.encoding), parse), notes)


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path`, one a line; nothing is left out.

    Raises:
        DataError: the file cannot be written.
    """
    write_json_lines(path, map(to_record, documents))
