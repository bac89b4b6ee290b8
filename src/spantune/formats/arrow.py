"""Rows in Apache Arrow's types, for Parquet and Hugging Face `datasets`: batches in and out, JSON's values beyond.

Its types have no JSON: dates, times and decimals become text, bytes and numbers that are none are left out, and all
of that is noted. Null fields of a struct are absent fields.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import date, time
from pathlib import Path
from typing import Any

from spantune.errors import DataError
from spantune.formats.extras import need
from spantune.formats.record import Record

BATCH_ROWS = 1000

_BATCH_CHARACTERS = 1 << 23


def records(batch: Any, before: int, path: Path, notes: Counter[str]) -> Iterator[Record]:
    """Yield the rows of `batch`, a record batch or table that follows `before` others; a row's line is its number.

    Raises:
        DataError: a value cannot be had from its bytes.
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


def batches(rows: Iterable[dict[str, Any]], schema: Any) -> Iterator[Any]:
    """Yield `rows` as record batches of bounded size."""
    pyarrow = need("pyarrow", "table")
    batch: list[dict[str, Any]] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(row["text"])
        if len(batch) == BATCH_ROWS or characters > _BATCH_CHARACTERS:
            yield pyarrow.RecordBatch.from_pylist(batch, schema=schema)
            batch, characters = [], 0
    if batch:
        yield pyarrow.RecordBatch.from_pylist(batch, schema=schema)


def schema(column: str, entities: Any, meta: dict[str, type]) -> Any:
    """The schema of rows with `entities` of the given type in `column`, and columns of meta."""
    pyarrow = need("pyarrow", "table")
    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    own = {"id": types[str], "text": types[str], column: entities}
    return pyarrow.schema(own | {name: types[kind] for name, kind in meta.items()})


def _plain(value: Any, notes: Counter[str]) -> Any:
    """`value` as JSON can hold it."""
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
