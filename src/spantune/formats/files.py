"""Text files as the formats see them: UTF-8 lines on the way in, a temporary name and a rename on the way out.

Lines end at LF or CRLF and at nothing else, so that U+2028 and its like stay in the text; a byte-order mark is
taken off and noted. It refuses what is missing, a folder, without content or not UTF-8, and says at which byte.
"""

from __future__ import annotations

import codecs
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from spantune.errors import DataError

BOM_NOTE = "byte-order mark taken off"


def read_lines(path: Path, notes: Counter[str]) -> Iterator[tuple[int, str]]:
    """Yield (1-based number, text without its line end) of every line that is not blank.

    Raises:
        DataError: the file is missing, a folder, unreadable, blank or not UTF-8.
    """
    offset, blank = 0, True
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                text = _decode(line, path, number, offset, notes).removesuffix("\n").removesuffix("\r")
                offset += len(line)
                if text.strip():
                    blank = False
                    yield number, text
    except OSError as error:
        raise _unreadable(path, error) from None
    if blank:
        raise _empty(path)


def read_whole(path: Path, notes: Counter[str]) -> str:
    """The file as one string, line ends as they are, without a byte-order mark.

    Raises:
        DataError: as `read_lines`.
    """
    try:
        text = _decode(path.read_bytes(), path, 1, 0, notes)
    except OSError as error:
        raise _unreadable(path, error) from None
    if not text.strip():
        raise _empty(path)
    return text


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A UTF-8 file that takes the name `path` when the block ends well, and vanishes when it does not.

    Raises:
        DataError: the folder is missing or not writable, or a text cannot be encoded.
    """
    if not path.parent.is_dir():
        raise DataError(f"cannot be written: there is no folder {path.parent}; make it first", path=path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except UnicodeEncodeError as error:
        found = ord(error.object[error.start])
        raise DataError(f"half of a surrogate pair, U+{found:04X}, is not text; mend the document", path=path) from None
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}; choose another place", path=path) from None
    finally:
        partial.unlink(missing_ok=True)


def _decode(content: bytes, path: Path, line: int, offset: int, notes: Counter[str]) -> str:
    """`content`, which begins at byte `offset` and line `line` of the file, as text."""
    if offset == 0 and content.startswith(codecs.BOM_UTF8):
        notes[BOM_NOTE] += 1
        content, offset = content[len(codecs.BOM_UTF8) :], len(codecs.BOM_UTF8)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8: byte 0x{content[error.start]:02X} at offset {offset + error.start} of the file; convert it, "
            "for example with `iconv -f GB18030 -t UTF-8`",
            path=path,
            line=line + content.count(b"\n", 0, error.start),
        ) from None


def _unreadable(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError("there is no such file; check the path", path=path)
    if isinstance(error, IsADirectoryError):
        return DataError("this is a folder; expected a file: name one inside it", path=path)
    return DataError(f"cannot be read: {error.strerror}; check its permissions", path=path)


def _empty(path: Path) -> DataError:
    return DataError("the file is empty; expected at least one document: check the path", path=path)
