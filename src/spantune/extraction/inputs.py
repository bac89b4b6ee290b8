"""What to extract from: plain text, a document a line or a file, and every corpus format, from files or stdin.

Documents come as they are read, so that any number of them takes no memory. A pipe is read once, as stdin is. What
cannot be read (a line that is not UTF-8, a record that is no document) keeps its place as an Extraction that says why;
a file that breaks off is one such and the next file goes on. Annotations of a corpus are not looked at. It refuses,
before anything is read, a file that is not there or of no known format.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from spantune.core import ConfigError, DataError, Document, encodable, nearest
from spantune.data import Options, cannot_be_read, formats, is_stream, lines_of, read_bytes, read_text, try_lines
from spantune.encoding import Problem
from spantune.extraction.result import Extraction, failure

STDIN = "-"
TEXT = "text"
"""Plain text, one document a line: what `.txt` files, stdin and pipes are, where no format is named."""
_UNANNOTATED = Options(unannotated=True)

Item = Document | Extraction


@dataclass(frozen=True)
class Texts:
    """Files to extract from, each with its format; `whole` takes each file of plain text as one document."""

    files: tuple[tuple[str, str], ...]
    whole: bool = False

    @classmethod
    def open(cls, files: Sequence[str], format: str | None = None, *, whole: bool = False) -> Texts:
        """Check `files` and recognise their formats where none is named.

        Raises:
            ConfigError: the options do not go together.
            DataError: a file is not there, or of no known format.
        """
        if whole and format not in (None, TEXT):
            raise ConfigError(f"--whole-file takes plain text, not --format {format}; drop one of the two")
        if STDIN in files and len(files) > 1:
            raise ConfigError("- is stdin and stands alone; name files, or -")
        return cls(tuple((file, _format(file, format, whole)) for file in files), whole)

    def read(self, notes: Counter[str]) -> Iterator[Item]:
        """Yield the documents, and an `unreadable` Extraction for each that there is none of.

        `notes` counts what reading mended. A line of plain text is called by its number, with the file before it where
        there are several; a whole file by its path.
        """
        for file, format in self.files:
            try:
                yield from self._read(file, format, notes)
            except DataError as error:
                name = _shown(file)
                yield _unreadable(name if error.line is None else f"{name}:{error.line}", error)

    def count(self) -> int | None:
        """How many there are; None where stdin or a pipe is among them, which can be read once only."""
        if any(_is_stream(file) for file, _ in self.files):
            return None
        return sum(1 for _ in self.read(Counter()))

    def _read(self, file: str, format: str, notes: Counter[str]) -> Iterator[Item]:
        if format != TEXT:
            yield from _spooled(file, format, notes) if _is_stream(file) else _corpus(Path(file), file, format, notes)
        elif self.whole:
            yield Document(_shown(file), _whole(file))
        else:
            prefix = f"{_shown(file)}:" if len(self.files) > 1 else ""
            yield from _lines(file, prefix, notes)


def _format(file: str, format: str | None, whole: bool) -> str:
    """The format of a file, which is found to be there."""
    stream = _is_stream(file)
    if whole or format == TEXT or (format is None and (stream or file.endswith(".txt"))):
        if not stream and not (whole and Path(file).is_file()):  # which may be empty
            read_bytes(Path(file), 1)
        return TEXT
    if format is None:
        return formats.detect(file)
    if format not in formats.FORMATS:
        raise ConfigError(f"unknown format {format!r}; {nearest(format, (TEXT, *formats.FORMATS))}")
    if not stream and not (path := formats.resolve(file)).is_dir():
        read_bytes(path, 1)
    return format


def _is_stream(file: str) -> bool:
    return file == STDIN or is_stream(Path(file))


def _shown(file: str) -> str:
    """What a file is called in ids and errors."""
    return "stdin" if file == STDIN else encodable(file)


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    """The bytes of stdin or a pipe."""
    if file == STDIN and sys.stdin is None:
        raise DataError("is closed; name files, or give it something to read", path="stdin")
    try:
        if file == STDIN:
            yield sys.stdin.buffer
        else:
            with open(file, "rb") as pipe:
                yield pipe
    except OSError as error:
        raise cannot_be_read(Path(_shown(file)), error) from None


def _lines(file: str, prefix: str, notes: Counter[str]) -> Iterator[Item]:
    """The lines of a text that are not blank."""
    for number, text in _numbered(file, notes):
        name = f"{prefix}{number}"
        yield _unreadable(name, text) if isinstance(text, DataError) else Document(name, text)


def _numbered(file: str, notes: Counter[str]) -> Iterator[tuple[int, str | DataError]]:
    if not _is_stream(file):
        yield from try_lines(Path(file), notes)
        return
    with _opened(file) as content:
        yield from lines_of(content, Path(_shown(file)), notes)


def _whole(file: str) -> str:
    if not _is_stream(file):
        return read_text(Path(file))
    try:
        with _opened(file) as content:
            return content.read().decode("utf-8")
    except UnicodeDecodeError as error:
        found = error.object[error.start]
        raise DataError(
            f"not UTF-8: byte 0x{found:02X} at offset {error.start}; convert it", path=_shown(file)
        ) from None


def _corpus(path: Path, shown: str, format: str, notes: Counter[str]) -> Iterator[Item]:
    """The texts of a corpus; `shown` is what the file is called in errors."""
    for item in formats.items(path, format, notes, _UNANNOTATED):
        if isinstance(item, DataError):
            place = "" if item.line is None else f"-{item.line}"
            error = DataError(item.message, path=shown, line=item.line, field=item.field)
            yield _unreadable(f"{Path(shown).stem}{place}", error)
        else:
            yield Document(encodable(item.id), item.text, (), item.meta)


def _spooled(file: str, format: str, notes: Counter[str]) -> Iterator[Item]:
    """The texts of a corpus on stdin or in a pipe, by way of a file, since some formats are read twice."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(_shown(file)).name  # from which ids are made where there are none
        with _opened(file) as content, path.open("wb") as spool:
            shutil.copyfileobj(content, spool)
        try:
            yield from _corpus(path, _shown(file), format, notes)
        except DataError as error:
            raise DataError(error.message, path=_shown(file), line=error.line, field=error.field) from None


def _unreadable(name: str, error: DataError) -> Extraction:
    return failure(Document(encodable(name), ""), "unreadable", Problem("unreadable", encodable(str(error))))
