"""doccano's JSONL: `{"text", "label": [[start, end, "label"], …]}`, or entities as objects, with relations.

Texts are called `text` or `data`. Spans are called `label`, `labels` or `entities`, or `annotations` in exports before
version 1.1 (objects with `start_offset` and `end_offset`); they are half-open and count code points. The file does not
state the text of a span, so spans cannot be verified; this is noted. The labels of `annotations` may be numbers. All
other fields are kept in the document's meta and written back. In a document with relations, entities keep the ids that
the relations name. Text classification is refused.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path

from spantune.core import DataError, Document
from spantune.data.raw.document import (
    Item,
    Options,
    RawDocument,
    RawEntity,
    Sample,
    each,
    meta_error,
    unwritten_meta,
    with_rows,
)
from spantune.data.raw.json_files import read_json, write_json_lines
from spantune.data.raw.json_records import Record
from spantune.data.raw.tags import are_tags_of

NAME = "doccano"

_TEXTS = ("text", "data")
_OBJECTS = ("entities", "annotations")
_TRIPLES = ("label", "labels")
_NUMBER = re.compile("0|[1-9][0-9]{0,17}")
_ENTITY_FIELDS = ("id", "label", "start_offset", "end_offset")


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format. Text classification is claimed too, so that reading can refuse it."""
    record = sample.record or {}
    if not any(isinstance(record.get(name), str) for name in _TEXTS):
        return False
    old_rows = record.get("annotations")
    if isinstance(old_rows, list) and "entities" not in record:
        return all(isinstance(row, dict) and "label" in row for row in old_rows)
    rows = record.get("entities")
    if isinstance(rows, list) and rows:
        return isinstance(rows[0], dict) and "start_offset" in rows[0]
    if isinstance(rows, list):
        return isinstance(record.get("relations"), list)
    spans = next((record[name] for name in _TRIPLES if name in record), None)
    if any(are_tags_of(record.get(name), spans) for name in _TEXTS):  # there is one tag for each character
        return False
    return isinstance(spans, list) and all(isinstance(span, list | str) for span in spans)


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of `path`; one without an id is called `<stem>-<line>`, which `notes` counts.

    Raises:
        DataError: the file is neither JSONL nor an array of objects.
    """
    return each(read_json(path, notes, options.encoding), lambda record: _document(record, notes))


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path` as JSONL, with triples, or with entities that have ids if there are relations.

    Raises:
        DataError: a meta key is one of the layout's own fields, or the file cannot be written.
    """
    write_json_lines(path, (_record(document, notes) for document in documents))


def _document(record: Record, notes: Counter[str]) -> RawDocument:
    text = next((name for name in _TEXTS if name in record.values), "text")
    given = [name for name in (*_OBJECTS, *_TRIPLES) if name in record.values]
    if len(given) > 1:
        raise record.error(
            f"found spans under {' and '.join(given)}; expected one of them: remove the others", given[1]
        )
    spans = given[0] if given else "label"
    meta = record.others((text, spans, "id"))
    if spans in _OBJECTS:
        rows = record.rows(spans)
        entities = tuple(_entity(row, notes) for row in rows)
        if meta.get("relations"):
            ids = [{"id": row.integer("id")} for row in rows]
            meta[NAME] = {"entities": [_row(entity) | id for entity, id in zip(entities, ids, strict=True)]}
    else:
        entities = tuple(_triple(record, f"{spans}[{index}]", span) for index, span in enumerate(_spans(record, spans)))
    name = _id(record, notes)
    return RawDocument(name, record.text(text, blank=True), entities, record.path, record.line, meta)


def _id(record: Record, notes: Counter[str]) -> str:
    if "id" not in record.values:
        notes["id made from the line number"] += 1
        return f"{record.path.stem}-{record.line}"
    value = record.values["id"]
    return record.text("id") if isinstance(value, str) else str(record.integer("id"))


