"""The documents to extract from: plain text (one document per line or per file) and every corpus format.

Documents are yielded as they are read, so that memory does not grow with their number. Stdin and pipes are read once.
A line or record that cannot be read is yielded as an `unreadable` Extraction, in its place. A file that cannot be read
to its end is yielded in the same way, and reading continues with the next file. Annotations of a corpus are ignored.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

from spantune.core import (
    ConfigError,
    DataError,
    Document,
    Extraction,
    Prediction,
    Problem,
    ProblemKind,
    Status,
    encodable,
    from_document,
    nearest,
)
from spantune.data import Options, cannot_be_read, formats, is_stream, lines_of, read_bytes, read_text, try_lines
from spantune.extraction.result import failure

STDIN = "-"
TEXT = "text"
"""Plain text, one document per line: the format of `.txt` files, stdin and pipes where no format is given."""
JSON_NOTE = "line that looks like a JSON object, taken for text; --format native reads its text"
_UNANNOTATED = Options(unannotated=True)
"""The options to read a corpus with: its documents need no entities."""


@dataclass(frozen=True)
class Texts:
    """The files to extract from.

    Args:
        files: pairs of a file and its format; `-` is stdin.
        whole: whether each file of plain text is one document, instead of one document a line.
        options: what the files do not state themselves, such as their encoding.
    """

    files: tuple[tuple[str, str], ...]
    whole: bool = False
    options: Options = _UNANNOTATED

    @classmethod
    def open(
        cls, files: Sequence[str], format: str | None = None, *, whole: bool = False, options: Options = _UNANNOTATED
    ) -> Texts:
        """Check that `files` exist, and detect their formats if `format` is None.

        Raises:
            ConfigError: the options contradict each other, or the format is unknown.
            DataError: a file does not exist or cannot be read, or its format is not recognised.
        """
        if whole and format not in (None, TEXT):
            raise ConfigError(f"--whole-file takes plain text, not --format {format}; drop one of the two")
        if STDIN in files and len(files) > 1:
            raise ConfigError("- is stdin and stands alone; name files, or -")
        if options.encoding is not None and any(map(_is_stream, files)):
            raise ConfigError(
                "--encoding is of files, and what comes through a pipe is UTF-8; write it into a file, or convert it: "
                f"iconv -f {options.encoding} -t UTF-8"
            )
        options = replace(options, unannotated=True)
        return cls(tuple((file, _format(file, format, whole, options)) for file in files), whole, options)

    def read(self, notes: Counter[str]) -> Iterator[Prediction]:
        """Yield the documents, and an `unreadable` Extraction for each that cannot be read.

        `notes` counts what was repaired while reading. A line of plain text has its line number as id; with several
        files, the file's name stands before it, as in `notes.txt:3`. A whole file has its path as id.
        """
        for file, format in self.files:
            try:
                yield from self._read(file, format, notes)
            except DataError as error:
                name = _shown(file)
                yield unreadable(name if error.line is None else f"{name}:{error.line}", error)

    def count(self) -> int | None:
        """Return the number of documents, for which all files are read; None if there is stdin or a pipe among them."""
        if any(_is_stream(file) for file, _ in self.files):
            return None
        return sum(1 for _ in self.read(Counter()))

    def _read(self, file: str, format: str, notes: Counter[str]) -> Iterator[Prediction]:
        if format != TEXT:
            source = _Source(Path(file), file, format, self.options)
            yield from _spooled(source, notes) if _is_stream(file) else _corpus(source, notes)
        elif self.whole:
            yield Document(_shown(file), _whole(file, self.options.encoding))
        else:
            prefix = f"{_shown(file)}:" if len(self.files) > 1 else ""
            yield from _lines(file, prefix, self.options.encoding, notes)


class _Source(NamedTuple):
    """A corpus to read texts from: its path, its name in errors, its format, and the options to read it with."""

    path: Path
    shown: str
    format: str
    options: Options


def _format(file: str, format: str | None, whole: bool, options: Options) -> str:
    """Return the format of a file; check first that the file exists.

    Raises:
        DataError: the file does not exist or cannot be read, or its format is not recognised.
        ConfigError: there is no such format.
    """
    stream = _is_stream(file)
    may_be_text = (" " in file or not Path(file).suffix) and not file.startswith("bundled:")
    if not stream and may_be_text and not os.path.exists(file):
        raise DataError(
            "there is no such file; check the path, or give the text itself on standard input: "
            "echo TEXT | spantune extract RUN -",
            path=file,
        )
    if whole or format == TEXT or (format is None and (stream or file.endswith(".txt"))):
        if not stream and not (whole and Path(file).is_file()):  # a whole file may be empty
            read_bytes(Path(file), 1)
        return TEXT
    if format is None:
        return formats.detect(file, options)
    if not formats.is_known(format):
        raise ConfigError(f"unknown format {format!r}; {nearest(format, (TEXT, *formats.names()))}")
    if not stream and not (path := formats.resolve(file)).is_dir():
        read_bytes(path, 1)
    return format


def _is_stream(file: str) -> bool:
    return file == STDIN or is_stream(Path(file))


def _shown(file: str) -> str:
    """Return the name of a file for ids and errors."""
    return "stdin" if file == STDIN else encodable(file)


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    """Open stdin or a pipe as bytes."""
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


def _lines(file: str, prefix: str, encoding: str | None, notes: Counter[str]) -> Iterator[Prediction]:
    """Yield a document for each line that is not blank."""
    for number, text in _numbered(file, encoding, notes):
        if isinstance(text, str) and text.startswith("{") and '"text"' in text:
            notes[JSON_NOTE] += 1
        id = f"{prefix}{number}"
        yield unreadable(id, text) if isinstance(text, DataError) else Document(id, text)


def _numbered(file: str, encoding: str | None, notes: Counter[str]) -> Iterator[tuple[int, str | DataError]]:
    if not _is_stream(file):
        yield from try_lines(Path(file), notes, encoding=encoding)
        return
    with _opened(file) as content:
        yield from lines_of(content, Path(_shown(file)), notes)


def _whole(file: str, encoding: str | None) -> str:
    if not _is_stream(file):
        return read_text(Path(file), encoding=encoding)
    try:
        with _opened(file) as content:
            return content.read().decode("utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            f"not UTF-8: byte 0x{byte:02X} at offset {error.start}; convert it", path=_shown(file)
        ) from None


def _corpus(source: _Source, notes: Counter[str]) -> Iterator[Prediction]:
    """Yield the texts of a corpus.

    Status and problems that an earlier extraction wrote into `meta` are dropped. A document that was unreadable then
    and has no text stays unreadable.
    """
    shown = source.shown
    for raw_document in formats.items(source.path, source.format, notes, source.options):
        if isinstance(raw_document, DataError):
            suffix = "" if raw_document.line is None else f"-{raw_document.line}"
            error = DataError(raw_document.message, path=shown, line=raw_document.line, field=raw_document.field)
            yield unreadable(f"{Path(shown).stem}{suffix}", error)
        else:
            yield as_input(raw_document.id, raw_document.text, raw_document.meta)


def _spooled(source: _Source, notes: Counter[str]) -> Iterator[Prediction]:
    """Yield the texts of a corpus on stdin or in a pipe; it is copied to a file, since some formats are read twice."""
    shown = _shown(source.shown)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(shown).name  # documents without an id get one that is made from this name
        with _opened(source.shown) as content, path.open("wb") as spool:
            shutil.copyfileobj(content, spool)
        try:
            yield from _corpus(source._replace(path=path, shown=shown), notes)
        except DataError as error:
            raise DataError(error.message, path=shown, line=error.line, field=error.field) from None


def as_input(id: str, text: str, meta: Mapping[str, object]) -> Prediction:
    """Return a document without the status and problems that an earlier extraction wrote into `meta`.

    A document that was unreadable then and has no text is returned as an `unreadable` Extraction.
    """
    earlier = from_document(Document(encodable(id), text, (), meta))
    return earlier if earlier.status is Status.UNREADABLE and not earlier.document.text else earlier.document


def unreadable(id: str, error: DataError) -> Extraction:
    """Return the Extraction that stands in the place of a document that cannot be read."""
    problem = Problem(ProblemKind.UNREADABLE, encodable(str(error)))
    return failure(Document(encodable(id), ""), Status.UNREADABLE, problem)
