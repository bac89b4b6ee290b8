"""A corpus file in object storage, which readers take for a local path."""

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
"""Bytes that are fetched at a time."""


@dataclass(frozen=True)
class StoredFile:
    """What readers of a corpus use of a `Path`, of the file at a URL; as a string it lacks what stands after `?`.

    It is sent to other processes, each of which opens the file itself.
    """

    url: str

    def __str__(self) -> str:
        return shown_url(self.url)

    @property
    def name(self) -> str:
        """The last part of the URL's path."""
        return PurePosixPath(str(self)).name

    @property
    def suffix(self) -> str:
        """What the name ends with, from its last point on."""
        return PurePosixPath(str(self)).suffix

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(str(self)).stem

    def stat(self) -> os.stat_result:
        """Return a result with mode and size.

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
        """Whether it is there."""
        return self.exists()

    def exists(self) -> bool:
        """Whether it is there."""
        return bool(_place(self.url).info().is_file)

    def is_dir(self) -> bool:
        """A URL names a single file."""
        return False

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open it for reading bytes, at any offset.

        Raises:
            DataError: as `stat`.
        """
        assert mode == "rb", "files in object storage are read as bytes"
        place = _place(self.url)
        try:
            return io.BufferedReader(Fetched(place.open_raw()), LARGEST)
        except DataError:
            place.require_bucket()
            raise


class Fetched(io.RawIOBase):
    """A file that is fetched in ever larger pieces: a line somewhere costs a small one, and reading on few large ones.

    Args:
        file: of pyarrow, whose every read is a request.
    """

    def __init__(self, file: Any):
        self._file, self._size = file, SMALLEST

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an offset; the next piece is small."""
        self._size = SMALLEST
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """Return the offset of the next piece."""
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        """Fetch the next piece into `buffer`, as far as it has room; returns its size."""
        piece = self._file.read(min(len(buffer), self._size))
        self._size = min(2 * self._size, LARGEST)
        buffer[: len(piece)] = piece
        return len(piece)

    def readall(self) -> bytes:
        """Fetch the rest at once."""
        return bytes(self._file.read())

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def stored_file(url: str) -> Path:
    """Return the file at a URL as what readers take for a path."""
    return cast("Path", StoredFile(url))


def refuse_url(path: str) -> None:
    """Check that `path` is no URL: a file in object storage is read where a `StoredFile` is made of it only.

    Raises:
        ConfigError: it is one.
    """
    if is_url(path):
        raise ConfigError(
            f"{shown_url(path)}: a corpus in object storage is read by `data check` and `data split` with "
            "--engine ray; give that, or download the file first"
        )


_place = lru_cache(maxsize=8)(Place.of)  # a connection is kept by each process
