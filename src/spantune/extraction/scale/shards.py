"""The parts in which a large corpus is extracted: which documents of which file are in each, and how they are read.

A survey reads every file once. It counts the documents, records marks, which are places where a part may begin, and
hashes the ids, so that a repeated id is found before anything is extracted. The number of marks of a file is limited:
the more documents it has, the farther apart they are.
"""

from __future__ import annotations

import codecs
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy

from spantune.core import (
    DataError,
    Document,
    Extraction,
    Place,
    Prediction,
    encodable,
    half_surrogate,
    need,
)
from spantune.data import lines_of, parse_text_line
from spantune.extraction.inputs import as_input, unreadable
from spantune.extraction.scale.sources import Source

MOST_MARKS = 8_192
"""The most marks of a file; when there are twice as many, every second one is dropped."""
STEP = 16
"""Documents between two marks, in a small file."""
PART_DOCUMENTS, PART_BYTES, MOST_PARTS = 2_000, 64 << 20, 10_000
"""The most documents and bytes of a part, and the number of parts above which parts become larger."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place where a part may begin: the number of documents and of lines before it, and its offset.

    The offset is in bytes; in Parquet it is in rows.
    """

    documents: int
    lines: int
    offset: int


@dataclass(frozen=True, slots=True)
class Shard:
    """The documents of a part: those of the file `source` from `begin` to `end`, in the order of the file."""

    number: int
    source: Source
    begin: Mark
    end: Mark

    @property
    def documents(self) -> int:
        """The number of documents."""
        return self.end.documents - self.begin.documents


@dataclass(frozen=True)
class Survey:
    """The marks of a file, the last of which is its end, and a 64-bit hash of each id (none for plain text)."""

    marks: tuple[Mark, ...]
    id_hashes: numpy.ndarray[Any, numpy.dtype[numpy.uint64]]


@dataclass
class _Marks:
    """Collects the marks of a file, and drops every second one when there are too many."""

    step: int = STEP
    marks: list[Mark] = field(default_factory=list)

    def offer(self, mark: Mark) -> None:
        last = self.marks[-1] if self.marks else None
        if last is None or mark.documents - last.documents >= self.step or mark.offset - last.offset >= PART_BYTES // 2:
            self.marks.append(mark)
        if len(self.marks) > 2 * MOST_MARKS:
            self.marks, self.step = self.marks[::2], 2 * self.step


def survey(source: Source, several: bool) -> Survey:
    """Read a file once to find its marks and the hashes of its ids.

    `several` says whether there are other files, as in `read`.

    Raises:
        DataError: the file cannot be read, or is not a Parquet file with a column `text`.
    """
    marks, hashes = _Marks(), list[int]()
    if source.kind == "parquet":
        rows = _Rows(source)
        for row in range(0, rows.count, STEP):
            marks.offer(Mark(row, row, row))
        for _, id in rows.ids(several=several):
            hashes.append(_hashed(id))
        end = Mark(rows.count, rows.count, rows.count)
    else:
        documents = offset = lines = 0
        with Place.of(source.path).open() as file:
            for line in file:
                if _is_filled(line, lines):
                    marks.offer(Mark(documents, lines, offset))
                    documents += 1
                    if source.kind == "native":
                        hashes.append(_hashed(_id_of_line(line, source, lines + 1, several)))
                lines, offset = lines + 1, offset + len(line)
        end = Mark(documents, lines, offset)
    return Survey((*marks.marks, end), numpy.array(hashes, dtype=numpy.uint64))


