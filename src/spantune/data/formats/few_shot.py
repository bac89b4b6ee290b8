"""`few_shot_ner_sft`'s JSONL: `{"text", "entities": [{"start_idx", "end_idx", "entity_text", "entity_label"}], …}`.

A JSON array of such objects is read too. In the published data every `end_idx` is one too small. An entity is therefore
anchored by `start_idx` and the length of its text, which must stand there. `end_idx` only has to fit one of three
rules; if this is not the rule of the layout, that is noted. Other fields than text and entities become the document's
meta, and meta is written as fields.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from spantune.core import Document
from spantune.data.raw.document import Defect, Item, Options, RawDocument, RawEntity, Sample, each, with_meta
from spantune.data.raw.json_files import begins_array, read_json_array, read_json_lines, write_json_lines
from spantune.data.raw.json_records import Record
from spantune.data.raw.plain_rows import plain_rows
from spantune.data.rules import Rule

HALF_OPEN = Defect(Rule.END_HALF_OPEN, "end_idx half-open, mended", tolerated=True)
OFF_BY_ONE = Defect(Rule.END_ONE_TOO_SMALL, "end_idx one too small, mended", tolerated=True)

_RULES = {-1: None, 0: HALF_OPEN, -2: OFF_BY_ONE}
_FIELDS = ("text", "entities")
_ROW = ("start_idx", "end_idx", "entity_label", "entity_text")


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    rows = sample.record.get("entities") if sample.record else None
    if not (isinstance(rows, list) and rows and isinstance(rows[0], dict)):
        return False
    return "entity_text" in rows[0] or "entity_label" in rows[0]


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of `path`, with the ids `<stem>-<line>`, or `<stem>-<number>` in an array."""
    is_array = options.stretch is None and begins_array(path, options.encoding)

    def parse(record: Record) -> RawDocument:
        entities = _entities(record, notes)
        text = record.text("text", blank=True)
        name = f"{path.stem}-{record.number if is_array else record.line}"
        return RawDocument(name, text, entities, path, record.line, record.others(_FIELDS))

    if is_array:
        return each(read_json_array(path, notes, options.encoding), parse)
    return each(read_json_lines(path, notes, options.encoding, options.stretch), parse)


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path` with inclusive `end_idx`; `notes` counts what the format cannot hold.

    Raises:
        DataError: a meta key is one of the layout's own fields, or the file cannot be written.
    """
    write_json_lines(path, (_record(document, notes) for document in documents))


def _record(document: Document, notes: Counter[str]) -> dict[str, object]:
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
    return with_meta({"text": document.text, "entities": rows}, document, _FIELDS)


def _entities(record: Record, notes: Counter[str]) -> tuple[RawEntity, ...]:
    rows = plain_rows(record, _ROW)
    if rows is not None:
        return tuple(_entity(*row) for row in rows)
    return tuple(_stated(row, notes) for row in record.rows("entities"))


def _stated(row: Record, notes: Counter[str]) -> RawEntity:
    start, end = row.integer("start_idx"), row.integer("end_idx")
    surface, label = row.text("entity_text"), row.text("entity_label")
    row.note_others(_ROW, notes)
    return _entity(start, end, label, surface, row.place("entity_text"))


def _entity(start: int, end: int, label: str, surface: str, field: str) -> RawEntity:
    length = len(surface)
    rule = end - start - length
    if rule in _RULES:
        end = start + length - 1
    return RawEntity(start, end + 1, label, surface, None, field, None, _RULES.get(rule))
