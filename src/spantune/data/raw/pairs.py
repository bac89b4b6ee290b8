"""spaCy 2's training data as JSON: pairs of a text and `{"entities": [[start, end, "label"], …]}`.

The pairs are in an array, or one on each line, or as ner-annotator writes them: `{"classes": […], "annotations":
[pair, …]}`, where null stands for a text without annotation. The list of triples may stand in place of the object.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from spantune.core import DataError, Document, replacing, to_json
from spantune.data.raw.document import Item, RawDocument, RawEntity, each
from spantune.data.raw.encodings import open_as_utf8
from spantune.data.raw.json_files import Value, element, read_array_values, read_json_value, read_line_values
from spantune.data.raw.json_records import Record
from spantune.data.raw.text_files import cannot_be_read

_HEAD = 1 << 16  # the number of first bytes by which a file is recognised

_TEXT = rb'"(?:[^"\\]|\\.)*+"\s*,\s*'
_ANNOTATION = rb'(?:\{\s*"entities"\s*:\s*\[|\[\s*(?:\]|\[\s*[0-9]+\s*,\s*[0-9]+\s*,\s*"))'
_PAIR = rb"\[\s*" + _TEXT + _ANNOTATION
_ARRAY = re.compile(rb"[\xef\xbb\xbf\s]*\[\s*" + _PAIR)
_LINE = re.compile(rb"[\xef\xbb\xbf\s]*" + _PAIR)
_CLASSES = rb'"classes"\s*:\s*\[[^\[\]{}]*\]\s*'
_WRAPPED = re.compile(
    rb"[\xef\xbb\xbf\s]*\{\s*(?:" + _CLASSES + rb',\s*)?"annotations"\s*:\s*\[\s*(?:null\s*,\s*)*' + _PAIR
)


def head_of(path: Path, encoding: str | None) -> bytes:
    """Return the first bytes of a file, as UTF-8.

    Raises:
        DataError: the file cannot be read, or not in this encoding.
    """
    try:
        with open_as_utf8(path, Counter(), encoding) as file:
            return file.read(_HEAD)
    except OSError as error:
        raise cannot_be_read(path, error) from None


def begins(head: bytes) -> bool:
    """Return whether a file with these first bytes holds pairs of this format."""
    return any(pattern.match(head) for pattern in (_ARRAY, _LINE, _WRAPPED))


def read(path: Path, notes: Counter[str], encoding: str | None = None) -> Iterator[Item]:
    """Yield the documents of `path`, with the ids `<stem>-<number>`.

    Raises:
        DataError: the rest of the file cannot be read.
    """
    return each(_pairs(path, notes, encoding), lambda record: _document(record, notes))


def write(path: Path, documents: Iterable[Document], notes: Counter[str]) -> None:
    """Write `documents` to `path` as an array of pairs; `notes` counts what the format cannot hold.

    Raises:
        DataError: the file cannot be written.
    """
    with replacing(path) as file:
        before = "[\n"
        for document in documents:
            rows = [[entity.start, entity.end, entity.label] for entity in document.entities]
            file.write(before + to_json([document.text, {"entities": rows}]))
            before = ",\n"
            notes["id left out"] += 1
            notes["meta left out"] += bool(document.meta)
            notes["score left out"] += sum(entity.score is not None for entity in document.entities)
        file.write("\n]\n" if before == ",\n" else "[]\n")


def are_triples(value: object) -> bool:
    """Return whether `value` is a list whose first element is `[start, end, label]`."""
    if not isinstance(value, list) or not value or not isinstance(value[0], list) or len(value[0]) != 3:
        return False
    start, end, label = value[0]
    return isinstance(start, int) and isinstance(end, int) and isinstance(label, str)


def triples(record: Record, field: str) -> tuple[RawEntity, ...]:
    """Return the entities of the triples in `field` of `record`.

    Raises:
        DataError: an element of the list is no triple.
    """
    return tuple(_triple(record, f"{field}[{index}]", row) for index, row in enumerate(record.items(field)))


def _pairs(path: Path, notes: Counter[str], encoding: str | None) -> Iterator[Record | DataError]:
    """Yield each pair as a record with the fields `[0]` and `[1]`."""
    head = head_of(path, encoding)
    place = ""
    values: Iterable[Value | DataError]
    if _WRAPPED.match(head):
        whole = read_json_value(path, notes, encoding)
        assert isinstance(whole, dict)
        place = "annotations"
        items = Record(whole, path, 1).items(place)
        values = [Value(value, 1, number) for number, value in enumerate(items, start=1)]
    else:
        values = (read_array_values if _ARRAY.match(head) else read_line_values)(path, notes, encoding)
    before = 0
    for value in values:
        if isinstance(value, DataError):
            yield value
            continue
        here = f"{place}[{value.number - 1}]" if place else element(value, before)
        before = value.line
        if value.value is None:
            notes["null in place of a document left out"] += 1
        else:
            record = Record({}, path, value.line, value.number)
            try:
                yield record.cells(here, value.value, '[text, {"entities": […]}]')
            except DataError as error:
                yield error


def _document(record: Record, notes: Counter[str]) -> RawDocument:
    text = record.text("[0]", blank=True)
    if isinstance(record.values["[1]"], dict):
        annotation = record.inner("[1]")
        entities = triples(annotation, "entities")
        for field in annotation.others(("entities",)):
            notes[f"field {field!r} not read"] += 1
    else:
        entities = triples(record, "[1]")
    notes["id made from the document's number"] += 1
    return RawDocument(f"{record.path.stem}-{record.number}", text, entities, record.path, record.line)


def _triple(record: Record, place: str, value: object) -> RawEntity:
    row = record.cells(place, value, "[start, end, label]")
    return RawEntity(row.integer("[0]"), row.integer("[1]"), row.text("[2]"), field=row.place(""))
