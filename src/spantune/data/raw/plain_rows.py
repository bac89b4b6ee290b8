"""The usual entity of a JSON line, read fast: an object of four fields, whose text stands at its start.

All other entities are read by `Record`, which says what is wrong with them. A large corpus has hardly any of them, and
reading the usual ones here takes a third of the time.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from spantune.core import half_surrogate
from spantune.data.raw.json_records import Record


class Row(NamedTuple):
    """The fields of an entity: offsets as stated, label, text, and `field`, the path of its text in the document."""

    start: int
    end: int
    label: str
    surface: str
    field: str


def plain_rows(record: Record, names: tuple[str, str, str, str]) -> list[Row] | None:
    """Return the rows in the field `entities` of a document; None if one of them has to be read by `Record`.

    Args:
        record: a document with the fields `text` and `entities`.
        names: the names of the fields of an entity for start, end, label and text.
    """
    text, rows = record.values.get("text"), record.values.get("entities")
    if type(text) is not str or type(rows) is not list or half_surrogate(text) is not None:
        return None
    found: list[Row] = []
    for index, row in enumerate(rows):
        if type(row) is not dict:
            return None
        start, end, label, surface = map(row.get, names)
        if not (
            len(row) == len(names)
            and type(start) is int
            and type(end) is int
            and type(label) is str
            and type(surface) is str
            and start >= 0
            and text.startswith(surface, start)  # so the surface has no half of a surrogate pair, as the text has none
            and surface
            and _is_label(label)
        ):
            return None
        found.append(Row(start, end, label, surface, _field(index, names[3])))
    return found


@lru_cache(maxsize=1000)
def _is_label(label: str) -> bool:
    return label != "" and half_surrogate(label) is None


@lru_cache(maxsize=1000)
def _field(index: int, name: str) -> str:
    return f"entities[{index}].{name}"
