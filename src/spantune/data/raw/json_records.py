"""JSON objects with their place in a file, so that an error names the line and the field.

A field is returned only with the type that was asked for. What Python's reader silently accepts is refused: a repeated
key, NaN, half of a surrogate pair.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from spantune.core import DataError, half_surrogate, replacing
from spantune.data.raw.document import SurrogateError
from spantune.data.raw.text_files import LINE_LIMIT, oversized, read_chunks, try_lines

T = TypeVar("T")
_BLANK = re.compile(r"[ \t\r\n]*")
_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


@dataclass(frozen=True, slots=True)
class Record:
    """A JSON object at `path:line`, the `number`-th of its file; `inside` is the path of fields to a nested one."""

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
        """Return the string in `field`; an empty one only if `blank` allows it."""
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
        """Return the whole number in `field`."""
        return self._take(field, int, "a whole number")

    def score(self, field: str) -> float:
        """Return the probability in `field`."""
        score = self.values[field]
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            raise self.error(f"found {score!r}; expected a probability from 0 to 1: mend or remove it", field)
        return float(score)

    def json(self, field: str) -> object:
        """Return the value of the JSON text in `field`."""
        try:
            value: object = _DECODER.decode(self.text(field))
        except (ValueError, RecursionError) as error:
            raise self.error(
                f"not JSON: {error}; mend it there (strings and names stand in double quotes)", field
            ) from None
        return value

    def rows(self, field: str) -> list[Record]:
        """Return the list of objects in `field`."""
        records = []
        for index, row in enumerate(self._take(field, list, "a list of objects ([] for a text without entities)")):
            if not isinstance(row, dict):
                raise self.error(f"found {_kind(row)}; expected an object", f"{field}[{index}]")
            records.append(Record(row, self.path, self.line, self.number, f"{self.inside}{field}[{index}]."))
        return records

    def entities(self, *, optional: bool) -> list[Record]:
        """Return the list of objects in `entities`; an empty one if the field is absent and `optional`."""
        return [] if optional and "entities" not in self.values else self.rows("entities")

    def mapping(self, field: str) -> dict[str, object]:
        """Return the object in `field`; an empty one if the field is absent."""
        return dict(self._take(field, dict, "an object")) if field in self.values else {}

    def inner(self, field: str) -> Record:
        """Return the object in `field`, an empty one if the field is absent, as a record that knows its place."""
        return Record(self.mapping(field), self.path, self.line, self.number, f"{self.inside}{field}.")

    def others(self, known: Iterable[str]) -> dict[str, object]:
        """Return the fields that are not in `known`."""
        known = set(known)
        return {name: value for name, value in self.values.items() if name not in known}

    def note_others(self, known: Iterable[str], notes: Counter[str]) -> None:
        """Count in `notes` the fields of this entity that are not in `known`."""
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
            raise self.error(f"found {_kind(value)}; expected {expected}", field)
        return value


def read_json_lines(path: Path, notes: Counter[str]) -> Iterator[Record | DataError]:
    """Yield the object on each line of `path`, or a DataError for a line that has none."""
    for number, (line, text) in enumerate(try_lines(path, notes), start=1):
        try:
            if isinstance(text, DataError):
                raise text
            value, end = _parse(text, _skip(text, 0), path, line)
            if (rest := _skip(text, end)) != len(text):
                raise _not_json("more follows the value", text, rest, path, line)
            record = _as_record(value, path, line, number)
            if _UNUSUAL.search(text):
                _require_finite(record)
            yield record
        except DataError as error:
            yield error


def write_json_lines(path: Path, records: Iterable[Mapping[str, object]]) -> None:
    """Write `records` to `path`, one a line.

    Raises:
        DataError: the file cannot be written.
    """
    with replacing(path) as file:
        for record in records:
            file.write(to_json(record) + "\n")


def to_json(record: Mapping[str, object]) -> str:
    """Return a document's record as JSON on one line.

    Raises:
        DataError: JSON cannot hold it: a number is NaN or infinite, or it is nested too deeply.
    """
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        named = f"document {record['id']!r}: " if "id" in record else ""
        raise DataError(
            f"{named}JSON cannot hold a value of its meta ({error}); expected text, finite numbers, lists and objects: "
            "change or remove it",
            field="meta",
        ) from None


def read_json(path: Path, notes: Counter[str]) -> Iterator[Record | DataError]:
    """Yield the objects of `path`; the first character decides whether it is a JSON array or JSONL.

    Raises:
        DataError: as `read_json_array`, for an array.
    """
    first = next(chunk for chunk in read_chunks(path, Counter()) if chunk.strip())  # a line may be the whole file
    return (read_json_array if first.lstrip().startswith("[") else read_json_lines)(path, notes)


def read_json_array(path: Path, notes: Counter[str]) -> Iterator[Record | DataError]:
    """Yield the objects of the JSON array in `path`, and a DataError for other elements; only one is in memory.

    Raises:
        DataError: the file is not a JSON array, or an empty one.
    """
    text = _Window(path, notes)
    if text.next() != "[":
        raise text.not_json("expected [, which begins an array")
    text.place += 1
    if text.next() == "]":
        raise DataError("the array is empty; expected at least one document: check the path", path=path)
    number = 0
    while True:
        text.next()
        line, number = text.line_here(), number + 1
        value, is_unusual = text.value()
        try:
            record = _as_record(value, path, line, number)
            if is_unusual:
                _require_finite(record)
            yield record
        except DataError as error:
            yield error
        mark = text.next()
        text.place += 1
        if mark == "]":
            break
        if mark != ",":
            text.place -= 1
            raise text.not_json("expected , or ] after a value")
    if text.next():
        raise text.not_json("more follows the array")


class _Window:
    """The part of a file that is being parsed; it moves through the file chunk by chunk."""

    def __init__(self, path: Path, notes: Counter[str]):
        self.path, self.text, self.place = path, "", 0
        self._line, self._counted = 1, 0  # a line number, and the place in `text` for which it holds
        self._chunks = read_chunks(path, notes)

    def more(self) -> bool:
        """Drop the text before `place` and read the next chunk; False at the end of the file."""
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        self.line_here()
        self.text, self.place, self._counted = self.text[self.place :] + chunk, 0, 0
        return True

    def next(self) -> str:
        """Move to the next character that is not white space and return it, "" at the end of the file."""
        while True:
            self.place = _skip(self.text, self.place)
            if self.place < len(self.text) or not self.more():
                return self.text[self.place : self.place + 1]

    def value(self) -> tuple[object, bool]:
        """Return the JSON value at `place`, and whether a number of it may not be finite, and move behind it."""
        size = 0
        while True:
            try:
                value, end = _parse(self.text, self.place, self.path, self.line_here(), self.place)
                if end < len(self.text) or not self.more():  # a number might continue in the next chunk
                    is_unusual = _UNUSUAL.search(self.text, self.place, end) is not None
                    self.place = end
                    return value, is_unusual
            except DataError:
                if len(self.text) - self.place > LINE_LIMIT:
                    raise oversized(self.path, self.line_here()) from None
                size = 2 * max(size, len(self.text) - self.place)  # doubled, so that no object is parsed too often
                if not self.more():
                    raise
                while len(self.text) < size and self.more():
                    pass

    def line_here(self) -> int:
        """Return the line of `place`."""
        self._line += self.text.count("\n", self._counted, self.place)
        self._counted = self.place
        return self._line

    def not_json(self, what: str) -> DataError:
        """Return the error for the text at `place`."""
        return _not_json(what, self.text, self.place, self.path, self.line_here(), self.place)


def _as_record(value: object, path: Path, line: int, number: int) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"found {_kind(value)}; expected an object with text and entities", path=path, line=line)
    return Record(value, path, line, number)


def _require_finite(record: Record) -> None:
    """Refuse NaN, infinity and numbers beyond the range of a float, which JSON cannot hold or Python cannot keep.

    Raises:
        DataError: the record has one; the error names the field.
    """
    waiting: list[tuple[str, object]] = list(record.values.items())
    while waiting:
        field, value = waiting.pop()
        if isinstance(value, float) and not math.isfinite(value):
            found = "NaN is not a JSON number" if math.isnan(value) else "the number is infinite or beyond 1.8e308"
            raise record.error(f"{found}; mend it, or write it as a string", field)
        if isinstance(value, dict):
            waiting += [(f"{field}.{name}", inner) for name, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{field}[{index}]", inner) for index, inner in enumerate(value)]


def _parse(text: str, place: int, path: Path, line: int, line_at: int = 0) -> tuple[object, int]:
    """Return the JSON value at `place` and its end; `line` is the line of the character `line_at`."""
    try:
        value, end = _DECODER.raw_decode(text, place)
    except json.JSONDecodeError as error:
        raise _not_json(error.msg, text, error.pos, path, line, line_at) from None
    except (ValueError, RecursionError) as error:
        raise _not_json(str(error), text, place, path, line, line_at) from None
    return value, end


def _skip(text: str, place: int) -> int:
    """Return the first place from `place` on that is not JSON white space."""
    match = _BLANK.match(text, place)
    assert match is not None
    return match.end()


def _not_json(what: str, text: str, place: int, path: Path, line: int, line_at: int = 0) -> DataError:
    column = place - text.rfind("\n", 0, place)
    return DataError(
        f"not JSON at column {column}: {what}; mend it there (strings and names stand in double quotes, and in JSONL "
        "each line is one whole object), or name the file's format if it is another",
        path=path,
        line=line + text.count("\n", line_at, place),
    )


def _kind(value: object) -> str:
    """Describe the type of a JSON value."""
    return _KINDS.get(type(value)) or f"the number {value}"


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is repeated")
    return values


_UNUSUAL = re.compile(r"NaN|Infinity|[eE]\+?[0-9]{3}|[0-9]{308}")
"""What a number that is not finite looks like; strings may look so, too."""
_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)
