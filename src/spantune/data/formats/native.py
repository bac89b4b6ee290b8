"""spantune's own JSONL: `{"id", "text", "entities": [{"start", "end", "label", "text", "score"?}], "meta"?}` a line.

A JSON array of such objects, as other tools write it, is read too; ids may be numbers. A predictions file of a run also
has the model's `answer`, which only `read_extractions` reads. Offsets are half-open code points. The `text` of an
entity is verified against them, so a file with offsets of another kind is refused, and no model is trained on it. Ids
are unique. A record without an id is called `<stem>-<line>`, or `<stem>-<number>` in an array. Of corrections that
`spantune serve` stored, only the valid ones are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from spantune.core import Document, to_record
from spantune.data.raw import tabular
from spantune.data.raw.corrections import in_force, uncorrected
from spantune.data.raw.document import Item, Options, RawDocument, RawEntity, Sample, each
from spantune.data.raw.json_files import begins_array, parse_line, read_json, read_json_lines, write_json_lines
from spantune.data.raw.json_records import Record, document_id
from spantune.data.raw.plain_rows import plain_rows

_ROW = ("start", "end", "label", "text")
_FIELDS = ("id", "text", "entities", "meta", "answer")


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format; a text without entities does not show that."""
    record = sample.record or {}
    if "tokens" in record and "text" not in record:  # offsets in tokens, as `gliner` reads them
        return False
    rows = record.get("entities")
    return isinstance(rows, list) and bool(rows) and isinstance(rows[0], dict) and "start" in rows[0]


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of `path`; `notes` counts what was made up, such as an id, or ignored.

    Raises:
        DataError: the file is neither JSONL nor an array of objects.
        Indivisible: only a stretch of the file is to be read, and it holds corrections.
    """
    is_array = options.stretch is None and begins_array(path, options.encoding)

    def parse(record: Record) -> RawDocument:
        id = document_id(record, notes) if is_array else None
        return _document(record, id, f"{path.stem}-{record.line}", notes, options)

    if options.stretch is not None:
        return uncorrected(each(read_json_lines(path, notes, options.encoding, options.stretch), parse))
    return in_force(each(read_json(path, notes, options.encoding), parse), notes)


def parse_text_line(text: str, path: Path, line: int, made_id: str, notes: Counter[str]) -> Item:
    """Return the document on one line of JSONL without its annotations; a DataError if the line has none.

    Args:
        text: the line.
        path: the file, for errors.
        line: the number of the line in the file, from 1, for errors.
        made_id: the id of the document if the line states none.
        notes: counts what was made up or ignored.
    """
    options = Options(unannotated=True)
    return next(each([parse_line(text, path, line)], lambda record: _document(record, None, made_id, notes, options)))


def _document(record: Record, id: str | None, made_id: str, notes: Counter[str], options: Options) -> RawDocument:
    """Return the document of `record`. Its id is `id`; if that is None, the id in the record, or else `made_id`."""
    if id is None and record.values.get("id") is not None:
        id = document_id(record, notes)
    elif id is None:
        id = made_id
        notes["id made from the line number"] += 1
    entities = _entities(record, notes, options)
    for field in record.others(_FIELDS):
        notes[f"field {field!r} not read; put it under meta"] += 1
    text = record.text("text", blank=True)
    return RawDocument(id, text, entities, record.path, record.line, record.mapping("meta"))


def _entities(record: Record, notes: Counter[str], options: Options) -> tuple[RawEntity, ...]:
    rows = plain_rows(record, _ROW)
    if rows is not None:
        return tuple(RawEntity(start, end, label, surface, None, field) for start, end, label, surface, field in rows)
    return tuple(tabular.entity(row, notes) for row in record.entities(optional=options.unannotated))


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path`, one on each line. The format can hold everything.

    Raises:
        DataError: the file cannot be written.
    """
    write_json_lines(path, map(to_record, documents))
