"""Read text files by lines or chunks: UTF-8, or the encoding that the user or a byte-order mark names.

Lines end only at LF or CRLF, so that U+2028 and similar characters stay in the text. A byte-order mark and the CR of a
CRLF are removed and noted. No file is held in memory as a whole. A file is refused if it is missing, a folder or empty,
if it has another encoding (the message names the byte), or if a line is too long for a document.
"""

from __future__ import annotations

import codecs
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from spantune.core import DataError
from spantune.data.raw.encodings import advice, open_as_utf8, window

BOM_NOTE = "byte-order mark taken off"
CRLF_NOTE = "CRLF line end"
LINE_LIMIT = 64 << 20  # the most bytes of a line
CHUNK = 1 << 20


class Stretch(NamedTuple):
    """A part of a text file, in bytes, from the beginning of a line on.

    Args:
        begin: the byte at which the first line begins.
        end: the lines that begin before this byte belong to the part.
        line: the number of the first line, from 1.
    """

    begin: int
    end: int
    line: int


def read_lines(
    path: Path, notes: Counter[str], *, blank: bool = False, encoding: str | None = None
) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text without its line end) of every line; blank lines only if `blank` is True.

    Raises:
        DataError: the file is missing, a folder, unreadable or blank, has another encoding, or has a line over
            `LINE_LIMIT`.
        ConfigError: the encoding is unknown.
    """
    for number, text in try_lines(path, notes, blank=blank, encoding=encoding):
        if isinstance(text, DataError):
            raise text
        yield number, text


def try_lines(
    path: Path,
    notes: Counter[str],
    *,
    blank: bool = False,
    encoding: str | None = None,
    stretch: Stretch | None = None,
) -> Iterator[tuple[int, str | DataError]]:
    """Read as `read_lines`, but yield a DataError for a line that is not UTF-8, and continue.

    With `stretch`, only the lines of this part are read; all of them may be blank.

    Raises:
        DataError: as `read_lines` raises it, except for such lines.
    """
    empty = True
    try:
        with open_as_utf8(path, notes, encoding) as file:
            for number, text in lines_of(file, path, notes, blank=True, stretch=stretch):
                filled = isinstance(text, DataError) or bool(text.strip())
                empty = empty and not filled
                if filled or blank:
                    yield number, text
    except OSError as error:
        raise cannot_be_read(path, error) from None
    if empty and stretch is None:
        raise _empty(path)


def lines_of(
    file: BinaryIO, path: Path, notes: Counter[str], *, blank: bool = False, stretch: Stretch | None = None
) -> Iterator[tuple[int, str | DataError]]:
    """Read as `try_lines` does, from the open file `file`, which may be empty; errors name it `path`.

    Raises:
        DataError: a line is over `LINE_LIMIT`, or the lines end in CR alone.
    """
    offset, number, end = 0, 0, sys.maxsize
    if stretch is not None:
        offset, end, number = stretch.begin, stretch.end, stretch.line - 1
        file.seek(offset)
    while offset < end and (line := file.readline(LINE_LIMIT + 1)):
        number += 1
        if len(line) > LINE_LIMIT:
            raise oversized(path, number)
        text = _line(line, path, number, offset, notes)
        if number == 1 and b"\r" in line[:-1] and not line.endswith(b"\n"):
            raise DataError(
                "the lines end in CR alone, as on old Macs; write them with LF: tr '\\r' '\\n' < FILE > NEW", path=path
            )
        offset += len(line)
        if blank or isinstance(text, DataError) or text.strip():
            yield number, text


def read_chunks(path: Path, notes: Counter[str], encoding: str | None = None) -> Iterator[str]:
    """Yield the file as strings of about a megabyte, with its line ends, without a byte-order mark.

    Raises:
        DataError: as `read_lines` raises it; there is no limit for lines.
    """
    offset, line, rest, empty, split = 0, 1, b"", True, False
    try:
        with open_as_utf8(path, notes, encoding) as file:
            while chunk := file.read(CHUNK):
                content = rest + chunk
                rest = _cut_character(content)
                content = content[: len(content) - len(rest)]
                notes[CRLF_NOTE] += content.count(b"\r\n") + (split and content.startswith(b"\n"))
                split = content.endswith(b"\r")
                text = _decode(content, path, line, offset, notes)
                offset, line = offset + len(content), line + content.count(b"\n")
                empty = empty and not text.strip()
                yield text
        if rest:
            yield _decode(rest, path, line, offset, notes)
    except OSError as error:
        raise cannot_be_read(path, error) from None
    if empty:
        raise _empty(path)


def is_stream(path: Path) -> bool:
    """Return whether `path` is a pipe or a device, which can be read only once."""
    try:
        mode = path.stat().st_mode
    except OSError:  # opening the path will say what is wrong
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def read_bytes(path: Path, size: int = -1) -> bytes:
    """Return the first `size` bytes of the file; all of them if `size` is negative.

    Raises:
        DataError: the file is missing, a folder, unreadable or empty.
    """
    try:
        with path.open("rb") as file:
            content = file.read(size)
    except OSError as error:
        raise cannot_be_read(path, error) from None
    if not content:
        raise _empty(path)
    return content


def read_text(path: Path, notes: Counter[str] | None = None, encoding: str | None = None) -> str:
    """Return the exact content of the file, which may be empty. Line ends and a byte-order mark of UTF-8 stay.

    The byte-order mark of UTF-16 or UTF-32 is removed, because offsets do not count it.

    Raises:
        DataError: the file is missing, a folder or unreadable, has another encoding, or is over `LINE_LIMIT`.
        ConfigError: the encoding is unknown.
    """
    try:
        with open_as_utf8(path, Counter() if notes is None else notes, encoding) as file:
            content = file.read(LINE_LIMIT + 1)
    except OSError as error:
        raise cannot_be_read(path, error) from None
    if len(content) > LINE_LIMIT:
        raise oversized(path, 1)
    marked = content.startswith(codecs.BOM_UTF8)
    return ("\ufeff" if marked else "") + _decode(content, path, 1, 0, Counter())


def oversized(path: Path, line: int) -> DataError:
    """Return the error for a line, or for a JSON value, that is too long to be a document."""
    return DataError(
        f"over {LINE_LIMIT >> 20} MiB in one piece, which is no document; is a line break or a bracket missing, or is "
        "the file of another format? Name it with --format, or split the text",
        path=path,
        line=line,
    )


def _line(line: bytes, path: Path, number: int, offset: int, notes: Counter[str]) -> str | DataError:
    """Return the text of a line without its line end, or the DataError for a line that is not UTF-8."""
    try:
        text = _decode(line, path, number, offset, notes).removesuffix("\n")
    except DataError as error:
        return error
    if text.endswith("\r"):
        notes[CRLF_NOTE] += 1
        return text[:-1]
    return text


def _decode(content: bytes, path: Path, line: int, offset: int, notes: Counter[str]) -> str:
    """Decode `content`, which begins at byte `offset` and at line `line` of the file.

    Raises:
        DataError: a byte is not UTF-8.
    """
    if offset == 0 and content.startswith(codecs.BOM_UTF8):
        notes[BOM_NOTE] += 1
        content, offset = content[len(codecs.BOM_UTF8) :], len(codecs.BOM_UTF8)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8: byte 0x{content[error.start]:02X} at offset {offset + error.start} of the file; "
            f"{advice(window(path, offset + error.start, content))}",
            path=path,
            line=line + content.count(b"\n", 0, error.start),
        ) from None


def _cut_character(content: bytes) -> bytes:
    """Return the bytes of the UTF-8 character at the end of `content` that is not complete; b"" if it is."""
    for size in range(1, min(4, len(content)) + 1):
        byte = content[-size]
        if byte & 0xC0 != 0x80:  # the first byte of a character
            size_of_character = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            return content[-size:] if size_of_character > size else b""
    return b""


def cannot_be_read(path: Path, error: OSError) -> DataError:
    """Return the error for a file that cannot be read."""
    if isinstance(error, FileNotFoundError):
        return DataError("there is no such file; check the path", path=path)
    if isinstance(error, IsADirectoryError):
        return DataError("this is a folder; expected a file: name one inside it", path=path)
    return DataError(f"cannot be read: {error.strerror}; check its permissions", path=path)


def _empty(path: Path) -> DataError:
    return DataError("the file is empty; expected at least one document: check the path", path=path)
