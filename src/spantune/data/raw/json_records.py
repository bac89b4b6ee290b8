"""JSON objects with their place in a file, so that an error names the line and the field.

A field is returned only with the type that was asked for. What Python's reader silently accepts is refused: a repeated
key, NaN, half of a surrogate pair.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar

from spantune.core import DataError, half_surrogate, replacing, to_json
from spantune.data.raw.document import SurrogateError
from spantune.data.raw.encodings import open_as_utf8
from spantune.data.raw.text_files import CHUNK, LINE_LIMIT, Stretch, cannot_be_read, oversized, read_chunks, try_lines

T = TypeVar("T")
_BLANK = re.compile(r"[ \t\r\n]*")
_BYTES_BEFORE = b"\xef\xbb\xbf \t\r\n"  # a byte-order mark and white space
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
            value: object = DECODER.decode(self.text(field))
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

    def items(self, field: str) -> list[object]:
        """Return the list of whatever values in `field`."""
        return list(self._take(field, list, "a list"))

    def at(self, place: str, values: dict[str, object]) -> Record:
        """Return the object `values`, which is at `place` in this one, as a record that knows its place."""
        return Record(values, self.path, self.line, self.number, f"{self.inside}{place}.")

    def cells(self, place: str, value: object, expected: str) -> Record:
        """Return the list `value`, which is at `place`, as a record of the fields `[0]`, `[1]`, …

        Args:
            place: the path of the value from this record.
            value: the value, which may be anything.
            expected: what it should be, such as `[start, end, label]`, whose commas say how many values.
        """
        if not isinstance(value, list) or len(value) != expected.count(",") + 1:
            raise self.error(f"found {json.dumps(value, ensure_ascii=False)[:60]}; expected {expected}: mend it", place)
        cells: dict[str, object] = {f"[{index}]": cell for index, cell in enumerate(value)}
        return Record(cells, self.path, self.line, self.number, self.inside + place)

    def entities(self, *, optional: bool) -> list[Record]:
        """Return the list of objects in `entities`; an empty one if the field is absent and `optional`."""
        return [] if optional and "entities" not in self.values else self.rows("entities")

    def mapping(self, field: str) -> dict[str, object]:
        """Return the object in `field`; an empty one if the field is absent."""
        return dict(self._take(field, dict, "an object")) if field in self.values else {}

    def required(self, field: str) -> dict[str, object]:
        """Return the object in `field`."""
        return dict(self._take(field, dict, "an object"))

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


class Value(NamedTuple):
    """A JSON value of any type, the line where it begins, and its number in the file, from 1."""

    value: object
    line: int
    number: int


def document_id(record: Record, notes: Counter[str], field: str = "id") -> str:
    """Return the document's id in `field`; one made from its number if it is absent or null.

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


def read_json_lines(
    path: Path, notes: Counter[str], encoding: str | None = None, stretch: Stretch | None = None
) -> Iterator[Record | DataError]:
    """Yield the object on each line of `path`, or a DataError for a line that has none.

    With `stretch`, only its lines are read, and a record's `number` counts from its beginning.
    """
    return _records(read_line_values(path, notes, encoding, stretch), path)


def read_line_values(
    path: Path, notes: Counter[str], encoding: str | None = None, stretch: Stretch | None = None
) -> Iterator[Value | DataError]:
    """Yield the JSON value on each line of `path`, or of `stretch`, or a DataError for a line that has none."""
    lines = try_lines(path, notes, encoding=encoding, stretch=stretch)
    for number, (line, text) in enumerate(lines, start=1):
        try:
            if isinstance(text, DataError):
                raise text
            yield Value(_line_value(text, path, line), line, number)
        except DataError as error:
            yield error


def parse_line(text: str, path: Path, line: int) -> Record | DataError:
    """Return the object that is the whole of a line, or a DataError if it is none."""
    try:
        value = Value(_line_value(text, path, line), line, line)
    except DataError as error:
        return error
    return next(_records([value], path))


def _line_value(text: str, path: Path, line: int) -> object:
    value, end = _parse(text, _skip(text, 0), path, line)
    if (rest := _skip(text, end)) != len(text):
        raise _not_json("more follows the value", text, rest, path, line)
    return value


def write_json_lines(path: Path, records: Iterable[Mapping[str, object]]) -> None:
    """Write `records` to `path`, one a line.

    Raises:
        DataError: the file cannot be written.
    """
    with replacing(path) as file:
        for record in records:
            file.write(to_json(record) + "\n")


