"""Documents as their files state them, before anything is verified, and the one place that verifies them.

A reader yields a RawDocument for each document and a DataError, as a value, where it could make none: plain reading
raises it, `data check` counts it and goes on. Readers parse, they do not judge: whether a span lies in its text and
covers the surface that the file gives for it is decided here, with the same words for every format.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from spantune.core import DataError, Document, Entity, half_surrogate
from spantune.data.rules import Rule

R = TypeVar("R")
Nested = Literal["error", "outermost", "innermost"]


class Defect(NamedTuple):
    """What was wrong with how an entity was stated, although it could be read.

    `message` says what was found. A defect that is not `tolerated` is refused by plain reading and repaired only by
    `data check --fix`.
    """

    rule: Rule
    message: str
    tolerated: bool


@dataclass(frozen=True, slots=True)
class RawEntity:
    """A span as stated: half-open code points, unverified; `surface` is its text where the file gives one.

    `field` and `line` say where it stands, in the record and, where it is not the record's, in the file.
    """

    start: int
    end: int
    label: str
    surface: str | None = None
    score: float | None = None
    field: str = ""
    line: int | None = None
    defect: Defect | None = None


@dataclass(frozen=True, slots=True)
class RawDocument:
    """A document as stated at `line` of `path`."""

    id: str
    text: str
    entities: tuple[RawEntity, ...]
    path: Path
    line: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def error(self, message: str, entity: RawEntity | None = None) -> DataError:
        """A DataError that says where this document, or an entity of it, stands."""
        line = entity.line if entity is not None and entity.line is not None else self.line
        return DataError(message, path=self.path, line=line, field=(entity.field if entity else "") or None)


Item = RawDocument | DataError


class SurrogateError(DataError):
    """A text with half of a surrogate pair, which cannot be encoded."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a file does not say of itself and a user can: only the formats that need an option look at it.

    Args:
        nested: what a format of flat tags does with entities that overlap: refuse them (`error`), or keep the
            `outermost` or the `innermost`.
        column: the column of a table or of token lines that holds the tags or entities, from 0, or negative from the
            end; a name for a table with a header.
        joiner: what stood between tokens: `""`, `" "`, or None to tell from the tokens.
        scheme: the tags to write: `bio` or `bioes`.
        unannotated: whether JSON documents may come without a field of entities, as texts to extract from do.
    """

    nested: Nested = "error"
    column: int | str | None = None
    joiner: str | None = None
    scheme: Literal["bio", "bioes"] = "bio"
    unannotated: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """What a file or folder shows of itself, for a format to claim it.

    `head` are the first bytes, `text` the first lines (both empty for a folder, `text` also for a binary file),
    `record` a telling JSON object of the file, `files` the names in a folder.
    """

    path: Path
    head: bytes = b""
    text: str = ""
    record: Mapping[str, Any] | None = None
    files: tuple[str, ...] = ()


def each(records: Iterable[R | DataError], parse: Callable[[R], RawDocument]) -> Iterator[Item]:
    """What `parse` makes of each record, or the DataError that it raised or that its meta deserves."""
    for record in records:
        if isinstance(record, DataError):
            yield record
            continue
        try:
            item = parse(record)
        except DataError as error:
            yield error
            continue
        if item.meta and half_surrogate(json.dumps(item.meta, ensure_ascii=False, default=str)) is not None:
            message = "half of a surrogate pair, which is not text; mend or remove it"
            yield SurrogateError(message, path=item.path, line=item.line, field="meta")
        else:
            yield item


def unique(items: Iterable[Item]) -> Iterator[Item]:
    """Pass `items` on; a document whose id an earlier one has becomes a DataError."""
    lines: dict[str, int | None] = {}
    for item in items:
        if isinstance(item, RawDocument):
            if item.id in lines:
                first = f"line {lines[item.id]}" if lines[item.id] else "another document"
                yield DataError(
                    f"the id {item.id!r} is repeated; {first} has it too: make ids unique",
                    path=item.path,
                    line=item.line,
                    field="id",
                )
                continue
            lines[item.id] = item.line
        yield item


def verified(items: Iterable[Item], notes: Counter[str]) -> Iterator[Document]:
    """Yield the documents of `items`; `notes` counts what was mended or could not be verified.

    Raises:
        DataError: an item is one, or an entity is empty, outside its text or not the surface that its file gives.
    """
    for item in items:
        if isinstance(item, DataError):
            raise item
        entities = tuple(_entity(item, entity, notes) for entity in item.entities)
        yield Document(item.id, item.text, entities, item.meta)


def wrong(document: RawDocument, entity: RawEntity) -> str | None:
    """Why `entity` cannot be where it claims to be; None when it can."""
    text, start, end = document.text, entity.start, entity.end
    if entity.surface is not None and (start < 0 or text[start : start + len(entity.surface)] != entity.surface):
        return misplaced(text, start, entity.surface)
    if not 0 <= start < end <= len(text):
        return (
            f"[{start}, {end}) is empty or outside the text of {len(text)} characters; expected half-open offsets in "
            "code points: mend them"
        )
    if entity.surface is not None and end != start + len(entity.surface):
        return (
            f"the entity ends {end - start} characters from its start, but its text {entity.surface!r} has "
            f"{len(entity.surface)}; mend the end or the text"
        )
    return None


def misplaced(text: str, start: int, surface: str) -> str:
    """The message for an entity whose `surface` is not what `text` holds at `start`: found, expected, remedy."""
    found = text[max(start, 0) : max(start, 0) + len(surface)]
    places = [match.start() for match in re.finditer(f"(?={re.escape(surface)})", text)]
    where = f"it occurs at {', '.join(map(str, places[:5]))}" if places else "it does not occur in the text"
    return (
        f"the entity's text is {surface!r}, but the document holds {found!r} at {start}; {where}. Offsets count "
        "Unicode code points from 0: mend the start or the text"
    )


def _entity(document: RawDocument, entity: RawEntity, notes: Counter[str]) -> Entity:
    if problem := wrong(document, entity):
        raise document.error(problem, entity)
    if entity.surface is None:
        notes["entity without its text: offsets not verified"] += 1
    if entity.defect is not None:
        if not entity.defect.tolerated:
            raise document.error(
                f"{entity.defect.message}; mend it, or let `spantune data check FILE --fix OUT` do it", entity
            )
        notes[entity.defect.message] += 1
    return Entity(entity.start, entity.end, entity.label, entity.score)


Row = dict[str, Any]

_ROW: dict[str, type | tuple[type, ...]] = {"start": int, "end": int, "label": str, "id": (int, str)}


def kept(document: Document, format: str) -> Mapping[str, Any]:
    """What the reader of `format` put into the document's meta; nothing for a document from elsewhere.

    Raises:
        DataError: the meta holds something else under that name.
    """
    values = document.meta.get(format, {})
    if not isinstance(values, Mapping):
        raise strange(document, format, f"found {values!r:.40}; expected an object")
    return values


def reunited(document: Document, format: str) -> tuple[list[tuple[Entity, Row]], list[Row]]:
    """Each entity with its row, in the order of the rows, those without one last; and the rows of entities now gone.

    Raises:
        DataError: the rows are not what the reader keeps.
    """
    rows = kept(document, format).get("entities", [])
    if not isinstance(rows, list):
        raise strange(document, format, f"found {rows!r:.40} for entities; expected a list")
    waiting: dict[tuple[int, int, str], list[Entity]] = {}
    for entity in document.entities:
        waiting.setdefault((entity.start, entity.end, entity.label), []).append(entity)
    pairs: list[tuple[Entity, Row]] = []
    gone: list[Row] = []
    for row in rows:
        if not isinstance(row, dict) or not all(isinstance(row.get(name), kind) for name, kind in _ROW.items()):
            raise strange(document, format, f"found {row!r:.60} in entities; expected an object with {', '.join(_ROW)}")
        if same := waiting.get((row["start"], row["end"], row["label"])):
            pairs.append((same.pop(0), row))
        else:
            gone.append(row)
    return pairs + [(entity, {}) for entities in waiting.values() for entity in entities], gone


def strange(document: Document, format: str, found: str) -> DataError:
    """The error for meta under `format` that its reader did not write."""
    return DataError(
        f"document {document.id!r}: {found}; mend meta[{format!r}], or remove it to write without it", field="meta"
    )
