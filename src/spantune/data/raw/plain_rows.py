"""The usual entity of a JSON line, read at once: an object of four fields, whose text stands at its start.

Whatever is otherwise goes the careful way of `Record`, which says what is wrong. A large corpus has hardly any other
rows, and this way takes a third of the time.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from spantune.core import half_surrogate
from spantune.data.raw.json_records import Record


class Row(NamedTuple):
    """The fields of an entity: offsets as stated, label, its text, and the place of `field` in the document."""

    start: int
    end: int
    label: str
    surface: str
    field: str


def plain_rows(record: Record, names: tuple[str, str, str, str]) -> list[Row] | None:
    """Return the rows in `entities` of a document; None if one of them needs the careful way.

    Args:
        record: a document with `text` and `entities`.
        names: what the fields start, end, label and text of an entity are called.
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
            and text.startswith(surface, start)  # so that it holds no half of a surrogate pair either
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