def part_size(documents: int, workers: int) -> int:
    """Return the number of documents of a part, chosen so that every worker gets several parts."""
    size = min(PART_DOCUMENTS, documents // (8 * workers))
    return max(STEP, size, documents // MOST_PARTS)


def shards_of(sources: Sequence[Source], marks: Sequence[Sequence[Mark]], size: int) -> list[Shard]:
    """Return the parts of all files, in order; each has about `size` documents of one file.

    `marks` are those of each source, as in its Survey.
    """
    shards: list[Shard] = []
    for source, places in zip(sources, marks, strict=True):
        begin = places[0]
        for place, following in zip(places[1:], (*places[2:], None), strict=True):
            is_full = following is None or (
                following.documents - begin.documents > size
                or (source.kind != "parquet" and following.offset - begin.offset > PART_BYTES)
            )
            if is_full:
                shards.append(Shard(len(shards), source, begin, place))
                begin = place
    return shards


def require_unique(sources: Sequence[Source], surveys: Sequence[Survey]) -> None:
    """Check that no id is repeated in all files; ids of plain text are made from their lines and are always unique.

    Raises:
        DataError: an id is repeated; the error names both places.
    """
    if all(source.kind == "text" for source in sources):
        return
    every = numpy.concatenate([found.id_hashes for found in surveys])
    every.sort()
    repeated = {int(value) for value in every[1:][every[1:] == every[:-1]]}
    if not repeated:
        return
    seen: dict[str, tuple[str, int]] = {}
    for source in sources:
        for line, id in _ids(source, several=len(sources) > 1):
            if _hashed(id) not in repeated:
                continue
            if id in seen:
                name, first = seen[id]
                raise DataError(
                    f"the id {id!r} is repeated; {name}:{first} has it too: make ids unique, or leave them out, so "
                    "that they are made from the file and the line",
                    path=source.name,
                    line=line,
                    field="id",
                )
            seen[id] = (source.name, line)


def read(shard: Shard, notes: Counter[str], *, several: bool) -> Iterator[Prediction]:
    """Yield the documents of a part, and an `unreadable` Extraction for each that cannot be read.

    Args:
        shard: the part.
        notes: counts what reading repaired or ignored.
        several: whether there are several files; the ids that are made then begin with the name of the file.
    """
    source = shard.source
    if source.kind == "parquet":
        yield from _Rows(source).documents(shard.begin.offset, shard.end.offset, several=several)
        return
    with Place.of(source.path).open() as file:
        file.seek(shard.begin.offset)
        content = file.read(shard.end.offset - shard.begin.offset)
    path = Path(source.name)
    for line, text in lines_of(io.BytesIO(content), path, notes):
        number = shard.begin.lines + line
        id = _made_id(source, number, several)
        document: Prediction | DataError = text if isinstance(text, DataError) else Document(id, text)
        if isinstance(text, str) and source.kind == "native":
            document = _document_of_line(text, source, number, id, notes)
        yield _unreadable(id, document, source, number) if isinstance(document, DataError) else document


def _document_of_line(text: str, source: Source, line: int, id: str, notes: Counter[str]) -> Prediction | DataError:
    item = parse_text_line(text, Path(source.name), line, id, notes)
    if isinstance(item, DataError):
        return item
    return as_input(item.id, item.text, item.meta)


def _unreadable(id: str, error: DataError, source: Source, line: int) -> Extraction:
    return unreadable(id, DataError(error.message, path=source.name, line=line, field=error.field))


def _made_id(source: Source, line: int, several: bool) -> str:
    """Return the id for a document without one; with one file it is the id that `Texts.read` makes."""
    if source.kind == "text":
        return f"{source.name}:{line}" if several else str(line)
    return f"{source.name}:{line}" if several else f"{Path(source.name).stem}-{line}"


def _ids(source: Source, *, several: bool) -> Iterator[tuple[int, str]]:
    """Yield the line number, or the row number in Parquet, and the id of each document."""
    if source.kind == "parquet":
        yield from _Rows(source).ids(several=several)
        return
    with Place.of(source.path).open() as file:
        for number, line in enumerate(file, start=1):
            if _is_filled(line, number - 1):
                made = source.kind == "text"
                yield number, _made_id(source, number, several) if made else _id_of_line(line, source, number, several)


def _is_filled(line: bytes, before: int) -> bool:
    """Whether a line, before which there are `before` other lines, holds a document, as `lines_of` decides."""
    if not before:
        line = line.removeprefix(codecs.BOM_UTF8)
    return bool(line.decode("utf-8", "replace").strip())


def _id_of_line(line: bytes, source: Source, number: int, several: bool) -> str:
    """Return the id on a line of JSONL; if it has none or cannot be read, make one."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        record = None
    id = record.get("id") if isinstance(record, dict) else None
    return id if isinstance(id, str) else _made_id(source, number, several)


def _hashed(id: str) -> int:
    digest = blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class _Rows:
    """The rows of a Parquet file with a column `text`, and optionally a column `id` of strings or whole numbers.

    Raises:
        DataError: the file is damaged or has no column `text`.
    """

    def __init__(self, source: Source):
        pyarrow, parquet = need("pyarrow", "ray"), need("pyarrow.parquet", "ray")
        self._source, self._error = source, (pyarrow.ArrowException, OSError)
        try:
            self._file = parquet.ParquetFile(Place.of(source.path).open())
        except self._error as error:
            raise DataError(f"cannot be read as Parquet: {error}; check the file", path=source.name) from None
        names = self._file.schema_arrow.names
        if "text" not in names:
            raise DataError(
                f"has the columns {', '.join(names)}; expected a column text: rename the one that holds the texts",
                path=source.name,
            )
        self._columns = [name for name in ("id", "text") if name in names]
        self.count = int(self._file.metadata.num_rows)

    def ids(self, *, several: bool) -> Iterator[tuple[int, str]]:
        """Yield the number of each row, from 1, and its id."""
        columns = [name for name in self._columns if name == "id"]
        if not columns:
            yield from ((row, _made_id(self._source, row, several)) for row in range(1, self.count + 1))
            return
        for row, values in self._rows(0, self.count, columns):
            yield row, self._id(values, row, several)

    def documents(self, begin: int, end: int, *, several: bool) -> Iterator[Prediction]:
        """Yield the documents of the rows from `begin` up to `end`, without `end`; the first row is 0."""
        for row, values in self._rows(begin, end, self._columns):
            text, id = values["text"], encodable(self._id(values, row, several))
            if isinstance(text, str) and half_surrogate(text) is None:
                yield Document(id, text)
            else:
                found = "null" if text is None else type(text).__name__
                yield _unreadable(id, DataError(f"found {found}; expected a text", field="text"), self._source, row)

    def _id(self, values: dict[str, Any], row: int, several: bool) -> str:
        id = values.get("id")
        return _made_id(self._source, row, several) if id is None else str(id)

    def _rows(self, begin: int, end: int, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        first = 0
        for group in range(self._file.num_row_groups):
            size = self._file.metadata.row_group(group).num_rows
            if first < end and first + size > begin:
                yield from self._group(group, first, (begin, end), columns)
            first += size

    def _group(
        self, group: int, first: int, bounds: tuple[int, int], columns: list[str]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            for batch in self._file.iter_batches(1_024, row_groups=[group], columns=columns):
                last = first + batch.num_rows
                if first < bounds[1] and last > bounds[0]:
                    for row, values in enumerate(batch.to_pylist(), start=first):
                        if bounds[0] <= row < bounds[1]:
                            yield row + 1, values
                first = last
        except self._error as error:
            raise DataError(f"cannot be read as Parquet: {error}; check the file", path=self._source.name) from None
