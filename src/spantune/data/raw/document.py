"""Documents as their files state them, before any check, and the one place that verifies them.

For each document a reader yields a RawDocument, or a DataError as a value if the document cannot be read. Plain reading
raises the error; `data check` counts it and continues. Readers only parse. Whether a span is inside its text and covers
the surface that the file states is decided here, with the same messages for every format.
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
SEVERAL_PARTS = "entity of several parts, read from the first to the last"


class Defect(NamedTuple):
    """Something wrong with how an entity is stated, although the entity could be read.

    `message` says what was found. If `tolerated` is False, plain reading refuses the entity, and only
    `data check --fix` repairs it.
    """

    rule: Rule
    message: str
    tolerated: bool


@dataclass(frozen=True, slots=True)
class RawEntity:
    """An entity as the file states it, not verified.

    Args:
        start: its first character, as a half-open span in code points.
        end: the character after its last one.
        label: its label.
        surface: its text, if the file states it.
        score: its score, if the file states it.
        field: its place in the record, for messages.
        line: its line in the file, if that is not the line of the document.
        defect: what is wrong with how it is stated.
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
    """A document as the file states it, not verified.

    Args:
        id: its id.
        text: its text, which is never changed.
        entities: its entities.
        path: the file.
        line: its line in the file; for a table, the number of the row.
        meta: its other fields.
        is_counted: True if the reader has counted the offsets itself, in code points; False if the file states them.
    """

    id: str
    text: str
    entities: tuple[RawEntity, ...]
    path: Path
    line: int | None = None
    meta: Mapping[str, object] = field(default_factory=dict)
    is_counted: bool = False

    def error(self, message: str, entity: RawEntity | None = None) -> DataError:
        """Return a DataError with the place of this document, or of its `entity` if one is given."""
        line = entity.line if entity is not None and entity.line is not None else self.line
        return DataError(message, path=self.path, line=line, field=(entity.field if entity else "") or None)


Item = RawDocument | DataError


class SurrogateError(DataError):
    """The error for a text with half of a surrogate pair, which cannot be encoded."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the user can say about a file that the file does not say itself. A format ignores what it does not need.

    Args:
        nested: what a format of flat tags does with overlapping entities: refuse them (`error`), or write only the
            `outermost` or the `innermost`.
        column: the column of a table or of token lines that holds the tags or entities: a number from 0, negative from
            the end, or a name if there is a header.
        joiner: the text between tokens: `""`, `" "`, or None to decide from the tokens.
        scheme: the scheme of the tags to write: `bio` or `bioes`.
        unannotated: whether JSON documents may lack the field of entities, as texts to extract from do.
        label: the label of tags that have none (`B`, `I`, `O`).
        encoding: the encoding of text files, by a name that Python knows. None stands for UTF-8, or for the encoding of
            the byte-order mark.
        offsets: what the stated offsets count: code points, UTF-16 code units, UTF-8 bytes, or characters with each
            CRLF as one. None takes them for code points, and notes where that is in doubt.
        predicted: whether the written entities are predictions, which some formats mark as such.
        stretch: the part of the file to read, if its format can be read in parts; None for the whole file.
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
    """The beginning of a file, or the names in a folder, by which a format recognises it.

    Args:
        path: the file or folder.
        head: the first bytes; empty for a folder.
        text: the first lines; empty for a folder, for a binary file, and if there is a `record`.
        record: a JSON object of the file that shows its format, if there is one.
        files: the names in a folder.
        options: the user's options.
    """

    path: Path
    head: bytes = b""
    text: str = ""
    record: Mapping[str, object] | None = None
    files: tuple[str, ...] = ()
    options: Options = Options()


def each(records: Iterable[R | DataError], parse: Callable[[R], RawDocument]) -> Iterator[Item]:
    """Yield the document that `parse` makes of each record, or the DataError that it raises or that the record is."""
    for record in records:
        if isinstance(record, DataError):
            yield record
            continue
        try:
            yield parse(record)
        except DataError as error:
            yield error


def unique(items: Iterable[Item]) -> Iterator[Item]:
    """Yield `items`; a document whose id an earlier one has is replaced by a DataError."""
    lines: dict[str, int | None] = {}
    for item in items:
        if isinstance(item, RawDocument):
            if item.id in lines:
                yield repeated_id(item, lines[item.id])
                continue
            lines[item.id] = item.line
        yield item


def repeated_id(document: RawDocument, line: int | None) -> DataError:
    """Return the error for a document whose id an earlier document has; `line` is the line of the latter, if known."""
    first = f"line {line}" if line else "another document"
    return DataError(
        f"the id {document.id!r} is repeated; {first} has it too: make ids unique",
        path=document.path,
        line=document.line,
        field="id",
    )


def verified(items: Iterable[Item], notes: Counter[str]) -> Iterator[Document]:
    """Yield the documents of `items`, with their entities verified.

    Args:
        items: what a reader yields.
        notes: counts what was repaired or could not be verified.

    Raises:
        DataError: an item is one, or an entity is empty, lies outside its text or does not have the stated surface.
    """
    for item in items:
        if isinstance(item, DataError):
            raise item
        entities = tuple(_entity(item, entity, notes) for entity in item.entities)
        yield Document(item.id, item.text, entities, item.meta)


def wrong(document: RawDocument, entity: RawEntity) -> str | None:
    """Say why the stated offsets of `entity` are wrong; None if they are right."""
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
    """Return the message for an entity whose stated `surface` is not what the text has at `start`."""
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
"""What a format stores of an entity in the document's meta: at least the fields of `_ROW`."""

