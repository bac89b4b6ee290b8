"""Find wrong offsets, the one shift by which a whole file is wrong, and the right place of an entity.

The offsets of a file are not wrong at random: they count from 1, in UTF-16 units as JavaScript and Java do, or in UTF-8
bytes. The shift is estimated from the wrong entities and used only if it corrects nine in ten of them. An entity is
moved only to a place where its text occurs. One without its text is not moved, nor one with several possible places.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from spantune.data.raw.document import RawDocument, RawEntity
from spantune.data.rules import Rule

UNITS = {"UTF-16 code units": ("utf-16-le", 2), "UTF-8 bytes": ("utf-8", 1)}

ENOUGH = 0.9  # the share of the wrong entities that a shift must correct
_REACH = 1000  # characters; no way of counting is wrong by more
_FEW = 3  # wrong entities; with fewer in an otherwise right file no shift is assumed


@dataclass(frozen=True, slots=True)
class Shift:
    """How the offsets of a file are wrong: counted in `unit`, or `by` code points too small.

    With `whole` the shift applies to every entity of the file, even to one whose text occurs at its stated offsets.
    """

    by: int = 0
    unit: str = ""
    whole: bool = True

    def start(self, text: str, stated: int) -> int | None:
        """Return the start in code points for the offset `stated`; None if it is inside a character."""
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


def fault(document: RawDocument, entity: RawEntity) -> Rule | None:
    """Return the rule that the offsets of `entity` break; None if they are right.

    It is END_MISMATCH if the entity's text occurs at its start but does not end where stated, and otherwise EMPTY_SPAN,
    OUT_OF_RANGE or SURFACE_MISMATCH.
    """
    text, start, end, surface = document.text, entity.start, entity.end, entity.surface
    if surface is not None and start >= 0 and text.startswith(surface, start):
        return None if end == start + len(surface) else Rule.END_MISMATCH
    if start >= end:
        return Rule.EMPTY_SPAN
    if start < 0 or end > len(text):
        return Rule.OUT_OF_RANGE
    return None if surface is None else Rule.SURFACE_MISMATCH


def shared_shift(documents: Iterable[RawDocument]) -> Shift | None:
    """Return the shift that the wrong starts of a file share; None if they share none."""
    right: list[tuple[str, RawEntity]] = []
    wrong: list[tuple[str, RawEntity]] = []
    for document in documents:
        for entity in document.entities:
            if entity.surface is not None:
                (right if _occurs(document.text, entity.start, entity) else wrong).append((document.text, entity))
    if not wrong or len(wrong) < min(_FEW, len(right) + 1):
        return None
    for unit in UNITS:
        shift = Shift(unit=unit)
        corrected = sum(_occurs(text, shift.start(text, entity.start), entity) for text, entity in wrong)
        unchanged = sum(shift.start(text, entity.start) == entity.start for text, entity in right)
        if corrected >= ENOUGH * len(wrong) and corrected + unchanged >= ENOUGH * (len(wrong) + len(right)):
            return shift
    distances: Counter[int] = Counter()
    for text, entity in wrong:
        distances.update(_distances(text, entity))
    by, count = min(distances.items(), key=lambda item: (-item[1], abs(item[0])), default=(0, 0))
    return Shift(by, whole=count >= ENOUGH * (len(wrong) + len(right))) if count >= ENOUGH * len(wrong) else None


def repaired_span(text: str, entity: RawEntity, shift: Shift | None) -> tuple[int, int] | None:
    """Return the span of `entity` at its stated start, its shifted start or its only occurrence; None if unknown."""
    if entity.surface is None:
        return None
    candidates = [entity.start]
    if shift and (shifted := shift.start(text, entity.start)) is not None:
        candidates.insert(0 if shift.whole else 1, shifted)
    start = next((candidate for candidate in candidates if _occurs(text, candidate, entity)), None)
    if start is None:
        first = text.find(entity.surface)
        start = first if first >= 0 and text.find(entity.surface, first + 1) < 0 else None
    return None if start is None else (start, start + len(entity.surface))


def _distances(text: str, entity: RawEntity) -> set[int]:
    """Return how far before (negative) or behind its stated start the text of `entity` occurs, within `_REACH`."""
    surface = re.escape(entity.surface or "")
    begin = max(entity.start - _REACH, 0)
    around = text[begin : max(entity.start + _REACH, 0)]
    return {begin + match.start() - entity.start for match in re.finditer(f"(?={surface})", around)}


def _occurs(text: str, start: int | None, entity: RawEntity) -> bool:
    return start is not None and start >= 0 and text.startswith(entity.surface or "", start)
