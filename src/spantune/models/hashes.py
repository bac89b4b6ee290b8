"""SHA-256 hashes and other findings on a model's files, which are remembered, so that unchanged files are read once.

These files can be tens of gigabytes. A finding is stored in the cache with the size, the time of the last change and
the inode of its file. Nothing is stored for a file that was changed within the last two seconds, since another change
might leave all three values the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

from spantune.core import replace_text, sha256_of, to_json
from spantune.models.bundled import RECORD, cache_root

WANTED = (".json", ".safetensors", ".txt", ".jinja", ".model", ".tiktoken")
"""The endings of the names of a model's files."""
SETTLED_NS = 2_000_000_000
"""The least age of a file's last change, in nanoseconds, for a finding to be stored."""

log = logging.getLogger(__name__)

Stamp: TypeAlias = tuple[int, int, int]
"""The size of a file in bytes, the time of its last change in nanoseconds, and its inode."""


def hash_model(folder: Path) -> str:
    """Return one SHA-256 over the names and contents of a model folder's files; unchanged files are not read again."""
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(WANTED) and path.name != RECORD)
    lines = (f"{name}\t{value}\n" for name, value in hash_files(folder, names).items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def hash_files(folder: Path, names: Sequence[str], *, anew: bool = False) -> dict[str, str]:
    """Return the SHA-256 of each named file in `folder`, in the order of `names`.

    Args:
        folder: the folder.
        names: the names of files in it.
        anew: whether every file is read again, as the check of a download needs.
    """
    return read_once(folder, names, "hashes", lambda path: sha256_of(path), anew=anew)


def read_once(
    folder: Path, names: Sequence[str], kind: str, read: Callable[[Path], str], *, anew: bool = False
) -> dict[str, str]:
    """Return the result of `read` for each named file in `folder`, in the order of `names`.

    A result is remembered until the file changes.

    Args:
        folder: the folder.
        names: the names of files in it.
        kind: the name under which results of this function are remembered.
        read: computes the result of a file by its path; it is called in several threads.
        anew: whether `read` is called for every file, also for unchanged ones.
    """
    remembered = {} if anew else _read(folder, kind)
    stamps = {name: _stamp(folder / name) for name in names}
    values = {name: value for name, (stamp, value) in remembered.items() if stamps.get(name) == stamp}
    unread = [name for name in names if name not in values]
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        values |= zip(unread, pool.map(lambda name: read(folder / name), unread), strict=True)
    if unread:
        before = time.time_ns() - SETTLED_NS
        settled = [name for name in values if stamps[name][1] < before and _stamp(folder / name) == stamps[name]]
        _write(folder, kind, {name: (stamps[name], values[name]) for name in settled})
    return {name: values[name] for name in names}


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _record(folder: Path, kind: str) -> Path:
    return cache_root() / kind / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}.json"


def _read(folder: Path, kind: str) -> dict[str, tuple[Stamp, str]]:
    """Return what is remembered of a folder's files; it is empty if the record is missing or damaged."""
    try:
        rows = json.loads(_record(folder, kind).read_text("utf-8")).items()
        return {name: ((size, changed, inode), str(value)) for name, (size, changed, inode, value) in rows}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(folder: Path, kind: str, values: dict[str, tuple[Stamp, str]]) -> None:
    path, rows = _record(folder, kind), {name: [*stamp, value] for name, (stamp, value) in values.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, to_json(rows, indent=1, ascii_only=True))
    except OSError as error:
        log.debug("the %s of %s are not remembered: %s", kind, folder, error)
