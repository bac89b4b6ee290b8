"""Rows of a table as documents and back: what CSV, Parquet and Hugging Face `datasets` have in common.

A row has `text` and `entities`. The entities are JSON in a string, or a list if the table can hold one. The list has
objects `{"start", "end", "label", "text"?, "score"?}` or triples `[start, end, label]`. `id` is optional. Every other
column is meta, in reading and in writing; null means no value. Null entities are refused, because null may mean that
the text was not annotated.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, time
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from spantune.core import DataError, Document, need, to_json, to_record
from spantune.data.raw.document import Options, RawDocument, RawEntity
from spantune.data.raw.json_records import Record

ENTITIES = "entities"

_TRIPLE = ("start", "end", "label")
_ENTITY_FIELDS = (*_TRIPLE, "text", "score")
_INT64 = range(-(1 << 63), 1 << 63)


def entities_column(names: Sequence[str], options: Options, path: Path) -> str | None:
    """Return the column of entities in a table whose columns are `names`.

    Returns:
        None if `options.unannotated` allows texts without entities, and the table has no such column.

    Raises:
        DataError: there is no column of entities, or none called `text`, or two columns have the same name.
    """
    listed = ", ".join(map(repr, names))
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"the column {repeated[0]!r} is repeated; rename one; columns found: {listed}", path=path)
    column = options.column if options.column is not None else ENTITIES
    if isinstance(column, int) and -len(names) <= column < len(names):
        column = names[column]
    if options.unannotated and options.column is None and "text" in names and column not in names:
        return None
    if missing := next((name for name in ("text", column) if name not in names), None):
        raise DataError(
            f"there is no column {missing!r}; columns found: {listed}; expected text and {column}: rename them, or "
            "name the column of entities (--column NAME)",
            path=path,
        )
    assert isinstance(column, str)
    return column


def parse(record: Record, column: str | None, notes: Counter[str]) -> RawDocument:
    """Parse the document in a row. Its entities are in `column`; without a column it has none.

    Raises:
        DataError: a cell does not hold what it should.
    """
    rows = [] if column is None else _stated(record, column)
    entities = tuple(chain.from_iterable(_labelled(row, notes) for row in rows))
    text = record.text("text", blank=True)
    return document(record, text, entities, notes, ("text",) if column is None else ("text", column))


def _labelled(row: Record, notes: Counter[str]) -> Iterator[RawEntity]:
    """Yield the entities of an object: one, or one for each of the `labels` that Label Studio gives to a region."""
    labels = row.values.get("labels")
    if "label" in row.values or "labels" not in row.values:
        yield entity(row, notes)
        return
    if not isinstance(labels, list) or not labels:
        raise row.error(f"found {labels!r:.40}; expected a list of at least one label", "labels")
    for label in labels:
        values = {name: value for name, value in row.values.items() if name != "labels"}
        yield entity(replace(row, values=values | {"label": label}), notes)


def document(
    record: Record, text: str, entities: tuple[RawEntity, ...], notes: Counter[str], known: Iterable[str]
) -> RawDocument:
    """Make the document of a row. Without an id, it gets one; columns that are not in `known` become its meta."""
    name = record.values.get("id")
    if name is None:
        name = f"{record.path.stem}-{record.number}"
        notes["id made from the row number"] += 1
    elif isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
        notes["id is a number, taken as text"] += 1
    else:
        name = record.text("id")
    meta = {key: value for key, value in record.others(("id", *known)).items() if value is not None}
    return RawDocument(name, text, entities, record.path, record.line, meta)


def entity(row: Record, notes: Counter[str], known: Iterable[str] = ()) -> RawEntity:
    """Parse an object with start, end, label and perhaps text and score; count other fields not in `known` as notes.

    Raises:
        DataError: a field is missing or has another type.
    """
    start, end, label = row.integer("start"), row.integer("end"), row.text("label")
    surface = row.text("text") if "text" in row.values else None
    row.note_others((*_ENTITY_FIELDS, *known), notes)
    score = row.score("score") if "score" in row.values else None
    return RawEntity(start, end, label, surface, score, row.place("end" if surface is None else "text"))


def spool(documents: Iterable[Document], file: TextIO, column: str, notes: Counter[str]) -> dict[str, type]:
    """Write the rows of `documents` to `file`, and return the types of the columns of meta.

    The columns are known only after the last document; therefore `spooled` reads the rows from `file` again. A column
    has the type of its values, or `str` if their types differ or they are lists or objects.

    Args:
        documents: the documents.
        file: a temporary text file.
        column: the name of the column of entities.
        notes: counts what is left out.

    Raises:
        DataError: a meta key is the name of one of the layout's own columns.
    """
    types: dict[str, type] = {}
    own = ("id", "text", column)
    for document in documents:
        record = to_record(document)
        record.pop("meta", None)
        meta = {key: value for key, value in document.meta.items() if value is not None}
        if taken := sorted({*own, ""} & set(meta)):
            raise DataError(f"document {document.id!r}: the layout uses the meta key {taken[0]!r}; rename it")
        notes["null meta value left out"] += sum(value is None for value in document.meta.values())
        for key, value in meta.items():
            kind = _type(value)
            types[key] = kind if types.get(key, kind) is kind else str
        record[column] = record.pop(ENTITIES)
        file.write(to_json(record | meta, ascii_only=True) + "\n")
    return types


def spooled(file: TextIO, types: Mapping[str, type], notes: Counter[str]) -> Iterator[dict[str, object]]:
    """Yield the rows that `spool` wrote. A value with another type than its column becomes JSON text and is noted."""
    file.seek(0)
    for line in file:
        row = json.loads(line)
        for key, kind in types.items():
            if kind is str and not isinstance(row.get(key, ""), str):
                row[key] = to_json(row[key])
                notes["meta value written as JSON text"] += 1
        yield row


def _stated(record: Record, column: str) -> list[Record]:
    """Return the entities of a row as objects, whatever layout they are written in."""
    value = record.values[column]
    if value is None or value == "":
        raise record.error("the cell is empty; expected a list of objects ([] for a text without entities)", column)
    if isinstance(value, str):
        value = record.json(column)
    elif isinstance(value, dict):  # a list of objects as older versions of `datasets` store it, by field
        lists = {field: items for field, items in value.items() if isinstance(items, list)}
        if len({len(items) for items in lists.values()}) > 1 or not lists:
            raise record.error("the lists of its fields differ in length; expected one value an entity in each", column)
        value = [
            {field: item for field, item in zip(lists, items, strict=True) if item is not None}
            for items in zip(*lists.values(), strict=True)
        ]
    if isinstance(value, list):
        value = [_object(record, item, f"{column}[{index}]") for index, item in enumerate(value)]
    return replace(record, values={column: value}).rows(column)


def _object(record: Record, item: object, field: str) -> object:
    if isinstance(item, list):
        if len(item) != len(_TRIPLE):
            raise record.error(f"found a list of {len(item)}; expected [start, end, label]", field)
        return dict(zip(_TRIPLE, item, strict=True))
    return item


def _type(value: object) -> type:
    """Return the type of a column that can hold `value`; `str` if it can be held only as JSON."""
    kind = type(value)
    return kind if kind in (bool, float) or (kind is int and value in _INT64) else str


BATCH_ROWS = 1000

_BATCH_CHARACTERS = 1 << 23


def records(batch: Any, before: int, path: Path, notes: Counter[str]) -> Iterator[Record]:
    """Yield the rows of `batch` as records. The line of a record is the number of its row, from 1.

    Args:
        batch: a record batch or a table of pyarrow.
        before: the number of rows in the batches before it.
        path: the file.
        notes: counts values that are changed or left out.

    Raises:
        DataError: a value cannot be decoded.
    """
    try:
        rows = batch.to_pylist()
    except ValueError as error:
        raise DataError(
            f"rows {before + 1} to {before + batch.num_rows} hold a value that cannot be read: {error}; write them "
            "anew",
            path=path,
        ) from None
    for number, row in enumerate(rows, start=before + 1):
        values = {name: _plain(value, notes) for name, value in row.items()}
        yield Record(values, path, number, number)


def batches(rows: Iterable[dict[str, object]], schema: Any) -> Iterator[Any]:
    """Yield `rows` as record batches of pyarrow, each of at most `BATCH_ROWS` rows and about 8 million characters."""
    pyarrow = need("pyarrow", "table")
    batch: list[dict[str, object]] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(str(row["text"]))
        if len(batch) == BATCH_ROWS or characters > _BATCH_CHARACTERS:
            yield pyarrow.RecordBatch.from_pylist(batch, schema=schema)
            batch, characters = [], 0
    if batch:
        yield pyarrow.RecordBatch.from_pylist(batch, schema=schema)


def schema(column: str, entities: Any, meta: dict[str, type]) -> Any:
    """Return the pyarrow schema of rows with id, text, `entities` of the given type in `column`, and meta columns."""
    pyarrow = need("pyarrow", "table")
    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    own = {"id": types[str], "text": types[str], column: entities}
    return pyarrow.schema(own | {name: types[kind] for name, kind in meta.items()})


def _plain(value: object, notes: Counter[str]) -> object:
    """Return `value` as a value that JSON can hold; `notes` counts what is changed or left out."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        notes["number that is none (NaN, infinity) left out"] += 1
        return None
    if isinstance(value, list | tuple):
        return [_plain(item, notes) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item, notes) for name, item in value.items() if item is not None}
    if isinstance(value, bytes):
        notes["bytes left out"] += 1
        return None
    notes[f"{type(value).__name__} taken as text"] += 1
    return value.isoformat() if isinstance(value, date | time) else str(value)
