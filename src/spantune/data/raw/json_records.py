"""JSON objects with their place in a file, so that an error names the line and the field.

A field is returned only if it has the type that was asked for. Two things that Python's reader silently accepts are
refused: half of a surrogate pair, and what `json_text` refuses.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from spantune.core import DataError, half_surrogate
from spantune.data.raw.document import SurrogateError
from spantune.data.raw.json_text import DECODER, kind_of, python_hint

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Record:
    """A JSON object on line `line` of `path`, the `number`-th of its file.

    `inside` is the path from the outermost object to this one, for a nested object. A method that returns a field
    raises a DataError with file, line and field if the field is missing or has another type.
    """

    values: dict[str, object]
    path: Path
    line: int
    number: int = 1
    inside: str = ""

    def error(self, message: str, field: str | None = None) -> DataError:
        """Return a DataError with the place of this record, or of its `field`."""
        place = self.inside.rstrip(".") if field is None else self.inside + field
        return DataError(message, path=self.path, line=self.line, field=place or None)

    def text(self, field: str, *, blank: bool = False) -> str:
        """Return the string in `field`. An empty string is refused unless `blank` is True."""
        value = self._take(field, str, "a string")
        if not value and not blank:
            raise self.error("the string is empty; expected at least one character: mend or remove it", field)
        place = half_surrogate(value)
        if place is not None:
            raise SurrogateError(
                f"half of a surrogate pair, U+{ord(value[place]):04X}, at character {place} is not text; "
                "write the whole character",
                path=self.path,
                line=self.line,
                field=self.place(field),
            )
        return value

    def integer(self, field: str) -> int:
        """Return the whole number in `field`; a boolean is refused."""
        return self._take(field, int, "a whole number")

    def score(self, field: str) -> float:
        """Return the probability in `field`, which must be there."""
        score = self.values[field]
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            raise self.error(f"found {score!r}; expected a probability from 0 to 1: mend or remove it", field)
        return float(score)

    def json(self, field: str) -> object:
        """Return the value of the JSON text that is the string in `field`."""
        text = self.text(field)
        try:
            value: object = DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            hint = python_hint(text, error.pos) if isinstance(error, json.JSONDecodeError) else ""
            raise self.error(
                f"not JSON: {error}{hint}; mend it there (strings and names stand in double quotes)", field
            ) from None
        return value

    def rows(self, field: str) -> list[Record]:
        """Return the list of objects in `field`, as records that know their place."""
        records = []
        for index, row in enumerate(self._take(field, list, "a list of objects ([] for a text without entities)")):
            if not isinstance(row, dict):
                raise self.error(f"found {kind_of(row)}; expected an object", f"{field}[{index}]")
            records.append(Record(row, self.path, self.line, self.number, f"{self.inside}{field}[{index}]."))
        return records

    def items(self, field: str) -> list[object]:
        """Return the list in `field`, whose values may have any type."""
        return list(self._take(field, list, "a list"))

    def at(self, place: str, values: dict[str, object]) -> Record:
        """Return the object `values`, which is at `place` in this record, as a record that knows its place."""
        return Record(values, self.path, self.line, self.number, f"{self.inside}{place}.")

    def cells(self, place: str, value: object, expected: str) -> Record:
        """Return a list as a record with the fields `[0]`, `[1]`, …

        Args:
            place: the path of the list from this record.
            value: the list, or any other value, which is an error.
            expected: what it should be, such as `[start, end, label]`; its commas say how many values.

        Raises:
            DataError: `value` is no list of that many values.
        """
        if not isinstance(value, list) or len(value) != expected.count(",") + 1:
            raise self.error(f"found {json.dumps(value, ensure_ascii=False)[:60]}; expected {expected}: mend it", place)
        cells: dict[str, object] = {f"[{index}]": cell for index, cell in enumerate(value)}
        return Record(cells, self.path, self.line, self.number, self.inside + place)

    def entities(self, *, optional: bool) -> list[Record]:
        """Return the list of objects in `entities`; an empty list if the field is missing and `optional` is True."""
        return [] if optional and "entities" not in self.values else self.rows("entities")

    def mapping(self, field: str) -> dict[str, object]:
        """Return the object in `field`; an empty one if the field is missing."""
        return dict(self._take(field, dict, "an object")) if field in self.values else {}

    def required(self, field: str) -> dict[str, object]:
        """Return the object in `field`."""
        return dict(self._take(field, dict, "an object"))

    def inner(self, field: str) -> Record:
        """Return the object in `field` as a record that knows its place; an empty one if the field is missing."""
        return Record(self.mapping(field), self.path, self.line, self.number, f"{self.inside}{field}.")

    def others(self, known: Iterable[str]) -> dict[str, object]:
        """Return the fields whose names are not in `known`."""
        known = set(known)
        return {name: value for name, value in self.values.items() if name not in known}

    def note_others(self, known: Iterable[str], notes: Counter[str]) -> None:
        """Count in `notes` the fields of this entity whose names are not in `known`."""
        for field in self.others(known):
            notes[f"entity field {field!r} not read"] += 1

    def place(self, field: str) -> str:
        """Return the path of `field` from the outermost object."""
        return self.inside + field

    def _take(self, field: str, kind: type[T], expected: str) -> T:
        if field not in self.values:
            names = ", ".join(self.values) or "none"
            raise self.error(f"the field is missing; expected {expected}; fields found: {names}", field)
        value = self.values[field]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(f"found {kind_of(value)}; expected {expected}", field)
        return value


def document_id(record: Record, notes: Counter[str], field: str = "id") -> str:
    """Return the document's id in `field`; if that is missing or null, an id made from the document's number.

    Raises:
        DataError: the id is neither a string nor a whole number.
    """
    value = record.values.get(field)
    if value is None:
        notes["id made from the document's number"] += 1
        return f"{record.path.stem}-{record.number}"
    if isinstance(value, int) and not isinstance(value, bool):
        notes["id is a number, taken as text"] += 1
        return str(value)
    return record.text(field)
