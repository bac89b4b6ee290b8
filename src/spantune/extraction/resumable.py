"""Results that survive a kill: native JSONL that grows line by line beside the file that it is to become.

It is `FILE.partial`, in which every line is one whole document but, after a kill, the last; one process at a time
writes it. Going on reads it beside the inputs, document by document, so that none is lost, repeated or taken for
another. It cannot know whether the same model and options wrote it. It refuses to write over what an interrupted run
has left.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from spantune.core import DataError, Document, Locked, file_lock, require_folder, to_record
from spantune.extraction.result import Extraction, is_wanting


@dataclass(frozen=True)
class Done:
    """What an interrupted run has left: documents, how many of them were wanting, and bytes of whole lines."""

    documents: int = 0
    wanting: int = 0
    size: int = 0


def partial(path: Path) -> Path:
    """Where the lines stand until all are there."""
    return path.with_name(f"{path.name}.partial")


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep every other process from the journal of `path`.

    Raises:
        DataError: another process has it, or the folder cannot be written.
    """
    lock = path.with_name(f".{path.name}.partial.lock")
    with ExitStack() as stack:
        try:
            stack.enter_context(file_lock(lock))
        except Locked:
            raise DataError("another process is writing it; wait for it, or name another file", path=path) from None
        except OSError as error:
            raise DataError(f"cannot be written: {error.strerror}; choose another place", path=path) from None
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()


def require_free(path: Path) -> None:
    """Check that a new journal can be begun.

    Raises:
        DataError: the folder is missing, or an interrupted run has left its lines.
    """
    require_folder(path)
    if partial(path).exists():
        raise DataError(
            "is here from a run that was interrupted; go on with it by --resume, or remove it", path=partial(path)
        )


def resume(path: Path, items: Iterator[Document | Extraction]) -> Done:
    """Take from `items` what the journal of `path`, whole or not, holds already, and make it ready to go on.

    Raises:
        DataError: it holds other documents than the inputs, or is damaged.
    """
    journal = partial(path)
    found = journal if journal.exists() else path
    if not found.exists():
        require_free(path)
        return Done()
    documents = wanting = size = 0
    with found.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):  # the kill came while it was written
                break
            record = _record(line, found, number)
            _check_same(record, next(items, None), found, number)
            documents, wanting, size = number, wanting + is_wanting(record.get("meta", {})), size + len(line)
    found.replace(journal)
    os.truncate(journal, size)
    return Done(documents, wanting, size)


def append(path: Path, documents: Iterable[Document]) -> None:
    """Add `documents` to the journal of `path`, each as soon as it comes.

    Raises:
        DataError: a file cannot be written.
    """
    journal = partial(path)
    file: BinaryIO | None = None
    try:
        for document in documents:
            line = json.dumps(to_record(document), ensure_ascii=False).encode() + b"\n"
            with writing(path):
                file = file or journal.open("ab")
                file.write(line)
                file.flush()
        with writing(path):
            file = file or journal.open("ab")
            os.fsync(file.fileno())
    finally:
        if file:
            with suppress(OSError):  # what could not be written has been said
                file.close()


def finish(path: Path) -> None:
    """Give the journal of `path`, which is whole, its name.

    Raises:
        DataError: it cannot have that name.
    """
    with writing(path):
        partial(path).replace(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system refuses to write for `path` into one error.

    Raises:
        DataError: a file cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}; choose another place", path=path) from None


def _record(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if (
        not isinstance(record, dict)
        or not {"id", "text", "entities"} <= record.keys()
        or not isinstance(record.get("meta", {}), dict)
    ):
        raise DataError("not a document; remove the file and begin anew", path=path, line=number)
    return record


def _check_same(record: dict[str, Any], item: Document | Extraction | None, path: Path, number: int) -> None:
    if item is None:
        raise DataError(
            f"holds {record['id']!r}, but the inputs end after {number - 1} documents; resume with the inputs that it "
            "was begun with, or remove it",
            path=path,
            line=number,
        )
    document = item.document if isinstance(item, Extraction) else item
    if (record["id"], record["text"]) != (document.id, document.text):
        what = "another text" if record["id"] == document.id else f"{record['id']!r}"
        raise DataError(
            f"holds {what} where the inputs have {document.id!r}; resume with the inputs that it was begun with, or "
            "remove it",
            path=path,
            line=number,
        )
