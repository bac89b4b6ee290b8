"""What to extract from: plain text, a document a line or a file, and every corpus format, from files or stdin.

Documents come as they are read, so that any number of them takes no memory. What cannot be read (a line that is not
UTF-8, a record that is no document) keeps its place as an Extraction that says why; a file that breaks off is one such
and the next file goes on. Annotations of a corpus are not looked at. It refuses, before anything is read, a file that
is not there or of no known format.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spantune import formats
from spantune.answer import Problem
from spantune.document import Document
from spantune.errors import ConfigError, DataError, nearest
from spantune.extraction import Extraction, failure
from spantune.formats.files import lines_of, read_bytes, read_text, try_lines

STDIN = "-"
TEXT = "text"
"""Plain text, one document a line: what `.txt` files and stdin are, where no format is named."""
_UNANNOTATED = formats.Options(unannotated=True)

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
                yield _unreadable(file if error.line is None else f"{file}:{error.line}", error)

    def count(self) -> int | None:
        """How many there are; None for stdin, which can be read once only."""
        if any(file == STDIN for file, _ in self.files):
            return None
        return sum(1 for _ in self.read(Counter()))

    def _read(self, file: str, format: str, notes: Counter[str]) -> Iterator[Item]:
        if format != TEXT:
            yield from _spooled(format, notes) if file == STDIN else _corpus(Path(file), file, format, notes)
        elif self.whole:
            yield Document("stdin" if file == STDIN else file, _whole(file))
        else:
            prefix = f"{file}:" if len(self.files) > 1 else ""
            yield from _lines(file, prefix, notes)


def _format(file: str, format: str | None, whole: bool) -> str:
    """The format of a file, which is found to be there."""
    if whole or format == TEXT or (format is None and (file == STDIN or file.endswith(".txt"))):
        if file != STDIN and not (whole and Path(file).is_file()):  # which may be empty
            read_bytes(Path(file), 1)
        return TEXT
    if format is None:
        return formats.detect(file)
    if format not in formats.FORMATS:
        raise ConfigError(f"unknown format {format!r}; {nearest(format, (TEXT, *formats.FORMATS))}")
    path = formats.resolve(file)
    if file != STDIN and not path.is_dir():
        read_bytes(path, 1)
    return format


def _lines(file: str, prefix: str, notes: Counter[str]) -> Iterator[Item]:
    """The lines of a text that are not blank."""
    lines = lines_of(sys.stdin.buffer, Path("stdin"), notes) if file == STDIN else try_lines(Path(file), notes)
    for number, text in lines:
        name = f"{prefix}{number}"
        yield _unreadable(name, text) if isinstance(text, DataError) else Document(name, text)


def _whole(file: str) -> str:
    if file != STDIN:
        return read_text(Path(file))
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        found = error.object[error.start]
        raise DataError(f"not UTF-8: byte 0x{found:02X} at offset {error.start}; convert it", path="stdin") from None


def _corpus(path: Path, shown: str, format: str, notes: Counter[str]) -> Iterator[Item]:
    """The texts of a corpus; `shown` is what the file is called in errors."""
    for item in formats.items(path, format, notes, _UNANNOTATED):
        if isinstance(item, DataError):
            place = "" if item.line is None else f"-{item.line}"
            error = DataError(item.message, path=shown, line=item.line, field=item.field)
            yield _unreadable(f"{Path(shown).stem}{place}", error)
        else:
            yield Document(item.id, item.text, (), item.meta)


def _spooled(format: str, notes: Counter[str]) -> Iterator[Item]:
    """The texts of a corpus on stdin, by way of a file, since some formats are read twice."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stdin"
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        try:
            yield from _corpus(path, "stdin", format, notes)
        except DataError as error:
            raise DataError(error.message, path="stdin", line=error.line, field=error.field) from None


def _unreadable(name: str, error: DataError) -> Extraction:
    return failure(Document(name, ""), "unreadable", Problem("unreadable", str(error)))
