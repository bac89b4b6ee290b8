"""Anchoring: find the span of each entity that is given by its surface and label only, without offsets.

The answers of a model and files without offsets state entities in the order of the text, sorted by (start, end, label).
So each surface is anchored to its first occurrence after the previously anchored entity. Only if there is none is an
occurrence further back taken. On gold CMeEE answers this method recovers 99 % of the entities exactly. Always taking
the first occurrence recovers 93 %, and matching the k-th mention of a surface to its k-th occurrence recovers 96 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from spantune.core.document import Entity


class Anchors:
    """The entities of one text that are anchored so far, with a cursor for each group of surfaces.

    Within a group, the surfaces are expected in the order of the text. The cursor of a group is its last entity.

    Args:
        text: the document's text.
        nested: whether entities may overlap. If False, an occurrence that overlaps no anchored entity is preferred.
    """

    def __init__(self, text: str, *, nested: bool = True) -> None:
        self._text = text
        self._nested = nested
        self._cursors: dict[str, Entity] = {}
        self._used: set[Entity] = set()
        self._covered = bytearray(0 if nested else len(text))

    def place(self, surface: str, label: str, group: str = "") -> Entity | None:
        """Anchor `surface` and return its entity; None if every occurrence is already taken with this label.

        The entity is the first free occurrence that sorts after the last entity of `group`, or else the first free one
        of the text. If entities may not overlap, occurrences that overlap no anchored entity are tried first.
        """
        last = self._cursors.get(group, Entity(0, 0, ""))
        ahead = (e for e in occurrences(surface, label, self._text, last.start) if e > last)
        candidates = chain(ahead, occurrences(surface, label, self._text))
        if not self._nested:
            behind = occurrences(surface, label, self._text, last.end)
            free = (e for e in chain(behind, occurrences(surface, label, self._text)) if self._is_free(e))
            candidates = chain(free, candidates)
        entity = next((e for e in candidates if e not in self._used), None)
        if entity is not None:
            self._cursors[group] = entity
            self._used.add(entity)
            if not self._nested:
                self._covered[entity.start : entity.end] = b"\1" * (entity.end - entity.start)
        return entity

    def _is_free(self, entity: Entity) -> bool:
        return 1 not in self._covered[entity.start : entity.end]


def occurrences(surface: str, label: str, text: str, start: int = 0) -> Iterator[Entity]:
    """Yield an entity for every occurrence of `surface` that begins at offset `start` or later, in text order.

    Occurrences may overlap. An empty surface has no occurrences.
    """
    place = text.find(surface, start) if surface else -1
    while place >= 0:
        yield Entity(place, place + len(surface), label)
        place = text.find(surface, place + 1)
