"""The files of a corpus that is too large for one process: local paths, folders, globs and object storage.

Files are opened by pyarrow's filesystems, so that a URL (`s3://`, `gs://`, `file://`) is read like a local file. The
format of a file follows from its suffix, unless one is given.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from spantune.core import ConfigError, DataError, Place, encodable, is_url, shown_url

Kind = Literal["native", "text", "parquet"]
KINDS: dict[str, Kind] = {".jsonl": "native", ".ndjson": "native", ".txt": "text", ".parquet": "parquet"}
"""The formats that can be read in parts, by the suffix of a file."""
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Source:
    """A file to read: its absolute path or URL, its format, its size in bytes, and its modification time in seconds.

    `name` stands for the file in ids and errors: the path as it was given, without the options of a URL after `?`.
    """

    path: str
    name: str
    kind: Kind
    size: int
    changed: float


def find_sources(inputs: Sequence[str], format: str | None = None) -> list[Source]:
    """Return the files that `inputs` name: files, folders with everything below them, globs, and URLs of these.

    `format` is that of all files; None takes the format of each file from its suffix.

    Raises:
        ConfigError: the format cannot be read in parts, an input is stdin, or as `Place`.
        DataError: there is no such file, its suffix has no format, or the storage does not answer or wants credentials.
    """
    if format is not None and format not in get_args(Kind):
        raise ConfigError(
            f"--engine ray reads {', '.join(get_args(Kind))}, not --format {format}; convert the corpus first: "
            "spantune data convert"
        )
    sources: dict[str, Source] = {}
    for path in inputs:
        for source in _found(path, cast("Kind | None", format)):
            sources.setdefault(source.path, source)
    return list(sources.values())


def _found(path: str, kind: Kind | None) -> list[Source]:
    if path == "-":
        raise ConfigError("--engine ray reads files, not stdin; write the texts into a file")
    place = Place.of(path)
    info = place.info()
    if info.is_file:
        return [_source(place, path, info, kind)]
    infos, folder = place.files(recursive=True), place.inner.rstrip("/")
    if wild := _WILD.search(place.inner):
        folder = place.inner[: wild.start()].rpartition("/")[0]
        every = place.at(folder).files(recursive=True)
        infos = [info for info in every if fnmatch.fnmatch(info.path, place.inner)]
    infos = [info for info in infos if kind or wild or Path(info.path).suffix in KINDS]
    infos = [info for info in infos if not re.search(r"/[._]", info.path[len(folder) :])]
    if not infos:
        place.require_bucket()
        raise DataError(
            f"there is no file to extract from; expected files that end in {', '.join(KINDS)}: check the path",
            path=path,
        )
    return [_source(place.at(info.path), path, info, kind) for info in infos]


def _source(place: Place, given: str, info: Any, kind: Kind | None) -> Source:
    """Return the Source of a file; its name is a relative path if it is local and `given` is a relative path."""
    name = shown_url(place.outer)
    if not is_url(given):
        name = place.inner if os.path.isabs(given) else os.path.relpath(place.inner)
    suffix = Path(info.path).suffix
    if kind is None and suffix not in KINDS:
        raise DataError(
            f"--engine ray reads files that end in {', '.join(KINDS)}; name the format with --format, or convert the "
            "file: spantune data convert",
            path=name,
        )
    changed = info.mtime.timestamp() if info.mtime else 0.0
    path = place.outer if is_url(given) else place.inner
    return Source(path, encodable(name), kind or KINDS[suffix], info.size, changed)
