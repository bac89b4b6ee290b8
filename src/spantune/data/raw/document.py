"""Documents as their files state them, before any check, and the one place that verifies them.

A reader yields a RawDocument for each document, or a DataError as a value if it could not make one: plain reading
raises it, `data check` counts it and continues. Readers only parse. Whether a span is inside its text and covers the
surface that the file gives for it is decided here, with the same messages for every format.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from spantune.core import DataError, Document, Entity
from spantune.data.raw.text_files import Stretch
from spantune.data.raw.units import UNITS, Unit, unit_of
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
    """A span as stated: half-open code points, unverified; `surface` is its text if the file gives one.

    `field` is its place in the record, and `line` its line in the file if that is not the record's.
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
    """A document as stated at `line` of `path`.

    `is_counted` says that the reader has counted the offsets itself, in code points; otherwise the file states them.
    """

    id: str
    text: str
    entities: tuple[RawEntity, ...]
    path: Path
    line: int | None = None
    meta: Mapping[str, object] = field(default_factory=dict)
    is_counted: bool = False

    def error(self, message: str, entity: RawEntity | None = None) -> DataError:
        """Return a DataError with the place of this document, or of an entity of it."""
        line = entity.line if entity is not None and entity.line is not None else self.line
        return DataError(message, path=self.path, line=line, field=(entity.field if entity else "") or None)


Item = RawDocument | DataError


class SurrogateError(DataError):
    """A text with half of a surrogate pair, which cannot be encoded."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a file does not say of itself and the user can; a format ignores the options that it does not need.

    Args:
        nested: what a format of flat tags does with overlapping entities: refuse them (`error`), or write the
            `outermost` or the `innermost`.
        column: the column of a table or of token lines that holds the tags or entities, from 0, or negative from the
            end; a name where there is a header.
        joiner: the text between tokens: `""`, `" "`, or None to decide from the tokens.
        scheme: the tags to write: `bio` or `bioes`.
        unannotated: whether JSON documents may lack the field of entities, as texts to extract from do.
        label: the label of tags that have none (`B`, `I`, `O`).
        encoding: the encoding of text files, by a name that Python knows; UTF-8, or what a byte-order mark says, when
            None.
        predicted: whether what is written are predictions, which a format may tell from annotations.
        offsets: what the stated offsets count: code points, UTF-16 code units, UTF-8 bytes, or characters with each
            CRLF as one; None takes them for code points and says where that is in doubt.
        stretch: the part of the file to read, where its format can be read in parts; all of it when None.
    """

    nested: Nested = "error"
    column: int | str | None = None
    joiner: str | None = None
    scheme: Literal["bio", "bioes"] = "bio"
    unannotated: bool = False
    label: str | None = None
    encoding: str | None = None
    offsets: Unit | None = None
    predicted: bool = False
    stretch: Stretch | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """The beginning of a file, or the content of a folder, by which a format recognises it.

    `head` are the first bytes, `text` the first lines (both empty for a folder, `text` also for a binary file),
    `record` is a JSON object of the file that shows its format, `files` are the names in a folder. Where there is a
    record, `text` is empty. `options` are the user's.
    """

    path: Path
    head: bytes = b""
    text: str = ""
    record: Mapping[str, object] | None = None
    files: tuple[str, ...] = ()
    options: Options = Options()


def each(records: Iterable[R | DataError], parse: Callable[[R], RawDocument]) -> Iterator[Item]:
    """Yield what `parse` makes of each record, or a DataError if it raises one."""
    for record in records:
        if isinstance(record, DataError):
            yield record
            continue
        try:
            yield parse(record)
        except DataError as error:
            yield error


def unique(items: Iterable[Item]) -> Iterator[Item]:
    """Yield `items`, with a DataError for a document whose id an earlier one has."""
    lines: dict[str, int | None] = {}
    for item in items:
        if isinstance(item, RawDocument):
            if item.id in lines:
                yield repeated_id(item, lines[item.id])
                continue
            lines[item.id] = item.line
        yield item


def repeated_id(document: RawDocument, line: int | None) -> DataError:
    """Return the error for a document whose id an earlier one has, which stands at `line`, if that is known."""
    first = f"line {line}" if line else "another document"
    return DataError(
        f"the id {document.id!r} is repeated; {first} has it too: make ids unique",
        path=document.path,
        line=document.line,
        field="id",
    )


def verified(items: Iterable[Item], notes: Counter[str]) -> Iterator[Document]:
    """Yield the documents of `items`; `notes` counts what was repaired or could not be verified.

    Raises:
        DataError: an item is one, or an entity is empty, outside its text or not the surface that its file gives.
    """
    for item in items:
        if isinstance(item, DataError):
            raise item
        entities = tuple(_entity(item, entity, notes) for entity in item.entities)
        yield Document(item.id, item.text, entities, item.meta)


def wrong(document: RawDocument, entity: RawEntity) -> str | None:
    """Say why the stated place of `entity` is wrong; None if it is not."""
    text, start, end = document.text, entity.start, entity.end
    if entity.surface is not None and (start < 0 or text[start : start + len(entity.surface)] != entity.surface):
        return misplaced(text, start, entity.surface)
    if not 0 <= start < end <= len(text):
        return (
            f"[{start}, {end}) is empty or outside the text of {len(text)} characters; expected half-open offsets in "
            "code points: mend them, or say with --offsets (data.offsets in a recipe) what else they count"
        )
    if entity.surface is not None and end != start + len(entity.surface):
        return (
            f"the entity ends {end - start} characters from its start, but its text {entity.surface!r} has "
            f"{len(entity.surface)}; mend the end or the text"
        )
    return None


