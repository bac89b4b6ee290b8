"""spantune's own JSONL: `{"id", "text", "entities": [{"start", "end", "label", "text", "score"?}], "meta"?}` a line.

A predictions file of a run has the model's `answer` too, which only `read_extractions` reads. Offsets are half-open
code points, and an entity's `text` is verified against them, so that a file with offsets of
another kind is refused instead of trained on. Ids are unique; a record without one is called `<stem>-<line>`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from spantune.core import Document, half_surrogate, to_record
from spantune.data.raw import tabular
from spantune.data.raw.document import Item, Options, RawDocument, Sample, SurrogateError, each
from spantune.data.raw.json_records import Record, read_json_lines, to_json, write_json_lines

_FIELDS = ("id", "text", "entities", "meta", "answer")


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    record = sample.record or {}
    rows = record.get("entities")
    if isinstance(rows, list) and rows:
        return isinstance(rows[0], dict) and "start" in rows[0]
    return isinstance(rows, list) and "id" in record and "text" in record and "relations" not in record  # doccano's


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of `path`; `notes` counts what was made or ignored."""

    def parse(record: Record) -> RawDocument:
        if "id" in record.values:
            name = record.text("id")
        else:
            name = f"{path.stem}-{record.line}"
            notes["id made from the line number"] += 1
        entities = tuple(tabular.entity(row, notes) for row in record.entities(optional=options.unannotated))
        for field in record.others(_FIELDS):
            notes[f"field {field!r} not read; put it under meta"] += 1
        text, meta = record.text("text", blank=True), record.mapping("meta")
        if half_surrogate(to_json(meta)) is not None:
            message = "half of a surrogate pair, which is not text; mend or remove it"
            raise SurrogateError(message, path=path, line=record.line, field="meta")
        return RawDocument(name, text, entities, path, record.line, meta)

    return each(read_json_lines(path, notes), parse)


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path`, one a line; nothing is left out.

    Raises:
        DataError: the file cannot be written.
    """
    write_json_lines(path, map(to_record, documents))
