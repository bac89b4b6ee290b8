"""The output of a large extraction: a folder of part files with fixed names, and the plan of the parts.

A part is written under a temporary name that begins with a dot, and renamed when it is complete. So a part exists as a
whole or not at all, and a second worker that writes it again writes the same. The parts that exist are the parts that
are done. `_plan.json` records which documents are in which part, and the run and settings, so that a resumed extraction
cannot mix two runs.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

from spantune.core import (
    DataError,
    Extraction,
    Place,
    first_line,
    is_url,
    need,
    shown_url,
    storage_problem,
    to_json,
    to_record,
)
from spantune.extraction.resumable import json_line
from spantune.extraction.scale.shards import Mark, Shard
from spantune.extraction.scale.sources import Source

To = Literal["native", "parquet"]
PLAN = "_plan.json"
_SUFFIXES: Mapping[To, str] = {"native": ".jsonl", "parquet": ".parquet"}
_TEMPORARY = ".writing-"
_ROWS = 500


@dataclass(frozen=True)
class Plan:
    """The sources, their parts, and the `terms`, which are all else that the results depend on, such as the run."""

    terms: Mapping[str, object]
    sources: tuple[Source, ...]
    shards: tuple[Shard, ...]

    @property
    def documents(self) -> int:
        """The number of documents in all parts."""
        return sum(shard.documents for shard in self.shards)


@dataclass(frozen=True)
class Folder:
    """The folder of the output, a local path or a URL, and the format of its parts.

    Raises:
        ConfigError, DataError: as `Place`.
    """

    path: str
    to: To

    @property
    def place(self) -> Place:
        """The folder's place in a filesystem."""
        return Place.of(self.path)

    def part(self, number: int) -> str:
        """Return the file name of the part with this number."""
        return f"part-{number:06d}{_SUFFIXES[self.to]}"

    def begin(self, *, resume: bool) -> Plan | None:
        """Return the plan of an interrupted extraction; None if there is none.

        Raises:
            DataError: the folder holds an extraction and `resume` is False, it holds other files, its plan is damaged,
                or `path` is a file.
        """
        self.place.require_bucket()
        names = {info.base_name for info in self.place.files()}
        if self.place.info().is_file:
            raise DataError("is a file; name a folder for the parts", path=self.path)
        if PLAN in names:
            if not resume:
                raise DataError(
                    "holds an extraction already; go on with it by --resume, or name another folder", path=self.path
                )
            return self._read_plan()
        if names:
            raise DataError(
                f"is not empty: it holds {min(names)} and no {PLAN}; name another folder, or an empty one",
                path=self.path,
            )
        return None

    def done(self) -> set[str]:
        """Return the names of the files in the folder, among them those of the finished parts."""
        return {info.base_name for info in self.place.files()}

    def save(self, plan: Plan) -> None:
        """Write the plan; this must be done before any part is written.

        Raises:
            DataError: the plan cannot be written.
        """
        numbers = {source: number for number, source in enumerate(plan.sources)}
        rows = [[numbers[shard.source], *_mark_row(shard.begin), *_mark_row(shard.end)] for shard in plan.shards]
        record = {"terms": plan.terms, "sources": [asdict(source) for source in plan.sources], "parts": rows}
        with self._written(PLAN) as stream:
            stream.write(to_json(record).encode())

    def _read_plan(self) -> Plan:
        place = self.place.child(PLAN)
        try:
            with place.open() as file:
                record = json.loads(file.read())
            sources = tuple(Source(**fields) for fields in record["sources"])
            shards = tuple(
                Shard(number, sources[source], Mark(*bounds[:3]), Mark(*bounds[3:]))
                for number, (source, *bounds) in enumerate(record["parts"])
            )
            return Plan(record["terms"], sources, shards)
        except (ValueError, KeyError, TypeError, IndexError):
            raise DataError("is damaged; remove the folder and begin anew", path=place.outer) from None

    def write(self, number: int, extractions: Iterable[Extraction]) -> None:
        """Write the part with this number.

        Raises:
            DataError: the part cannot be written; nothing of it is left then.
        """
        with self._written(self.part(number)) as stream:
            if self.to == "native":
                for extraction in extractions:
                    stream.write(json_line(extraction))
            else:
                _write_parquet(stream, extractions)

    def clean(self) -> None:
        """Remove the temporary files of parts that killed processes did not complete."""
        place = self.place
        for info in place.files():
            if info.base_name.startswith(_TEMPORARY):
                with suppress(OSError):
                    place.filesystem.delete_file(info.path)

    @contextmanager
    def _written(self, name: str) -> Iterator[Any]:
        """Open a file under a temporary name; it is renamed to `name` at the end of the block, if nothing is raised."""
        place = self.place
        temporary = place.child(f"{_TEMPORARY}{uuid.uuid4().hex}-{name}")
        filesystem = place.filesystem
        try:
            filesystem.create_dir(place.inner, recursive=True)
            with filesystem.open_output_stream(temporary.inner) as stream:
                yield stream
            filesystem.move(temporary.inner, place.child(name).inner)
        except BaseException as error:
            with suppress(OSError):
                filesystem.delete_file(temporary.inner)
            if isinstance(error, OSError):
                remedy = f"{first_line(error)}; free some space, allow it, or choose another place"
                said = storage_problem(self.path, error) if is_url(self.path) else remedy
                raise DataError(f"cannot be written: {said}", path=shown_url(place.child(name).outer)) from None
            raise


def _mark_row(mark: Mark) -> Sequence[int]:
    return mark.documents, mark.lines, mark.offset


def _write_parquet(stream: Any, extractions: Iterable[Extraction]) -> None:
    """Write the columns id, text, entities, status, problems and meta; `meta` is JSON text or null."""
    pyarrow, parquet = need("pyarrow", "ray"), need("pyarrow.parquet", "ray")
    string = pyarrow.string()
    entity = {"start": pyarrow.int64(), "end": pyarrow.int64(), "label": string, "text": string}
    entities = pyarrow.list_(pyarrow.struct({**entity, "score": pyarrow.float64()}))
    problems = pyarrow.list_(pyarrow.struct({"kind": string, "found": string}))
    columns = {"id": string, "text": string, "entities": entities, "status": string, "problems": problems}
    schema = pyarrow.schema({**columns, "meta": string})
    with parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
        rows = map(_row, extractions)
        while group := list(islice(rows, _ROWS)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema))


def _row(extraction: Extraction) -> dict[str, object]:
    record = to_record(extraction.document)
    return {
        "id": record["id"],
        "text": record["text"],
        "entities": record["entities"],
        "status": extraction.status.value,
        "problems": [{"kind": problem.kind.value, "found": problem.found} for problem in extraction.problems],
        "meta": to_json(record["meta"]) if "meta" in record else None,
    }
