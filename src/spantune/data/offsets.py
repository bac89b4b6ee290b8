"""Where stated entities really stand: what is wrong with an offset, and the one rule by which a whole file is off.

A file is not wrong at random: it counts from 1, or in UTF-16 units as JavaScript and Java do, or in UTF-8 bytes. The
rule is read off the entities that are wrong, and believed only when it puts nine in ten of them right. An entity is
moved only to where its text stands; it refuses to choose between several places, and to move what has no text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from spantune.data.raw.document import RawDocument, RawEntity

UNITS = {"UTF-16 code units": ("utf-16-le", 2), "UTF-8 bytes": ("utf-8", 1)}

ENOUGH = 0.9  # of the wrong entities, which a rule must put right
_REACH = 1000  # characters, further than which no way of counting is off
_FEW = 3  # wrong entities of an otherwise right file: too few to speak of a rule


@dataclass(frozen=True, slots=True)
class Shift:
    """How the wrong offsets of a file are wrong: counted in `unit`, or `by` code points too small.

    With `whole` the rule is the file's own, and holds for an entity that happens to fit as it is, too.
    """

    by: int = 0
    unit: str = ""
    whole: bool = True

    def start(self, text: str, stated: int) -> int | None:
        """The start in code points that `stated` means; None when it lies inside a character."""
        if not self.unit:
            return stated + self.by
        encoding, width = UNITS[self.unit]
        try:
            return len(text.encode(encoding)[: stated * width].decode(encoding)) if stated >= 0 else None
        except UnicodeDecodeError:
            return None

    def __str__(self) -> str:
        if self.unit:
            return f"offsets count {self.unit}, not code points"
        size = f"each start is {abs(self.by)} too {'large' if self.by < 0 else 'small'}"
        return f"offsets are 1-based: {size}" if self.by == -1 else size


def fault(document: RawDocument, entity: RawEntity) -> str | None:
    """The name of what is wrong with the offsets of `entity`; None when nothing is.

    It is `end-mismatch` when the entity's text stands at its start but ends elsewhere than stated; `empty-span`,
    `out-of-range` or `surface-mismatch` otherwise.
    """
    text, start, end, surface = document.text, entity.start, entity.end, entity.surface
    if surface is not None and start >= 0 and text.startswith(surface, start):
        return None if end == start + len(surface) else "end-mismatch"
    if start >= end:
        return "empty-span"
    if start < 0 or end > len(text):
        return "out-of-range"
    return None if surface is None else "surface-mismatch"


def shared_shift(documents: Iterable[RawDocument]) -> Shift | None:
    """The rule by which the wrong starts of a file are wrong; None when they have none in common."""
    right: list[tuple[str, RawEntity]] = []
    wrong: list[tuple[str, RawEntity]] = []
    for document in documents:
        for entity in document.entities:
            if entity.surface is not None:
                (right if _stands(document.text, entity.start, entity) else wrong).append((document.text, entity))
    if not wrong or len(wrong) < min(_FEW, len(right) + 1):
        return None
    for unit in UNITS:
        shift = Shift(unit=unit)
        mended = sum(_stands(text, shift.start(text, entity.start), entity) for text, entity in wrong)
        if mended >= ENOUGH * len(wrong) and mended + _still(shift, right) >= ENOUGH * (len(wrong) + len(right)):
            return shift
    distances: Counter[int] = Counter()
    for text, entity in wrong:
        distances.update(_distances(text, entity))
    by, count = min(distances.items(), key=lambda found: (-found[1], abs(found[0])), default=(0, 0))
    return Shift(by, whole=count >= ENOUGH * (len(wrong) + len(right))) if count >= ENOUGH * len(wrong) else None


def mended(text: str, entity: RawEntity, shift: Shift | None) -> tuple[int, int] | None:
    """Where the text of `entity` stands: at its start, where `shift` says, or at its only place; None if unknown."""
    if entity.surface is None:
        return None
    candidates = [entity.start]
    if shift and (shifted := shift.start(text, entity.start)) is not None:
        candidates.insert(0 if shift.whole else 1, shifted)
    found = next((start for start in candidates if _stands(text, start, entity)), None)
    if found is None:
        first = text.find(entity.surface)
        found = first if first >= 0 and text.find(entity.surface, first + 1) < 0 else None
    return None if found is None else (found, found + len(entity.surface))


def _distances(text: str, entity: RawEntity) -> set[int]:
    """How far before (negative) or behind its start the text of `entity` stands, within `_REACH` characters."""
    surface = re.escape(entity.surface or "")
    begin = max(entity.start - _REACH, 0)
    around = text[begin : max(entity.start + _REACH, 0)]
    return {begin + match.start() - entity.start for match in re.finditer(f"(?={surface})", around)}


def _still(shift: Shift, right: list[tuple[str, RawEntity]]) -> int:
    """How many of the entities that are right as they are `shift` leaves right."""
    return sum(shift.start(text, entity.start) == entity.start for text, entity in right)


def _stands(text: str, start: int | None, entity: RawEntity) -> bool:
    return start is not None and start >= 0 and text.startswith(entity.surface or "", start)
