"""Files that are whole or absent: a temporary name beside the target, and a rename once everything is written; locks.

`replacing` and `replacing_path` write what a user asked for and report a failure as DataError. `replace_text` writes
files of our own, whose callers handle OSError themselves. A command first asks `require_new` for each of its outputs:
nothing is replaced without --force, and what is read is never replaced.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from spantune.core.errors import ConfigError, DataError


def require_folder(path: Path) -> None:
    """Check that the folder to write `path` into exists.

    Raises:
        DataError: it does not.
    """
    if not path.parent.is_dir():
        raise DataError(f"cannot be written: there is no folder {path.parent}; make it first", path=path)


def require_new(path: Path, inputs: Iterable[str | Path] = (), *, force: bool = False) -> None:
    """Check that writing the file or folder `path` replaces nothing, or with `force` nothing that is read.

    An empty folder counts as nothing. Two paths are the same where they lead to the same file, by links too.

    Raises:
        ConfigError: `path` exists and `force` is False, or `path` is one of `inputs`, holds one or lies in one, or is
            `-`, which people take for stdout.
    """
    if path == Path("-"):
        raise ConfigError("- would be a file of this name: only extract, without --out, writes to stdout; name a file")
    if not os.path.lexists(path):
        return
    if path.exists():
        if any(_is_read(Path(name), path) for name in inputs):
            raise ConfigError(f"{path} is read from, and would be written over; name another")
        if path.is_dir() and path.resolve() in (here := Path.cwd().resolve(), *here.parents):
            raise ConfigError(f"{path} is the folder that you are in, or above it; name another")
        if not path.is_file() and not path.is_dir():
            raise ConfigError(f"{path} is a device or pipe, which cannot be replaced; name a file")
    if force or (path.is_dir() and not any(path.iterdir())):
        return
    if path.is_dir():
        raise ConfigError(f"{path} exists and is not empty; name another, or give --force to replace it as a whole")
    raise ConfigError(f"{path} exists; name another, or give --force to replace it")


def _is_read(source: Path, target: Path) -> bool:
    """Whether to replace `target` would change `source`; both may be links, and `source` need not exist."""
    if not source.exists():
        return False
    if target.samefile(source) or target.resolve() in source.resolve().parents:
        return True
    return source.is_dir() and any(file.exists() and target.samefile(file) for file in source.rglob("*"))


@contextmanager
def overwriting(path: Path, *, force: bool) -> Iterator[Path]:
    """Yield the path to write `path` at: beside it where it exists and `force` is True, and then in its place.

    What exists is replaced, a folder with all that is in it, when the block succeeds, and is unchanged when it raises.

    Raises:
        DataError: it cannot be replaced, or is a folder where a file is to be written.
    """
    if not (force and os.path.lexists(path)):
        yield path
        return
    work = path.with_name(f".{path.name}.{os.getpid()}.new")
    new, old = work / path.name, work / "old"
    try:
        work.mkdir()
        yield new
        if path.is_dir() and not new.is_dir():
            raise DataError("is a folder, and a file is to be written; name a file inside it", path=path)
        if path.is_dir() or new.is_dir():
            path.rename(old)
        new.replace(path)
    except DataError as error:
        where = path if error.path == new else error.path
        raise DataError(error.message, path=where, line=error.line, field=error.field) from None
    except OSError as error:
        raise DataError(f"cannot be replaced: {error.strerror}; choose another place", path=path) from None
    finally:
        if os.path.lexists(old) and not os.path.lexists(path):
            old.rename(path)
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 text file that is renamed to `path` when the block succeeds and removed when it raises.

    The content is on the disk before the rename.

    Raises:
        DataError: the folder is missing or not writable, or a text cannot be encoded.
    """
    with replacing_path(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing_path(path: Path) -> Iterator[Path]:
    """As `replacing`, for a caller that creates the file or the folder at the given temporary path itself.

    Raises:
        DataError: as `replacing`, or `path` is a folder with content.
    """
    require_folder(path)
    try:
        with _renamed(path) as partial:
            yield partial
            if partial.is_dir() and path.is_dir() and any(path.iterdir()):
                raise DataError("the folder exists and is not empty; name another, or remove it", path=path)
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise DataError(f"half of a surrogate pair, U+{code:04X}, is not text; mend the document", path=path) from None
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}; choose another place", path=path) from None


def replace_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write `text` as the UTF-8 file `path` in one step; `durable` waits until it is on the disk.

    Raises:
        OSError: the file cannot be written; an earlier file at `path` is unchanged.
    """
    with _renamed(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")
        if durable:
            fsync_path(partial)


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to it when the block succeeds and removed when it raises."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def fsync_path(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_line(error: BaseException) -> str:
    """Return what an error says in one line of at most 200 characters.

    An OSError gives the system's message without number and path, and an error without a message its class name.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


class Locked(Exception):
    """Another process holds the lock; the caller turns this into an error that says what is locked."""


@contextmanager
def file_lock(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` inside the block, and wait for it at most `patience` seconds (`math.inf`: for ever).

    The file is made where it is absent, and it is not removed. A lock follows its file when the folder is renamed.

    Raises:
        Locked: another process holds the lock.
        OSError: the file cannot be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=patience)
    try:
        lock.acquire()
    except Timeout:
        raise Locked(str(path)) from None
    try:
        yield
    finally:
        lock.release()