def misplaced(text: str, start: int, surface: str) -> str:
    """Return the message for an entity whose `surface` is not what `text` has at `start`."""
    text_there = text[max(start, 0) : max(start, 0) + len(surface)]
    places = [match.start() for match in re.finditer(f"(?={re.escape(surface)})", text)]
    where = f"it occurs at {', '.join(map(str, places[:5]))}" if places else "it does not occur in the text"
    if unit := unit_of(text, start, surface):
        remedy = (
            f"If the offsets of the file count {unit}, give --offsets {UNITS[unit]} (data.offsets in a recipe), or let "
            "`spantune data check FILE --fix OUT` mend them"
        )
    else:
        remedy = "Offsets count Unicode code points from 0: mend the start or the text"
    return f"the entity's text is {surface!r}, but the document holds {text_there!r} at {start}; {where}. {remedy}"


def _entity(document: RawDocument, entity: RawEntity, notes: Counter[str]) -> Entity:
    if problem := wrong(document, entity):
        raise document.error(problem, entity)
    if entity.surface is None:
        notes["entity without a copy of its text in the file: offsets cannot be verified"] += 1
    if entity.defect is not None:
        if not entity.defect.tolerated:
            raise document.error(
                f"{entity.defect.message}; mend it, or let `spantune data check FILE --fix OUT` do it", entity
            )
        notes[entity.defect.message] += 1
    return Entity(entity.start, entity.end, entity.label, entity.score)


Row = dict[str, object]

_ROW: dict[str, type | tuple[type, ...]] = {"start": int, "end": int, "label": str, "id": (int, str)}


def stored_meta(document: Document, format: str) -> Mapping[str, object]:
    """Return what the reader of `format` stored in the document's meta; {} for a document of another format.

    Raises:
        DataError: the meta has something else under that name.
    """
    values = document.meta.get(format, {})
    if not isinstance(values, Mapping):
        raise meta_error(document, format, f"found {values!r:.40}; expected an object")
    return values


def unwritten_meta(document: Document, format: str, fields: Iterable[str]) -> bool:
    """Whether the meta under `format` has more than the `fields` that its writer uses, or nothing at all.

    Raises:
        DataError: it is no object.
    """
    names = stored_meta(document, format).keys()
    return format in document.meta and (not names or not names <= set(fields))


def with_rows(document: Document, format: str) -> tuple[list[tuple[Entity, Row]], list[Row]]:
    """Return each entity with its stored row, those without one last, and the rows of removed entities.

    Raises:
        DataError: the rows are not as the reader stores them.
    """
    rows = stored_meta(document, format).get("entities", [])
    if not isinstance(rows, list):
        raise meta_error(document, format, f"found {rows!r:.40} for entities; expected a list")
    without_row: dict[tuple[int, int, str], list[Entity]] = {}
    for entity in document.entities:
        without_row.setdefault((entity.start, entity.end, entity.label), []).append(entity)
    pairs: list[tuple[Entity, Row]] = []
    gone: list[Row] = []
    for row in rows:
        if not isinstance(row, dict) or not all(isinstance(row.get(name), kind) for name, kind in _ROW.items()):
            raise meta_error(
                document, format, f"found {row!r:.60} in entities; expected an object with {', '.join(_ROW)}"
            )
        if same := without_row.get((row["start"], row["end"], row["label"])):
            pairs.append((same.pop(0), row))
        else:
            gone.append(row)
    return pairs + [(entity, {}) for entities in without_row.values() for entity in entities], gone


def with_meta(record: dict[str, object], document: Document, own: Iterable[str]) -> dict[str, object]:
    """Return `record` with the document's meta beside the layout's fields.

    Raises:
        DataError: a key of the meta is one of the layout's `own` fields.
    """
    if taken := sorted(set(document.meta) & {*own, *record}):
        raise DataError(f"document {document.id!r}: the layout uses the meta key {taken[0]!r}; rename it")
    return {**record, **document.meta}


def moved(
    document: RawDocument, entities: Sequence[RawEntity], place: Callable[[int], int | None] | None = None
) -> RawDocument:
    """Return `document` with `entities` in place of its own, one for each, and its stored rows moved with them.

    A row keeps its parts only if `place`, which gives the new place of an offset, leaves them inside the entity.
    """
    spans = {
        (old.start, old.end, old.label): (new.start, new.end)
        for old, new in zip(document.entities, entities, strict=True)
        if (old.start, old.end) != (new.start, new.end)
    }
    meta = dict(document.meta)
    for format, values in document.meta.items() if spans else ():
        rows = values.get("entities") if isinstance(values, dict) else None
        if isinstance(values, dict) and isinstance(rows, list):
            meta[format] = values | {"entities": [_moved_row(row, spans, place) for row in rows]}
    return replace(document, entities=tuple(entities), meta=meta)


def _moved_row(
    row: object, spans: Mapping[tuple[int, int, str], tuple[int, int]], place: Callable[[int], int | None] | None
) -> object:
    if not isinstance(row, dict) or not all(isinstance(row.get(name), kind) for name, kind in _ROW.items()):
        return row
    span = spans.get((row["start"], row["end"], row["label"]))
    if span is None:
        return row
    after = {**row, "start": span[0], "end": span[1]}
    parts = after.pop("parts", None)
    if place is not None and isinstance(parts, list):
        placed = [[place(first), place(last)] for first, last in parts]
        if all(first is not None and last is not None and span[0] <= first < last <= span[1] for first, last in placed):
            after["parts"] = placed
    return after


def meta_error(document: Document, format: str, problem: str) -> DataError:
    """Return the error for meta under `format` that its reader did not write."""
    return DataError(
        f"document {document.id!r}: {problem}; mend meta[{format!r}], or remove it to write without it", field="meta"
    )
