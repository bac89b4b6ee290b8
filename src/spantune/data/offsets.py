"""Find wrong offsets, the one shift by which a whole file is wrong, and the right place of an entity.

The offsets of a file are not wrong at random: they count from 1, in UTF-16 units as JavaScript and Java do, in UTF-8
bytes, or each CRLF as one character. The user may name the unit, and `settled`, which every file passes, converts it.
Otherwise the shift is estimated from the wrong entities and used only if it corrects nine in ten of them. An entity is
moved only to a place where its text occurs, and never if the text at its own place differs in white space only. One
without its text is not moved, nor one with several possible places.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from spantune.core import DataError
from spantune.data.raw.document import Defect, Item, RawDocument, RawEntity, moved
from spantune.data.raw.units import UNITS, Unit, agree, code_point, is_doubtful, trimmed
from spantune.data.rules import Rule

SPACES = Defect(
    Rule.WHITE_SPACE_IN_TEXT, "entity text differs from the document in white space only: read at its offsets", True
)
DOUBTFUL = Defect(
    Rule.OFFSET_UNIT,
    "entity without its text behind a character beyond U+FFFF or a CRLF: offsets taken for code points; name with "
    "--offsets (data.offsets in a recipe) what they count: codepoints, utf16, bytes or crlf",
    tolerated=True,
)

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
        return code_point(text, stated, UNITS[self.unit]) if self.unit else stated + self.by

    def __str__(self) -> str:
        if self.unit:
            return f"offsets count {self.unit}, not code points"
        size = f"each start is {abs(self.by)} too {'large' if self.by < 0 else 'small'}"
        return f"offsets are 1-based: {size}" if self.by == -1 else size


def settled(items: Iterable[Item], unit: Unit | None, notes: Counter[str]) -> Iterator[Item]:
    """Yield `items` with offsets in code points, which `unit` says what they count in; without it, doubts are marked.

    A stated text that differs from the text at the offsets in white space only is replaced by it.
    """
    for item in items:
        if isinstance(item, DataError):
            yield item
            continue
        try:
            yield _settled(item, unit, notes)
        except DataError as error:
            yield error


def _settled(document: RawDocument, unit: Unit | None, notes: Counter[str]) -> RawDocument:
    if document.is_counted:
        return document
    if unit not in (None, "codepoints"):
        document = _converted(document, unit, notes)
    entities = [_tolerated(document.text, entity, unit is None) for entity in document.entities]
    return moved(document, entities) if entities != list(document.entities) else document


def _converted(document: RawDocument, unit: Unit, notes: Counter[str]) -> RawDocument:
    """Return `document` with its offsets converted from `unit`, unless its stated texts fit as code points only."""
    text = document.text
    entities: list[RawEntity] = []
    for entity in document.entities:
        start, end = code_point(text, entity.start, unit), code_point(text, entity.end, unit)
        if start is not None and entity.surface is not None and text.startswith(entity.surface, start):
            end = start + len(entity.surface)  # a reader may have counted the end from the text
        if start is None or end is None:
            if _fits(document):
                break
            raise document.error(
                f"[{entity.start}, {entity.end}) begins or ends inside a character or outside the text, counted as "
                f"--offsets {unit} says; check what the offsets count",
                entity,
            )
        entities.append(replace(entity, start=start, end=end))
    else:
        converted = moved(document, entities, lambda offset: code_point(text, offset, unit))
        if not _fits(document) or _fits(converted):
            return converted
    notes[f"document whose offsets fit as code points: --offsets {unit} not applied"] += 1
    return document


def _fits(document: RawDocument) -> bool:
    """Whether entities with their text are there, and all at their offsets."""
    stated = [entity for entity in document.entities if entity.surface is not None]
    return bool(stated) and all(fault(document, entity) is None for entity in stated)


def _tolerated(text: str, entity: RawEntity, is_doubted: bool) -> RawEntity:
    """Return `entity` with the text at its offsets if only white space differs, and with the mark of a doubt."""
    if entity.defect is not None or not 0 <= entity.start < entity.end <= len(text):
        return entity
    if entity.surface is None:
        return replace(entity, defect=DOUBTFUL) if is_doubted and is_doubtful(text, entity.end) else entity
    found = text[entity.start : entity.end]
    is_end_wrong = found.startswith(entity.surface)  # or right; a wrong end may be one of many, so it stays an error
    if is_end_wrong or not agree(found, entity.surface):
        return entity
    start, end = entity.start, entity.end
    inside = trimmed(text, start, end)
    if not entity.surface[:1].isspace():
        start = inside[0]
    if not entity.surface[-1:].isspace():
        end = inside[1]
    return replace(entity, start=start, end=end, surface=text[start:end], defect=SPACES)


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


@dataclass(slots=True)
class Starts:
    """Right and wrong starts of entities: how many, and how many of them each shift would explain.

    Args:
        right: entities whose text begins at their start.
        wrong: the others that have their text.
        corrected: of the wrong ones, those that are right counted in a unit.
        unchanged: of the right ones, those that stay right counted in it.
        distances: how many wrong ones each distance in code points would correct.
    """

    right: int = 0
    wrong: int = 0
    corrected: Counter[str] = field(default_factory=Counter)
    unchanged: Counter[str] = field(default_factory=Counter)
    distances: Counter[int] = field(default_factory=Counter)

    def count(self, document: RawDocument) -> None:
        """Count the entities of a document that have their text."""
        text = document.text
        for entity in document.entities:
            if entity.surface is None:
                continue
            starts = {unit: Shift(unit=unit).start(text, entity.start) for unit in UNITS}
            if _occurs(text, entity.start, entity):
                self.right += 1
                self.unchanged.update(unit for unit, start in starts.items() if start == entity.start)
            else:
                self.wrong += 1
                self.corrected.update(unit for unit, start in starts.items() if _occurs(text, start, entity))
                self.distances.update(_distances(text, entity))

    def add(self, later: Starts) -> None:
        """Add those of later documents."""
        self.right += later.right
        self.wrong += later.wrong
        self.corrected.update(later.corrected)
        self.unchanged.update(later.unchanged)
        self.distances.update(later.distances)

    def shift(self) -> Shift | None:
        """Return the shift that the wrong starts share; None if they share none."""
        right, wrong = self.right, self.wrong
        if not wrong:
            return None
        for unit in UNITS:
            corrected = self.corrected[unit]
            if corrected >= ENOUGH * wrong and corrected + self.unchanged[unit] >= ENOUGH * (wrong + right):
                return Shift(unit=unit)
        if wrong < min(_FEW, right + 1):
            return None
        by, count = min(self.distances.items(), key=lambda item: (-item[1], abs(item[0])), default=(0, 0))
        return Shift(by, whole=count >= ENOUGH * (wrong + right)) if count >= ENOUGH * wrong else None


def shared_shift(documents: Iterable[RawDocument]) -> Shift | None:
    """Return the shift that the wrong starts of a file share; None if they share none."""
    starts = Starts()
    for document in documents:
        starts.count(document)
    return starts.shift()


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