def _spans(record: Record, field: str) -> list[object]:
    spans = record.values.get(field)
    text = next((record.values[name] for name in _TEXTS if isinstance(record.values.get(name), str)), None)
    if isinstance(text, str) and isinstance(spans, list) and are_tags_of(spans, spans):
        raise record.error(
            f"found {len(spans)} tags, and the text has {len(text)} characters; expected a tag for each, or spans "
            "[start, end, label]: mend the record",
            field,
        )
    if isinstance(spans, str) or (isinstance(spans, list) and any(isinstance(span, str) for span in spans)):
        raise record.error(
            f"found {json.dumps(spans, ensure_ascii=False)[:60]}: labels of a whole text, as text classification has; "
            "expected spans [start, end, label]: export a sequence labelling project",
            field,
        )
    if not isinstance(spans, list):
        found = f"found {json.dumps(spans)[:60]}" if field in record.values else "the field is missing"
        fields = ", ".join(record.values) or "none"
        raise record.error(
            f"{found}; expected a list of [start, end, label] ([] for a text without entities): mend it; fields found: "
            f"{fields}",
            field,
        )
    return spans


def _triple(record: Record, place: str, span: object) -> RawEntity:
    """Return the entity of the triple `span`, which is at `place` in the record.

    Raises:
        DataError: it is no triple.
    """
    if not isinstance(span, list) or len(span) != 3:
        raise record.error(f"found {json.dumps(span)[:60]}; expected [start, end, label]: mend it", place)
    values = Record(
        dict(zip(("[0]", "[1]", "[2]"), span, strict=True)),
        record.path,
        record.line,
        record.number,
        record.place(place),
    )
    return RawEntity(values.integer("[0]"), values.integer("[1]"), values.text("[2]"), field=record.place(place))


def _entity(row: Record, notes: Counter[str]) -> RawEntity:
    """Return the entity of an object in `entities` or `annotations`. In the latter, a label may be a number.

    Raises:
        DataError: the object has no offsets, as in text classification, or no label.
    """
    if not {"start_offset", "end_offset"} & row.values.keys():
        raise row.error(
            f"found {json.dumps(row.values, ensure_ascii=False)[:60]}, a label of the whole text; expected "
            "start_offset and end_offset: export a sequence labelling project"
        )
    row.note_others(_ENTITY_FIELDS, notes)
    start, end, label = row.integer("start_offset"), row.integer("end_offset"), row.values.get("label")
    if "annotations[" in row.inside and isinstance(label, int) and not isinstance(label, bool):
        notes["label is a number, taken as text"] += 1
        name = str(label)
    else:
        name = row.text("label")
    return RawEntity(start, end, name, field=row.place("end_offset"))


def _row(entity: RawEntity) -> dict[str, object]:
    return {"start": entity.start, "end": entity.end, "label": entity.label}


def _record(document: Document, notes: Counter[str]) -> dict[str, object]:
    if taken := sorted(set(document.meta) & {"id", "text", *_OBJECTS, *_TRIPLES}):
        raise DataError(f"document {document.id!r}: the layout uses the meta key {taken[0]!r}; rename it")
    notes["score left out"] += sum(entity.score is not None for entity in document.entities)
    notes["meta left out"] += unwritten_meta(document, NAME, ("entities",))
    id = int(document.id) if _NUMBER.fullmatch(document.id) else document.id
    record: dict[str, object] = {"id": id, "text": document.text}
    others = {name: value for name, value in document.meta.items() if name != NAME}
    if stated := _relations(document):
        entities = _entities(document)
        ids = {entity["id"] for entity in entities}
        relations = [relation for relation in stated if {relation["from_id"], relation["to_id"]} <= ids]
        notes["relation left out: its entity is gone"] += len(stated) - len(relations)
        return {**record, "entities": entities, **others, "relations": relations}
    return {**record, "label": [[entity.start, entity.end, entity.label] for entity in document.entities], **others}


def _entities(document: Document) -> list[dict[str, object]]:
    """Return the entities as objects with their stored ids; entities without one get the next free numbers."""
    pairs, gone = with_rows(document, NAME)
    used = [row["id"] for row in (*(row for _, row in pairs if row), *gone)]
    fresh = count(max((id for id in used if isinstance(id, int)), default=-1) + 1)
    return [
        {
            "id": row["id"] if row else next(fresh),
            "label": entity.label,
            "start_offset": entity.start,
            "end_offset": entity.end,
        }
        for entity, row in pairs
    ]


def _relations(document: Document) -> list[Mapping[str, object]]:
    relations = document.meta.get("relations", [])
    if isinstance(relations, list) and all(isinstance(relation, dict) for relation in relations):
        ends = [relation.get(name) for relation in relations for name in ("from_id", "to_id")]
        if all(isinstance(end, int | str) for end in ends):
            return relations
    raise meta_error(document, "relations", f"found {relations!r:.60}; expected objects with from_id and to_id")
