"""DataTurks's JSONL, which is only read: `{"content", "annotation": [{"label": […], "points": [{"start", "end",
"text"}]}]}` a line.

Ends are inclusive, and the text of a point must stand at its offsets. An annotation with several labels or points gives
an entity for each label of each point.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from spantune.data.raw.document import Item, Options, RawDocument, RawEntity, Sample, each
from spantune.data.raw.json_files import read_json
from spantune.data.raw.json_records import Record, document_id

_FIELDS = ("id", "content", "annotation", "extras", "metadata")


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    record = sample.record or {}
    if not isinstance(record.get("content"), str) or "annotation" not in record:
        return False
    rows = record["annotation"]
    if not rows:
        return rows in (None, []) and ("extras" in record or "metadata" in record)
    return isinstance(rows, list) and isinstance(rows[0], dict) and "points" in rows[0]


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of `path`; one without an id is called `<stem>-<number>`.

    A document without annotation has no entities.

    Raises:
        DataError: the file is neither JSONL nor an array of objects.
    """

    def parse(record: Record) -> RawDocument:
        text = record.text("content", blank=True)
        if record.values.get("annotation") is None:
            notes["document without annotation: read as one without entities"] += 1
            entities: tuple[RawEntity, ...] = ()
        else:
            entities = tuple(entity for row in record.rows("annotation") for entity in _entities(row, notes))
        for field in record.others(_FIELDS):
            notes[f"field {field!r} not read"] += 1
        return RawDocument(document_id(record, notes), text, entities, path, record.line)

    return each(read_json(path, notes, options.encoding), parse)


def _entities(row: Record, notes: Counter[str]) -> Iterator[RawEntity]:
    labels = [row.cells("label", [label], "[label]").text("[0]") for label in row.items("label")]
    if not labels:
        notes["annotation without a label left out"] += 1
    for point in row.rows("points"):
        start, last = point.integer("start"), point.integer("end")
        surface = point.text("text") if "text" in point.values else None
        for label in labels:
            yield RawEntity(start, last + 1, label, surface, field=point.place("text"))
