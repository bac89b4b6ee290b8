"""Atomic writing of files, which are either complete or absent, and lock files.

A file is written under a temporary name beside its target and renamed when it is complete. `replacing` and
`replacing_path` write files that a user asked for, and raise a DataError if this fails. `replace_text` writes files of
spantune itself; its callers handle the OSError. Before it writes, a command calls `require_new` for each of its
outputs: an existing file is replaced only with --force, and an input is never replaced.
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
    """Check that the parent folder of `path` exists, before `path` is written.

    Raises:
        DataError: the folder does not exist.
    """
    if not path.parent.is_dir():
        raise DataError(f"cannot be written: there is no folder {path.parent}; make it first", path=path)


def require_new(path: Path, inputs: Iterable[str | Path] = (), *, force: bool = False) -> None:
    """Check that a command may write the file or folder `path`.

    An empty folder may always be written to. Links are followed: two paths are the same if they lead to the same file.

    Args:
        path: the output.
        inputs: the files and folders that the command reads.
        force: whether existing output may be replaced. Inputs may never be replaced.

    Raises:
        ConfigError: `path` exists and `force` is False; `path` is one of `inputs`, contains one or is a file inside
            one; `path` is the working folder or contains it; `path` is a device or pipe; or `path` is `-`, which users
            may take for stdout.
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
    """Whether replacing `target` would change `source`. Both may be links, and `source` need not exist."""
    if not source.exists():
        return False
    if target.samefile(source) or target.resolve() in source.resolve().parents:
        return True
    return source.is_dir() and any(file.exists() and target.samefile(file) for file in source.rglob("*"))


@contextmanager
def overwriting(path: Path, *, force: bool) -> Iterator[Path]:
    """Yield the path at which the block must write the new file or folder for `path`.

    If `path` exists and `force` is True, this is a temporary path beside it. When the block succeeds, the new file or
    folder replaces the old one, a folder with its whole content. When the block raises, the old one is unchanged.
    Otherwise the yielded path is `path` itself.

    Raises:
        DataError: `path` cannot be replaced, or `path` is a folder and the block wrote a file.
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
    """Open a temporary UTF-8 text file, which is renamed to `path` when the block succeeds and removed when it raises.

    The content is synced to the disk before the rename.

    Raises:
        DataError: the parent folder is missing or cannot be written, or a text cannot be encoded in UTF-8.
    """
    with replacing_path(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path at which the block creates a file or folder, which is then renamed to `path`.

    When the block raises, the file or folder is removed. Nothing is synced to the disk.

    Raises:
        DataError: as `replacing`, or the block created a folder and `path` is a folder that is not empty.
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
    """Write `text` to the UTF-8 file `path` atomically; with `durable`, sync it to the disk before the rename.

    Raises:
        OSError: the file cannot be written. An earlier file at `path` is unchanged.
    """
    with _renamed(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")
        if durable:
            fsync_path(partial)


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to `path` when the block succeeds and removed when it raises."""
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
    """Sync a file or folder to the disk.

    Raises:
        OSError: the path cannot be opened or synced.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 200 characters of it.

    For an OSError, it is the message of the system without its number and path. For an error without a message, it is
    the name of its class.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


class Locked(Exception):
    """Another process holds the lock. The caller turns this into an error that says what is locked."""


@contextmanager
def file_lock(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock on the file `path` inside the block.

    The file is created if it is absent, and it is not removed. The lock stays valid if the file's folder is renamed.

    Args:
        path: the lock file.
        patience: the maximum time to wait for the lock, in seconds; `math.inf` to wait for ever.

    Raises:
        Locked: another process still holds the lock after this time.
        OSError: the file cannot be created.
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
