"""Entities that a file states by their text alone, anchored to spans by the rule of `core.Anchors`.

If a text occurs several times, the order of the entities does not always tell which occurrence is meant. Such entities
are counted. A text that does not occur in its document is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from spantune.core import Anchors, Document, Entity, occurrences
from spantune.data.raw.document import RawEntity
from spantune.data.raw.json_records import Record

AMBIGUOUS = "entity whose text stands several times, and the order does not say where: anchored to the first that fits"
REPEATED = "entity stated more often than its text occurs: left out"


class Surface(NamedTuple):
    """An entity stated by text and label; `field` is its place in the record.

    The entities of one `group` are stated in the order of the text.
    """

    text: str
    label: str
    field: str
    group: str = ""


def anchored(record: Record, text: str, surfaces: Sequence[Surface], notes: Counter[str]) -> tuple[RawEntity, ...]:
    """Return the entities that `surfaces` state, in the order of `surfaces`.

    Args:
        record: the record, for errors.
        text: the text of the document.
        surfaces: the entities as stated.
        notes: counts ambiguous entities, and those that are stated more often than their text occurs.

    Raises:
        DataError: a surface does not occur in the text.
    """
    anchors = Anchors(text)
    placed: list[tuple[Surface, Entity]] = []
    for surface in surfaces:
        if surface.text not in text:
            raise record.error(
                f"the entity {surface.text!r} ({surface.label}) does not occur in the text {text[:40]!r}; expected "
                "words of the text, copied exactly: mend the entity or the text",
                surface.field,
            )
        entity = anchors.place(surface.text, surface.label, surface.group)
        if entity is None:
            notes[REPEATED] += 1
        else:
            placed.append((surface, entity))
    notes[AMBIGUOUS] += _ambiguous(text, placed)
    return tuple(
        RawEntity(entity.start, entity.end, entity.label, surface.text, field=record.place(surface.field))
        for surface, entity in placed
    )


def note_lost_places(document: Document, notes: Counter[str]) -> None:
    """Count the entities that reading would anchor to another place if only their texts were written, in order."""
    anchors = Anchors(document.text)
    for entity in document.entities:
        again = anchors.place(document.surface(entity), entity.label)
        notes["entity whose text stands several times: its place is not kept"] += again != entity


def _ambiguous(text: str, placed: Sequence[tuple[Surface, Entity]]) -> int:
    """Count the surfaces for which another occurrence in the text is possible too.

    A surface is not ambiguous if it occurs once, if every occurrence of it is stated, or if the order leaves one place
    only: the first occurrence that fits from the front is then also the first that fits from the back.
    """
    stated = Counter((surface.text, surface.label) for surface, _ in placed)
    ambiguous = 0
    following: dict[str, Entity | None] = {}  # by group: the last possible place of the surface stated after this one
    unordered = _unordered_groups(placed)
    for surface, entity in reversed(placed):
        could = list(occurrences(surface.text, surface.label, text))
        bound = following.get(surface.group)
        last = max((other for other in could if bound is None or other < bound), default=entity)
        following[surface.group] = last
        if len(could) > stated[surface.text, surface.label]:
            ambiguous += surface.group in unordered or last != entity
    return ambiguous


def _unordered_groups(placed: Sequence[tuple[Surface, Entity]]) -> set[str]:
    last: dict[str, Entity] = {}
    unordered = set()
    for surface, entity in placed:
        if surface.group in last and entity < last[surface.group]:
            unordered.add(surface.group)
        last[surface.group] = entity
    return unordered
