"""BioC as JSON: a collection of documents, an array of collections, or a document a line as PubTator's service sends.

A document has passages, or passages of sentences, each with `offset`, `text` and `annotations`. An annotation has
`text`, `infons` and `locations`. A location is read relative to its passage, and the text of the annotation must stand
there. The label is the infon `type`, or the one that the option `column` names. The identifiers are kept in the
document's meta and written back; relations are not read. A file that is not JSON lines is held in memory as a whole.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from spantune.core import DataError, Document, replacing, to_json
from spantune.data.raw.document import (
    SEVERAL_PARTS,
    Item,
    Options,
    RawDocument,
    RawEntity,
    Sample,
    each,
    unwritten_meta,
    with_rows,
)
from spantune.data.raw.json_files import read_json_lines, read_json_value
from spantune.data.raw.json_records import Record, document_id

NAME = "bioc"

_GAPS = range(3)  # a gap between passages of so many characters is kept as blanks; a larger one is text left out
_COLLECTION = re.compile(rb'\s*[\[{]\s*(\{\s*)?"(source|date|key|infons|version|bioctype|documents|PubTator3)"\s*:')


@dataclass(frozen=True, slots=True)
class _Unit:
    """A passage or a sentence: its record, its offset as the file counts, and where it begins in the document's text.

    `is_inner` is True for a sentence whose passage states the whole text itself.
    """

    record: Record
    offset: int
    start: int
    text: str
    is_inner: bool = False


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    if sample.record is not None:
        passages = sample.record.get("passages")
        return isinstance(passages, list) and all(isinstance(row, dict) and "offset" in row for row in passages[:1])
    return bool(_COLLECTION.match(sample.head)) and b'"passages"' in sample.head and b'"offset"' in sample.head


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of `path`, with their `id` as ids.

    Raises:
        DataError: the file is not BioC.
    """
    return each(_records(path, notes, options.encoding), lambda record: _document(record, notes, options))


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path` as one collection, each as one passage at offset 0.

    Raises:
        DataError: meta is not as the reader stores it, or the file cannot be written.
    """
    head = {"source": "spantune", "date": "", "key": "", "infons": {}}
    with replacing(path) as file:
        file.write(to_json(head)[:-1] + ', "documents": [')
        for number, document in enumerate(documents):
            file.write((",\n" if number else "\n") + to_json(_written(document, notes)))
        file.write("\n]}\n")


def _records(path: Path, notes: Counter[str], encoding: str | None) -> Iterator[Record | DataError]:
    """Yield the documents of one collection, of several, or of lines."""
    line_notes: Counter[str] = Counter()
    if lines := list(_line_documents(path, line_notes, encoding)):
        notes.update(line_notes)
        yield from lines
        return
    value = read_json_value(path, notes, encoding)
    top = Record({"collections": value if isinstance(value, list) else [value]}, path, 1)
    number = 0
    for collection in top.rows("collections"):
        field = "PubTator3" if "PubTator3" in collection.values else "documents"
        rows = [collection] if "passages" in collection.values else collection.rows(field)
        for row in rows:
            number += 1
            yield Record(row.values, path, 1, number, row.inside)


def _line_documents(path: Path, notes: Counter[str], encoding: str | None) -> Iterator[Record | DataError]:
    """Yield the documents of JSON lines; nothing if the first line is not a document."""
    for number, record in enumerate(read_json_lines(path, notes, encoding)):
        if number == 0 and (isinstance(record, DataError) or "passages" not in record.values):
            return
        yield record


def _document(record: Record, notes: Counter[str], options: Options) -> RawDocument:
    units = list(_units(record, notes))
    rows: list[dict[str, object]] = []
    entities = []
    for unit in units:
        for row in unit.record.rows("annotations") if "annotations" in unit.record.values else []:
            entity, infons = _entity(row, unit, options, notes)
            entities.append(entity)
            if infons:
                stated = {"start": entity.start, "end": entity.end, "label": entity.label}
                rows.append({**stated, "id": str(row.values.get("id", "")), "infons": infons})
    for holder in (record, *(unit.record for unit in units)):
        relations = holder.values.get("relations")
        notes["relation not read"] += len(relations) if isinstance(relations, list) else 0
    text = ""
    for unit in units:
        text = text if unit.is_inner else text.ljust(unit.start) + unit.text
    meta: dict[str, object] = {NAME: {"entities": rows}} if rows else {}
    return RawDocument(document_id(record, notes), text, tuple(entities), record.path, record.line, meta)


def _units(record: Record, notes: Counter[str]) -> Iterator[_Unit]:
    """Yield the parts of a document that have a text, in order."""
    end: int | None = None  # the end of the last unit, as the file counts
    place = 0
    for passage in record.rows("passages"):
        whole = isinstance(passage.values.get("text"), str)
        sentences = passage.rows("sentences") if "sentences" in passage.values else []
        for part in [passage] if whole else sentences:
            offset, text = part.integer("offset"), part.text("text", blank=True)
            if end is not None:
                place += offset - end if offset - end in _GAPS else 1
                notes["passages whose offsets do not follow each other: joined by a space"] += offset - end not in _GAPS
            yield _Unit(part, offset, place, text)
            for sentence in sentences if whole else []:  # its annotations count like those of the passage
                yield _Unit(sentence, offset, place, text, is_inner=True)
            place, end = place + len(text), offset + len(text)


def _entity(row: Record, unit: _Unit, options: Options, notes: Counter[str]) -> tuple[RawEntity, dict[str, object]]:
    """Return the entity of an annotation, which reaches from its first to its last location, and its other infons."""
    key = options.column if isinstance(options.column, str) else "type"
    label = row.inner("infons").text(key)
    spans = []
    for location in row.rows("locations"):
        start = location.integer("offset") - unit.offset
        spans.append((start, start + location.integer("length")))
    if not spans:
        raise row.error("there is no location; expected at least one: add it, or remove the annotation", "locations")
    start, end = min(span[0] for span in spans), max(span[1] for span in spans)
    surface = row.text("text") if isinstance(row.values.get("text"), str) else None
    if len(spans) > 1:
        notes[SEVERAL_PARTS] += 1
        parts = "".join(unit.text[slice(*span)] for span in sorted(spans))
        if surface is not None and re.sub(r"\W", "", parts) == re.sub(r"\W", "", surface):
            surface = unit.text[start:end]
    infons = {name: value for name, value in row.mapping("infons").items() if name != key}
    return RawEntity(unit.start + start, unit.start + end, label, surface, field=row.place("locations")), infons


def _written(document: Document, notes: Counter[str]) -> dict[str, object]:
    pairs, gone = with_rows(document, NAME)
    notes["identifier left out: its entity is gone"] += len(gone)
    notes["score left out"] += sum(entity.score is not None for entity in document.entities)
    notes["meta left out"] += bool(set(document.meta) - {NAME}) or unwritten_meta(document, NAME, ("entities",))
    annotations = []
    for number, (entity, row) in enumerate(sorted(pairs, key=lambda pair: pair[0]), start=1):
        infons = row.get("infons")
        annotations.append(
            {
                "id": row.get("id") or str(number),
                "infons": {"type": entity.label, **(infons if isinstance(infons, dict) else {})},
                "text": document.surface(entity),
                "locations": [{"offset": entity.start, "length": entity.end - entity.start}],
            }
        )
    passage = {"offset": 0, "infons": {}, "text": document.text, "sentences": [], "annotations": annotations}
    return {"id": document.id, "infons": {}, "passages": [{**passage, "relations": []}], "relations": []}