_ROW: dict[str, type | tuple[type, ...]] = {"start": int, "end": int, "label": str, "id": (int, str)}


def stored_meta(document: Document, format: str) -> Mapping[str, object]:
    """Return what the reader of `format` stored in the document's meta; {} if it came from another format.

    Raises:
        DataError: the value under that name is no object.
    """
    values = document.meta.get(format, {})
    if not isinstance(values, Mapping):
        raise meta_error(document, format, f"found {values!r:.40}; expected an object")
    return values


def unwritten_meta(document: Document, format: str, fields: Iterable[str]) -> bool:
    """Return whether the meta under `format` has fields that its writer does not use, or is an empty object.

    Args:
        document: the document.
        format: the name of the format.
        fields: the fields that the writer uses.

    Raises:
        DataError: the value under that name is no object.
    """
    names = stored_meta(document, format).keys()
    return format in document.meta and (not names or not names <= set(fields))


def with_rows(document: Document, format: str) -> tuple[list[tuple[Entity, Row]], list[Row]]:
    """Return the pairs of an entity and its stored row, and the rows whose entity was removed.

    Entities without a stored row come last, with an empty row.

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
    """Return `record` with the fields of the document's meta added.

    Raises:
        DataError: a key of the meta is a field of `record`, or one of the `own` fields of the layout.
    """
    if taken := sorted(set(document.meta) & {*own, *record}):
        raise DataError(f"document {document.id!r}: the layout uses the meta key {taken[0]!r}; rename it")
    return {**record, **document.meta}


def moved(
    document: RawDocument, entities: Sequence[RawEntity], place: Callable[[int], int | None] | None = None
) -> RawDocument:
    """Return `document` with `entities` in place of its own, one for each; its stored rows get the new offsets too.

    Args:
        document: the document.
        entities: the new entities, in the order of the document's own.
        place: returns the new offset for an old one, or None. A row keeps its `parts` only if the new offsets of all of
            them are inside the entity; without `place` it loses them.
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
    """Return the error for meta under `format` that the format's reader cannot have written."""
    return DataError(
        f"document {document.id!r}: {problem}; mend meta[{format!r}], or remove it to write without it", field="meta"
    )
