"""The journal of an extraction: native JSONL that grows line by line in `FILE.partial`, and is then renamed to FILE.

If the process is killed, every line except the last is a whole document. Only one process at a time writes the journal.
A resumed run compares the journal with its inputs, document by document, so that no document is lost, repeated or
mistaken for another. It cannot know whether the journal was written with the same model and options. The journal of an
interrupted run is never overwritten.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from spantune.core import (
    DataError,
    Document,
    Extraction,
    Locked,
    Prediction,
    as_extraction,
    file_lock,
    from_document,
    require_folder,
    to_document,
    to_json,
    to_record,
)


@dataclass(frozen=True)
class Done:
    """The contents of an interrupted run's journal: documents, those with a problem, and the bytes of whole lines."""

    documents: int = 0
    with_problem: int = 0
    size: int = 0


def partial(path: Path) -> Path:
    """Return the path of the journal that becomes the file `path`."""
    return path.with_name(f"{path.name}.partial")


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Lock the journal of `path` against other processes.

    Raises:
        DataError: another process has locked it, or the folder cannot be written.
    """
    lock = path.with_name(f".{path.name}.partial.lock")
    with ExitStack() as stack:
        try:
            with writing(path):
                stack.enter_context(file_lock(lock))
        except Locked:
            raise DataError("another process is writing it; wait for it, or name another file", path=path) from None
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()


def require_free(path: Path) -> None:
    """Check that a new journal can be begun for the file `path`.

    Raises:
        DataError: the folder is missing, or there is a journal of an interrupted run.
    """
    require_folder(path)
    if partial(path).exists():
        raise DataError(
            "is here from a run that was interrupted; go on with it by --resume, or remove it", path=partial(path)
        )


def resume(path: Path, items: Iterator[Prediction]) -> Done:
    """Take from `items` the documents that are in the journal of `path`, and cut off an incomplete last line.

    If there is no journal but `path` exists, that file becomes the journal again.

    Raises:
        DataError: the journal is damaged, or holds other documents than `items`.
    """
    journal = partial(path)
    source = journal if journal.exists() else path
    if not source.exists():
        require_free(path)
        return Done()
    documents = with_problem = size = 0
    with source.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):  # the process was killed while it wrote this line
                break
            written = _written(line, source, number)
            _require_same(written, next(items, None), source, number)
            documents, size = number, size + len(line)
            with_problem += from_document(written).has_problem
    source.replace(journal)
    os.truncate(journal, size)
    return Done(documents, with_problem, size)


def append(path: Path, extractions: Iterable[Extraction]) -> None:
    """Append `extractions` to the journal of `path`, each as soon as it arrives.

    Raises:
        DataError: a file cannot be written.
    """
    journal = partial(path)
    file: BinaryIO | None = None
    try:
        for extraction in extractions:
            line = json_line(extraction)
            with writing(path):
                file = file or journal.open("ab")
                file.write(line)
                file.flush()
        with writing(path):
            file = file or journal.open("ab")
            os.fsync(file.fileno())
    finally:
        if file:
            with suppress(OSError):  # an error of writing was raised already
                file.close()


def json_line(extraction: Extraction) -> bytes:
    """Return `extraction` as a line of native JSONL in UTF-8, with its line break."""
    return to_json(to_record(to_document(extraction))).encode() + b"\n"


def finish(path: Path) -> None:
    """Rename the complete journal of `path` to `path`.

    Raises:
        DataError: the file cannot be renamed.
    """
    with writing(path):
        partial(path).replace(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise an OSError of the block as a DataError that names `path`.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}; choose another place", path=path) from None


def _written(line: bytes, path: Path, number: int) -> Document:
    """Read a line of the journal into a Document without its entities."""
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
    return Document(record["id"], record["text"], (), record.get("meta", {}))


def _require_same(written: Document, expected: Prediction | None, path: Path, number: int) -> None:
    if expected is None:
        raise DataError(
            f"holds {written.id!r}, but the inputs end after {number - 1} documents; resume with the inputs that it "
            "was begun with, or remove it",
            path=path,
            line=number,
        )
    document = as_extraction(expected).document
    if (written.id, written.text) != (document.id, document.text):
        what = "another text" if written.id == document.id else f"{written.id!r}"
        raise DataError(
            f"holds {what} where the inputs have {document.id!r}; resume with the inputs that it was begun with, or "
            "remove it",
            path=path,
            line=number,
        )
