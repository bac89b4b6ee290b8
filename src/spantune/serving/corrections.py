"""The store of corrections: `corrections.jsonl` in a folder that the user names; each correction adds one line.

A line is a document in native JSONL. Its meta says which model predicted what, when the document was corrected, and
with which tool. A line is whole or absent, even if several processes write: each holds a lock, appends with one write,
and waits for the disk. A line that a crash left incomplete is moved to another file. Existing lines are never changed:
whoever reads the file takes the last correction of a text.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Literal

from spantune.core import (
    ConfigError,
    DataError,
    Document,
    Entity,
    Locked,
    TaskSpec,
    file_lock,
    first_line,
    half_surrogate,
    nearest,
    to_json,
    to_record,
)

FILE = "corrections.jsonl"
HALF_LINES = "corrections.half-written.txt"
Source = Literal["page", "label-studio", "api"]
_PATIENCE = 10.0  # seconds to wait for another process that writes one line

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Correction:
    """A document as a person annotated it.

    Args:
        document: its entities are the corrected ones; their scores are not saved. An empty id is made from the text.
        model: the name of the run that predicted.
        fingerprint: the fingerprint of that run.
        source: the tool from which the correction came.
        predicted: the entities that the model predicted, if known.
        annotation: the name of the annotation in its tool; a later record with the same name replaces this one.
        withdrawn: whether the annotation was deleted, so that earlier records with its name do not count any more.
    """

    document: Document
    model: str
    fingerprint: str
    source: Source
    predicted: tuple[Entity, ...] | None = None
    annotation: str | None = None
    withdrawn: bool = False

    def record(self, time: str) -> dict[str, object]:
        """Return the line of the file as a JSON object; `time` is in ISO 8601."""
        document = self.document
        meta: dict[str, object] = {
            **document.meta,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "time": time,
            "source": self.source,
        }
        if self.predicted is not None:
            meta["predicted"] = to_record(Document(document.id, document.text, self.predicted))["entities"]
        if self.annotation is not None:
            meta["annotation"] = self.annotation
        if self.withdrawn:
            meta["withdrawn"] = True
        id = document.id or f"text-{sha256(document.text.encode()).hexdigest()[:12]}"
        entities = tuple(replace(entity, score=None) for entity in document.entities)
        return to_record(Document(id, document.text, entities, meta))


class Corrections:
    """The file of corrections in one folder. Threads and processes may use it at the same time.

    Raises:
        ConfigError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path):
        self.path = folder / FILE
        self._lock = folder / f".{FILE}.lock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._open():
                pass
        except (OSError, DataError) as error:
            said = first_line(error) if isinstance(error, OSError) else str(error)
            raise ConfigError(
                f"--corrections {folder}: {said}; name a folder in which this user can write files"
            ) from None

    def append(self, corrections: Sequence[Correction]) -> None:
        """Add all corrections or none, and return when they are on the disk.

        Raises:
            DataError: the disk is full or cannot be written, or another process does not release the lock.
        """
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        lines = "".join(to_json(correction.record(time)) + "\n" for correction in corrections).encode()
        try:
            with self._open() as file:
                _append(file, lines)
        except OSError as error:
            raise DataError(
                f"the correction is not saved: {first_line(error)}; free some space, or make the folder of "
                "--corrections writable, and send it again"
            ) from None

    def find(self, annotation: str) -> Document | None:
        """Return the last document stored with this `annotation`; None if there is none or it was withdrawn."""
        sign, last = to_json(annotation).encode(), None
        for line in self._lines():
            if sign in line:
                record = json.loads(line)
                meta = record["meta"]
                if meta.get("annotation") == annotation:
                    last = None if meta.get("withdrawn") else Document(record["id"], record["text"])
        return last

    def stream(self) -> Iterator[bytes]:
        """Yield the file as it is now, in parts that end with whole lines."""
        part: list[bytes] = []
        for line in self._lines():
            part.append(line)
            if len(part) == 256:
                yield b"".join(part)
                part = []
        yield b"".join(part)

    def _lines(self) -> Iterator[bytes]:
        """Yield the whole lines up to the present end of the file."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            left = os.fstat(file.fileno()).st_size
            for line in file:
                left -= len(line)
                if left < 0 or not line.endswith(b"\n"):
                    return
                yield line

    @contextmanager
    def _open(self) -> Iterator[int]:
        """Hold the lock, repair an incomplete last line, and yield the descriptor of the file, opened for appending.

        Raises:
            DataError: another process holds the lock for too long.
        """
        try:
            with file_lock(self._lock, _PATIENCE):
                file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
                try:
                    self._repair(file)
                    yield file
                finally:
                    os.close(file)
        except Locked:
            raise DataError(
                "the correction is not saved: another process has held the lock of the corrections for "
                f"{_PATIENCE:.0f} seconds; send it again, and end that process if it hangs"
            ) from None

    def _repair(self, file: int) -> None:
        """Move an incomplete last line to another file; if it lacks only the line break, add that."""
        size = os.fstat(file).st_size
        if size == 0 or os.pread(file, 1, size - 1) == b"\n":
            return
        start = _last_line(file, size)
        tail = os.pread(file, size - start, start)
        if _is_object(tail):
            _append(file, b"\n")
            return
        aside = self.path.with_name(HALF_LINES)
        other = os.open(aside, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            _append(other, tail + b"\n")
        finally:
            os.close(other)
        os.ftruncate(file, start)
        os.fsync(file)
        log.warning("the last line of %s was half-written and was moved to %s", FILE, HALF_LINES)


def checked(document: Document, task: TaskSpec) -> Document:
    """Check that `document` is a valid correction for the run of `task`, and return it.

    Raises:
        DataError: the text is empty or has half a surrogate pair, an entity has a label that the task does not have or
            is repeated, or two entities overlap although the task is not nested.
    """
    for value, field in ((document.text, "text"), (document.id, "id")):
        if half_surrogate(value) is not None:
            raise DataError("half of a surrogate pair is not text; write the whole character", field=field)
    if not document.text.strip():
        raise DataError("the text is empty; send the text that the entities are in", field="text")
    check_labels(document.entities, task)
    if repeated := _repeated(document.entities):
        raise DataError(
            f"the entity {repeated.label!r} [{repeated.start}, {repeated.end}) is there twice; send each once",
            field="entities",
        )
    overlapping = None if task.nested else _overlapping(document.entities)
    if overlapping:
        raise DataError(
            f"the entity {overlapping.label!r} [{overlapping.start}, {overlapping.end}) overlaps the one before it, "
            "and entities of this run do not overlap (task.nested: false); send one of the two",
            field="entities",
        )
    return document


def check_labels(entities: Iterable[Entity], task: TaskSpec) -> None:
    """Check that all labels of `entities` are labels of the task.

    Raises:
        DataError: a label is not.
    """
    for entity in entities:
        if entity.label not in task.codes:
            raise DataError(
                f"the label {entity.label!r} is not one of the run's; {nearest(entity.label, task.codes)}",
                field="entities",
            )


def _repeated(entities: Sequence[Entity]) -> Entity | None:
    """Return the first entity of the sorted `entities` that equals the one before it."""
    return next((entity for before, entity in pairwise(entities) if before == entity), None)


def _overlapping(entities: Sequence[Entity]) -> Entity | None:
    """Return the first entity of the sorted `entities` that begins before the one before it ends."""
    return next((entity for before, entity in pairwise(entities) if entity.start < before.end), None)


def _append(file: int, content: bytes) -> None:
    """Append `content` with one write, and wait until it is on the disk; if that fails, remove what was written."""
    before = os.fstat(file).st_size
    try:
        written = os.write(file, content)
        while written < len(content):  # on a disk that is nearly full; the next write then raises the error
            written += os.write(file, content[written:])
        os.fsync(file)
    except OSError:
        os.ftruncate(file, before)
        raise


def _last_line(file: int, size: int, step: int = 1 << 16) -> int:
    """Return the offset of the last line of a file of `size` bytes; that line has no line break at its end."""
    end = size
    while end > 0:
        start = max(0, end - step)
        place = os.pread(file, end - start, start).rfind(b"\n")
        if place >= 0:
            return start + place + 1
        end = start
    return 0


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
