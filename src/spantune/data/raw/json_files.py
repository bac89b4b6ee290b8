"""Files of JSON: lines with one value each, or one array, whose values are read one by one.

A value that spans several lines is parsed in a window that moves through the file, so that only one is in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from spantune.core import DataError, replacing, to_json
from spantune.data.raw.document import Item, Options, RawDocument, RawEntity, each
from spantune.data.raw.encodings import open_as_utf8
from spantune.data.raw.json_records import Record
from spantune.data.raw.json_text import kind_of, not_json, parse_value, skip_blank
from spantune.data.raw.text_files import CHUNK, LINE_LIMIT, Stretch, cannot_be_read, oversized, read_chunks, try_lines

_BYTES_BEFORE = b"\xef\xbb\xbf \t\r\n"  # a byte-order mark and white space


class Value(NamedTuple):
    """A JSON value of any type, the line on which it begins, and its number in the file, both from 1."""

    value: object
    line: int
    number: int


def read_json_lines(
    path: Path, notes: Counter[str], encoding: str | None = None, stretch: Stretch | None = None
) -> Iterator[Record | DataError]:
    """Yield the object on each line of `path`, or a DataError for a line without one.

    With `stretch`, only the lines of this part are read, and the `number` of a record counts from its beginning.
    """
    return _records(read_line_values(path, notes, encoding, stretch), path)


def read_line_values(
    path: Path, notes: Counter[str], encoding: str | None = None, stretch: Stretch | None = None
) -> Iterator[Value | DataError]:
    """Yield the JSON value on each line of `path`, or only of `stretch`; a DataError for a line without one."""
    lines = try_lines(path, notes, encoding=encoding, stretch=stretch)
    for number, (line, text) in enumerate(lines, start=1):
        try:
            if isinstance(text, DataError):
                raise text
            yield Value(_line_value(text, path, line), line, number)
        except DataError as error:
            yield error


def parse_line(text: str, path: Path, line: int) -> Record | DataError:
    """Return the object that makes up a line, or a DataError if the line is not one object."""
    try:
        value = Value(_line_value(text, path, line), line, line)
    except DataError as error:
        return error
    return next(_records([value], path))


def _line_value(text: str, path: Path, line: int) -> object:
    try:
        value, end = parse_value(text, skip_blank(text, 0), path, line)
    except DataError as error:
        if not (text.lstrip().startswith("{") and text.rstrip().endswith(("{", "[", ","))):
            raise
        raise DataError(
            f"{error.message.partition(':')[0]}: the object does not end on its line; in JSONL each line is one whole "
            "object: write it so (jq -c . FILE), or make the file an array of objects",
            path=path,
            line=line,
        ) from None
    if (rest := skip_blank(text, end)) != len(text):
        raise not_json("more follows the value", text, rest, path, line)
    return value


def write_json_lines(path: Path, records: Iterable[Mapping[str, object]]) -> None:
    """Write `records` to `path`, one on each line.

    Raises:
        DataError: the file cannot be written.
    """
    with replacing(path) as file:
        for record in records:
            file.write(to_json(record) + "\n")


def write_json(path: Path, records: Iterable[Mapping[str, object]]) -> None:
    """Write `records` to `path`: one on each line if its name ends in `.jsonl`, else as an array.

    Raises:
        DataError: the file cannot be written.
    """
    if path.suffix.lower() == ".jsonl":
        write_json_lines(path, records)
        return
    with replacing(path) as file:
        before = "[\n"
        for record in records:
            file.write(before + to_json(record))
            before = ",\n"
        file.write("\n]\n" if before == ",\n" else "[\n\n]\n")


def read_documents(
    path: Path, notes: Counter[str], options: Options, text_field: str, parse: Callable[[Record], RawEntity]
) -> Iterator[Item]:
    """Yield the documents of a file of objects that have a text and `entities` but no id, called `<stem>-<number>`.

    Args:
        path: JSON lines, or an array.
        notes: counts what `read_json` repairs.
        options: the encoding, and whether `entities` may be missing.
        text_field: the field of the text. The other fields, except `entities`, become the meta.
        parse: returns the entity that an object of `entities` states.

    Raises:
        DataError: the file is neither JSONL nor an array of objects.
    """

    def document(record: Record) -> RawDocument:
        entities = tuple(map(parse, record.entities(optional=options.unannotated)))
        text, meta = record.text(text_field, blank=True), record.others((text_field, "entities"))
        return RawDocument(f"{path.stem}-{record.number}", text, entities, path, record.line, meta)

    return each(read_json(path, notes, options.encoding), document)


def begins_array(path: Path, encoding: str | None = None) -> bool:
    """Return whether the first character of `path` begins a JSON array. Only bytes are examined, so lines may be wrong.

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
    """Yield the objects of `path`. Its first character decides whether it is a JSON array or JSONL.

    Raises:
        DataError: as `read_json_array` raises it, if it is an array.
    """
    return (read_json_array if begins_array(path, encoding) else read_json_lines)(path, notes, encoding)


