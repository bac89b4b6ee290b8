"""Stretches of a text file: whole lines from one byte to another, so that several processes can read one file.

A stretch has the number of its first line, so that errors name the same lines as if the whole file were read.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from spantune.data.raw.encodings import MARK_NOTES, codec_of, mark_of
from spantune.data.raw.text_files import CHUNK, Stretch, cannot_be_read


class Bytes(NamedTuple):
    """The bytes of a file at which a stretch begins and ends, before the number of its first line is known."""

    path: Path
    begin: int
    end: int


def is_divisible(path: Path, encoding: str | None) -> bool:
    """Return whether `path` is a UTF-8 file on a disk, which can be read from any byte on.

    Raises:
        ConfigError: the encoding is unknown.
        DataError: the file cannot be read.
    """
    if encoding is not None and codec_of(encoding).name not in ("utf-8", "utf-8-sig"):
        return False
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as file:
            return mark_of(file.read(4)) not in MARK_NOTES
    except OSError as error:
        raise cannot_be_read(path, error) from None


def divided(path: Path, size: int) -> list[Bytes]:
    """Divide `path` into stretches of about `size` bytes, each of which begins at the start of a line.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        total = path.stat().st_size
        begins = [0]
        with path.open("rb") as file:
            for border in range(size, total, size):
                file.seek(border - 1)
                while (piece := file.readline(CHUNK)) and not piece.endswith(b"\n"):
                    pass
                if begins[-1] < file.tell() < total:
                    begins.append(file.tell())
    except OSError as error:
        raise cannot_be_read(path, error) from None
    return [Bytes(path, begin, end) for begin, end in zip(begins, [*begins[1:], total], strict=True)]


def count_lines(_: None, stretch: Bytes) -> int:
    """Return the number of line ends in a stretch. An engine applies this function to all stretches.

    Raises:
        DataError: the file cannot be read.
    """
    return sum(chunk.count(b"\n") for chunk in _chunks(stretch))


def line_starts(path: Path, stretch: Stretch) -> list[int]:
    """Return the byte offset in the file of each line of `stretch`, and of the end of the last line.

    Raises:
        DataError: the file cannot be read.
    """
    import numpy as np

    starts, offset = [stretch.begin], stretch.begin
    for chunk in _chunks(Bytes(path, stretch.begin, stretch.end)):
        ends = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n"))
        starts += (ends + (offset + 1)).tolist()
        offset += len(chunk)
    return starts


def _chunks(stretch: Bytes) -> Iterator[bytes]:
    try:
        with stretch.path.open("rb") as file:
            file.seek(stretch.begin)
            left = stretch.end - stretch.begin
            while left > 0 and (chunk := file.read(min(CHUNK, left))):
                left -= len(chunk)
                yield chunk
    except OSError as error:
        raise cannot_be_read(stretch.path, error) from None
