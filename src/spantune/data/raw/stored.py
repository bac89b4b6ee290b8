"""A corpus file in object storage, which readers use like a local path."""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from spantune.core import ConfigError, DataError, Place, is_url, shown_url

SMALLEST, LARGEST = 1 << 16, 1 << 22
"""The fewest and the most bytes that one request fetches."""


@dataclass(frozen=True)
class StoredFile:
    """The file at a URL, with the attributes and methods of a `Path` that readers of a corpus use.

    As a string, it is the URL without its query. It can be sent to other processes; each opens the file itself.
    """

    url: str

    def __str__(self) -> str:
        return shown_url(self.url)

    @property
    def name(self) -> str:
        """The last part of the path in the URL."""
        return PurePosixPath(str(self)).name

    @property
    def suffix(self) -> str:
        """The end of the name, from its last point on."""
        return PurePosixPath(str(self)).suffix

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(str(self)).stem

    def stat(self) -> os.stat_result:
        """Return a result with the mode of a regular file and the size.

        Raises:
            FileNotFoundError: there is no such file.
            DataError: there is no such bucket, or the storage refuses or does not answer.
        """
        place = _place(self.url)
        info = place.info()
        if not info.is_file:
            place.require_bucket()
            raise FileNotFoundError(str(self))
        return os.stat_result((stat.S_IFREG, 0, 0, 1, 0, 0, info.size, 0, 0, 0))

    def is_file(self) -> bool:
        """Return whether the file exists."""
        return self.exists()

    def exists(self) -> bool:
        """Return whether the file exists."""
        return bool(_place(self.url).info().is_file)

    def is_dir(self) -> bool:
        """Return False, because a URL names a single file."""
        return False

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open the file for reading bytes at any offset.

        Raises:
            DataError: as `stat` raises it.
        """
        assert mode == "rb", "files in object storage are read as bytes"
        place = _place(self.url)
        try:
            return io.BufferedReader(Fetched(place.open_raw()), LARGEST)
        except DataError:
            place.require_bucket()
            raise


class Fetched(io.RawIOBase):
    """A file that is fetched in pieces, each twice as large as the one before.

    So reading one line somewhere fetches little, and reading on takes few requests.

    Args:
        file: an open file of pyarrow; each of its reads is a request.
    """

    def __init__(self, file: Any):
        self._file, self._size = file, SMALLEST

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an offset; the next piece is a small one."""
        self._size = SMALLEST
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """Return the offset at which the next piece begins."""
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        """Fetch the next piece, at most as much as `buffer` holds, into `buffer`, and return its size."""
        piece = self._file.read(min(len(buffer), self._size))
        self._size = min(2 * self._size, LARGEST)
        buffer[: len(piece)] = piece
        return len(piece)

    def readall(self) -> bytes:
        """Fetch the rest of the file in one request."""
        return bytes(self._file.read())

    def close(self) -> None:
        """Close the file in the storage."""
        self._file.close()
        super().close()


def stored_file(url: str) -> Path:
    """Return the file at `url` as an object that readers use like a path."""
    return cast("Path", StoredFile(url))


def refuse_url(path: str) -> None:
    """Check that `path` is no URL. A file in object storage can be read only as a `StoredFile`.

    Raises:
        ConfigError: `path` is a URL.
    """
    if is_url(path):
        raise ConfigError(
            f"{shown_url(path)}: a corpus in object storage is read by `data check` and `data split` with "
            "--engine ray; give that, or download the file first"
        )


_place = lru_cache(maxsize=8)(Place.of)  # each process keeps its connections