def read_json_array(path: Path, notes: Counter[str], encoding: str | None = None) -> Iterator[Record | DataError]:
    """Yield the objects of the JSON array in `path`, and a DataError for each other element. Only one is in memory.

    Raises:
        DataError: the file is not a JSON array, or the array is empty.
    """
    return _records(read_array_values(path, notes, encoding), path)


def read_array_values(path: Path, notes: Counter[str], encoding: str | None = None) -> Iterator[Value]:
    """Yield the elements of the JSON array in `path`. Only one is in memory.

    Raises:
        DataError: the file is not a JSON array, or the array is empty.
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
    """Return the one JSON value of `path`. The whole file is in memory.

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
    """The part of a file that is being parsed. It moves through the file chunk by chunk."""

    def __init__(self, path: Path, notes: Counter[str], encoding: str | None):
        self.path, self.text, self.place = path, "", 0
        self._line, self._counted = 1, 0  # a line number, and the place in `text` that is on this line
        self._chunks = read_chunks(path, notes, encoding)

    def more(self, size: int = 1) -> bool:
        """Drop the text before `place` and read chunks of at least `size` characters; False at the end of the file."""
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
        """Move `place` to the next character that is not white space, and return it; "" at the end of the file."""
        while True:
            self.place = skip_blank(self.text, self.place)
            if self.place < len(self.text) or not self.more():
                return self.text[self.place : self.place + 1]

    def value(self) -> object:
        """Return the JSON value at `place`, and move `place` to the end of the value."""
        while True:
            try:
                value, end = parse_value(self.text, self.place, self.path, self.line_here(), self.place)
                if end < len(self.text) or not self.more():  # a number might continue in the next chunk
                    self.place = end
                    return value
            except DataError:
                length = len(self.text) - self.place
                if length > LINE_LIMIT:
                    raise oversized(self.path, self.line_here()) from None
                if not self.more(length):  # the size is doubled, so that no value is parsed many times
                    raise

    def line_here(self) -> int:
        """Return the number of the line at `place`."""
        self._line += self.text.count("\n", self._counted, self.place)
        self._counted = self.place
        return self._line

    def not_json(self, what: str) -> DataError:
        """Return the error for what stands at `place`."""
        return not_json(what, self.text, self.place, self.path, self.line_here(), self.place)


def element(value: Value, before: int) -> str:
    """Return the place of a value in its array, such as `[3]`, if the line does not identify it; "" otherwise.

    That is so if the previous value begins on the same line; `before` is the line of that value.
    """
    return f"[{value.number - 1}]" if value.line == before else ""


def _records(values: Iterable[Value | DataError], path: Path) -> Iterator[Record | DataError]:
    before = 0
    for value in values:
        if isinstance(value, DataError):
            yield value
            continue
        place, before = element(value, before), value.line
        if isinstance(value.value, dict):
            yield Record(value.value, path, value.line, value.number, place and f"{place}.")
        else:
            found = f"found {kind_of(value.value)}; expected an object with text and entities"
            yield DataError(found, path=path, line=value.line, field=place or None)
