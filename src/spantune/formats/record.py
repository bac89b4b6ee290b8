"""A JSON object together with the place where it stands, so that every wrong field can be named.

A field is handed out with the type that was asked for or not at all. It refuses what Python's reader lets pass in
silence: a repeated key, NaN, half of a surrogate pair.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spantune.errors import DataError
from spantune.formats.files import read_lines, read_whole

_BLANK = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile("[\ud800-\udfff]")
_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


@dataclass(frozen=True, slots=True)
class Record:
    """A JSON object at `path:line`, the `number`-th of its file; `inside` is its place in the object around it."""

    values: dict[str, Any]
    path: Path
    line: int
    number: int = 1
    inside: str = ""

    def error(self, message: str, field: str | None = None) -> DataError:
        """A DataError that says where this record, or its `field`, stands."""
        place = self.inside.rstrip(".") if field is None else self.inside + field
        return DataError(message, path=self.path, line=self.line, field=place or None)

    def text(self, field: str, *, blank: bool = False) -> str:
        """The string in `field`; an empty one only where `blank` allows it."""
        value = self._take(field, str, "a string")
        assert isinstance(value, str)
        if not value and not blank:
            raise self.error("the string is empty; expected at least one character: mend or remove it", field)
        if found := _SURROGATE.search(value):
            raise self.error(
                f"half of a surrogate pair, U+{ord(found[0]):04X}, at character {found.start()} is not text; "
                "write the whole character",
                field,
            )
        return value

    def integer(self, field: str) -> int:
        """The whole number in `field`."""
        value = self._take(field, int, "a whole number")
        assert isinstance(value, int)
        return value

    def rows(self, field: str) -> list[Record]:
        """The list of objects in `field`."""
        rows = self._take(field, list, "a list of objects ([] for a text without entities)")
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                raise self.error(f"found {_kind(row)}; expected an object", f"{field}[{index}]")
        return [
            Record(row, self.path, self.line, self.number, f"{self.inside}{field}[{index}].")
            for index, row in enumerate(rows)
        ]

    def object(self, field: str) -> dict[str, Any]:
        """The object in `field`; an empty one when the field is absent."""
        return dict(self._take(field, dict, "an object")) if field in self.values else {}

    def others(self, known: Iterable[str]) -> dict[str, Any]:
        """The fields that are not in `known`."""
        known = set(known)
        return {name: value for name, value in self.values.items() if name not in known}

    def _take(self, field: str, kind: type, wanted: str) -> Any:
        if field not in self.values:
            found = ", ".join(self.values) or "none"
            raise self.error(f"the field is missing; expected {wanted}; fields found: {found}", field)
        value = self.values[field]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(f"found {_kind(value)}; expected {wanted}", field)
        return value


def read_json_lines(path: Path, notes: Counter[str]) -> Iterator[Record]:
    """Yield the object on each line of `path`.

    Raises:
        DataError: a line is not JSON, or not an object.
    """
    for number, (line, text) in enumerate(read_lines(path, notes), start=1):
        value, end = _parse(text, _skip(text, 0), path, line)
        if (rest := _skip(text, end)) != len(text):
            raise _not_json("more follows the value", text, rest, path, line)
        yield _as_record(value, path, line, number)


def read_json_array(path: Path, notes: Counter[str]) -> Iterator[Record]:
    """Yield the objects of the JSON array in `path`; the whole file is held in memory.

    Raises:
        DataError: the file is not a JSON array of objects, or an empty one.
    """
    text = read_whole(path, notes)
    place = _skip(text, 0)
    if text[place] != "[":
        raise _not_json("expected [, which begins an array", text, place, path)
    place, line, counted, number = _skip(text, place + 1), 1, 0, 0
    if text[place : place + 1] == "]":
        raise DataError("the array is empty; expected at least one document: check the path", path=path)
    while True:
        line, counted, number = line + text.count("\n", counted, place), place, number + 1
        value, place = _parse(text, place, path)
        yield _as_record(value, path, line, number)
        place = _skip(text, place)
        mark, place = text[place : place + 1], place + 1
        if mark == "]":
            break
        if mark != ",":
            raise _not_json("expected , or ] after a value", text, place - 1, path)
        place = _skip(text, place)
    if (rest := _skip(text, place)) != len(text):
        raise _not_json("more follows the array", text, rest, path)


def misplaced(text: str, start: int, surface: str) -> str:
    """The message for an entity whose `surface` is not what `text` holds at `start`: found, expected, remedy."""
    found = text[max(start, 0) : max(start, 0) + len(surface)]
    places = [match.start() for match in re.finditer(f"(?={re.escape(surface)})", text)]
    where = f"it occurs at {', '.join(map(str, places[:5]))}" if places else "it does not occur in the text"
    return (
        f"the entity's text is {surface!r}, but the document holds {found!r} at {start}; {where}. Offsets count "
        "Unicode code points from 0: mend the start or the text"
    )


def _as_record(value: Any, path: Path, line: int, number: int) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"found {_kind(value)}; expected an object with text and entities", path=path, line=line)
    return Record(value, path, line, number)


def _parse(text: str, place: int, path: Path, first_line: int = 1) -> tuple[Any, int]:
    """The JSON value at `place` and where it ends; `text` begins at `first_line` of the file."""
    try:
        value, end = _DECODER.raw_decode(text, place)
    except json.JSONDecodeError as error:
        raise _not_json(error.msg, text, error.pos, path, first_line) from None
    except (ValueError, RecursionError) as error:
        raise _not_json(str(error), text, place, path, first_line) from None
    return value, end


def _skip(text: str, place: int) -> int:
    """The first place from `place` on that is not JSON white space."""
    blank = _BLANK.match(text, place)
    assert blank is not None
    return blank.end()


def _not_json(what: str, text: str, place: int, path: Path, first_line: int = 1) -> DataError:
    column = place - text.rfind("\n", 0, place)
    return DataError(
        f"not JSON at column {column}: {what}; mend it there (strings and names stand in double quotes, and in JSONL "
        "each line is one whole object), or name the file's format if it is another",
        path=path,
        line=first_line + text.count("\n", 0, place),
    )


def _kind(value: object) -> str:
    """What a JSON value is, in words."""
    return _KINDS.get(type(value)) or f"the number {value}"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is repeated")
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)
