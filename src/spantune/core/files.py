"""Text files as the formats see them: UTF-8 lines on the way in, a temporary name and a rename on the way out.

Lines end at LF or CRLF and at nothing else, so that U+2028 and its like stay in the text; a byte-order mark and CRLF
are taken off and noted. Nothing holds a whole file: what is read at once is a line or a chunk. It refuses what is
missing, a folder, without content, not UTF-8 (it says at which byte) or of a line that no document has.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from spantune.core.errors import DataError

if TYPE_CHECKING:
    pass


def require_folder(path: Path) -> None:
    """Check that there is a folder to write `path` into.

    Raises:
        DataError: there is none.
    """
    if not path.parent.is_dir():
        raise DataError(f"cannot be written: there is no folder {path.parent}; make it first", path=path)


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A UTF-8 file that takes the name `path` when the block ends well, and vanishes when it does not.

    Raises:
        DataError: the folder is missing or not writable, or a text cannot be encoded.
    """
    with replacing_path(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing_path(path: Path) -> Iterator[Path]:
    """As `replacing`, for a writer that opens the file, or makes the folder, at the given temporary path itself."""
    require_folder(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        if partial.is_dir() and path.is_dir() and any(path.iterdir()):
            raise DataError("the folder exists and is not empty; name another, or remove it", path=path)
        partial.replace(path)
    except UnicodeEncodeError as error:
        found = ord(error.object[error.start])
        raise DataError(f"half of a surrogate pair, U+{found:04X}, is not text; mend the document", path=path) from None
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}; choose another place", path=path) from None
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