def begins_array(path: Path, encoding: str | None = None) -> bool:
    """Whether the first character of `path` begins a JSON array; only bytes are looked at, so any line may be broken.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    try:
        with open_as_utf8(path, Counter(), encoding) as file:
            while chunk := file.read(CHUNK):
                if first := chunk.lstrip(_BYTES_BEFORE):
                    return first.startswith(b"[")
    except OSError as error:
        raise cannot_be_read(path, error) from None
    return False


def read_json(path: Path, notes: Counter[str], encoding: str | None = None) -> Iterator[Record | DataError]:
    """Yield the objects of `path`; the first character decides whether it is a JSON array or JSONL.

    Raises:
        DataError: as `read_json_array`, for an array.
    """
    return (read_json_array if begins_array(path, encoding) else read_json_lines)(path, notes, encoding)


def read_json_array(path: Path, notes: Counter[str], encoding: str | None = None) -> Iterator[Record | DataError]:
    """Yield the objects of the JSON array in `path`, and a DataError for other elements; only one is in memory.

    Raises:
        DataError: the file is not a JSON array, or an empty one.
    """
    return _records(read_array_values(path, notes, encoding), path)


def read_array_values(path: Path, notes: Counter[str], encoding: str | None = None) -> Iterator[Value]:
    """Yield the elements of the JSON array in `path`; only one is in memory.

    Raises:
        DataError: the file is not a JSON array, or an empty one.
    """
    text = _Window(path, notes, encoding)
    if text.next() != "[":
        raise text.not_json("expected [, which begins an array")
    text.place += 1
    if text.next() == "]":
        raise DataError("the array is empty; expected at least one document: check the path", path=path)
    number = 0
    while True:
        text.next()
        line, number = text.line_here(), number + 1
        yield Value(text.value(), line, number)
        mark = text.next()
        text.place += 1
        if mark == "]":
            break
        if mark != ",":
            text.place -= 1
            raise text.not_json("expected , or ] after a value")
    if text.next():
        raise text.not_json("more follows the array")


def read_json_value(path: Path, notes: Counter[str], encoding: str | None = None) -> object:
    """Return the one JSON value of `path`, which is in memory as a whole.

    Raises:
        DataError: the file is not one JSON value.
    """
    text = _Window(path, notes, encoding)
    text.next()
    value = text.value()
    if text.next():
        raise text.not_json("more follows the value")
    return value


class _Window:
    """The part of a file that is being parsed; it moves through the file chunk by chunk."""

    def __init__(self, path: Path, notes: Counter[str], encoding: str | None):
        self.path, self.text, self.place = path, "", 0
        self._line, self._counted = 1, 0  # a line number, and the place in `text` for which it holds
        self._chunks = read_chunks(path, notes, encoding)

    def more(self, size: int = 1) -> bool:
        """Drop the text before `place` and read chunks of `size` characters or more; False at the end of the file."""
        chunks: list[str] = []
        while size > 0 and (chunk := next(self._chunks, None)) is not None:
            chunks.append(chunk)
            size -= len(chunk)
        if not chunks:
            return False
        self.line_here()
        self.text, self.place, self._counted = "".join([self.text[self.place :], *chunks]), 0, 0
        return True

    def next(self) -> str:
        """Move to the next character that is not white space and return it, "" at the end of the file."""
        while True:
            self.place = _skip(self.text, self.place)
            if self.place < len(self.text) or not self.more():
                return self.text[self.place : self.place + 1]

    def value(self) -> object:
        """Return the JSON value at `place` and move behind it."""
        while True:
            try:
                value, end = _parse(self.text, self.place, self.path, self.line_here(), self.place)
                if end < len(self.text) or not self.more():  # a number might continue in the next chunk
                    self.place = end
                    return value
            except DataError:
                length = len(self.text) - self.place
                if length > LINE_LIMIT:
                    raise oversized(self.path, self.line_here()) from None
                if not self.more(length):  # doubled, so that no object is parsed too often
                    raise

    def line_here(self) -> int:
        """Return the line of `place`."""
        self._line += self.text.count("\n", self._counted, self.place)
        self._counted = self.place
        return self._line

    def not_json(self, what: str) -> DataError:
        """Return the error for the text at `place`."""
        return _not_json(what, self.text, self.place, self.path, self.line_here(), self.place)


def _records(values: Iterable[Value | DataError], path: Path) -> Iterator[Record | DataError]:
    for value in values:
        if isinstance(value, DataError):
            yield value
        elif isinstance(value.value, dict):
            yield Record(value.value, path, value.line, value.number)
        else:
            found = f"found {_kind(value.value)}; expected an object with text and entities"
            yield DataError(found, path=path, line=value.line)


def _parse(text: str, place: int, path: Path, line: int, line_at: int = 0) -> tuple[object, int]:
    """Return the JSON value at `place` and its end; `line` is the line of the character `line_at`."""
    try:
        value, end = DECODER.raw_decode(text, place)
    except json.JSONDecodeError as error:
        raise _not_json(error.msg, text, error.pos, path, line, line_at) from None
    except RecursionError:
        raise _not_json("lists and objects are nested too deeply", text, place, path, line, line_at) from None
    except ValueError as error:
        problem = "a number has thousands of digits" if "digits" in str(error) else str(error)
        raise _not_json(problem, text, place, path, line, line_at) from None
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


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)
"""Decodes JSON and refuses what Python's own decoder lets pass: repeated keys, NaN."""
