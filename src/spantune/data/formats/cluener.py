"""CLUENER's JSONL: `{"text", "label": {"name": {"叶老桂": [[9, 11]]}, …}}`, from label to surface to its places.

Ends are inclusive, and each surface must stand at its places. Other fields than text and label become the document's
meta, and meta is written as fields. The texts of the test set have no `label`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from spantune.core import Document
from spantune.data.raw.document import Item, Options, RawDocument, RawEntity, Sample, each, with_meta
from spantune.data.raw.json_files import read_json, write_json_lines
from spantune.data.raw.json_records import Record, document_id

_FIELDS = ("id", "text", "label")


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    record = sample.record or {}
    labels = record.get("label")
    if not isinstance(record.get("text"), str) or not isinstance(labels, dict):
        return False
    places = [rows for surfaces in labels.values() if isinstance(surfaces, dict) for rows in surfaces.values()]
    return all(isinstance(surfaces, dict) for surfaces in labels.values()) and all(
        isinstance(rows, list) for rows in places
    )


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of `path`; one without an id is called `<stem>-<number>`.

    Raises:
        DataError: the file is neither JSONL nor an array of objects.
    """

    def parse(record: Record) -> RawDocument:
        text = record.text("text", blank=True)
        without = options.unannotated and "label" not in record.values
        entities = () if without else tuple(_entities(record))
        name = document_id(record, notes)
        return RawDocument(name, text, entities, path, record.line, record.others(_FIELDS))

    return each(read_json(path, notes, options.encoding), parse)


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path`, one on each line.

    Raises:
        DataError: a meta key is one of the layout's own fields, or the file cannot be written.
    """
    write_json_lines(path, (_record(document, notes) for document in documents))


def _entities(record: Record) -> Iterator[RawEntity]:
    labels = record.at("label", record.required("label"))
    for label in labels.values:
        surfaces = labels.inner(label)
        for surface in surfaces.values:
            for index, place in enumerate(surfaces.items(surface)):
                cells = surfaces.cells(f"{surface}[{index}]", place, "[start, last]")
                start, last = cells.integer("[0]"), cells.integer("[1]")
                yield RawEntity(start, last + 1, label, surface, field=cells.place(""))


def _record(document: Document, notes: Counter[str]) -> dict[str, object]:
    labels: dict[str, dict[str, list[list[int]]]] = {}
    for entity in document.entities:
        places = labels.setdefault(entity.label, {}).setdefault(document.surface(entity), [])
        places.append([entity.start, entity.end - 1])
    notes["score left out"] += sum(entity.score is not None for entity in document.entities)
    return with_meta({"id": document.id, "text": document.text, "label": labels}, document, _FIELDS)
