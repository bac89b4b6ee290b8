"""Find wrong offsets, the one shift by which a whole file is wrong, and the right place of an entity.

The offsets of a file are not wrong at random. They count from 1, or in UTF-16 units as in JavaScript and Java, or in
UTF-8 bytes, or with each CRLF as one character. The user may name the unit; `settled`, through which every file passes,
then converts the offsets. Otherwise the shift is estimated from the wrong entities, and it is used only if it corrects
nine in ten of them. An entity is moved only to a place where its text occurs. It is not moved if the text at its own
place differs in white space only, if the file does not state its text, or if there are several possible places.
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
_REACH = 1000  # the largest distance, in characters, at which the text of an entity is looked for
_FEW = 3  # the fewest wrong entities from which a shift is estimated in a file that has right ones too


@dataclass(frozen=True, slots=True)
class Shift:
    """How the offsets of a file are wrong: they count in `unit`, or they are `by` code points too small.

    With `whole` the shift applies to every entity of the file, even to one whose text occurs at its stated offsets.
    """

    by: int = 0
    unit: str = ""
    whole: bool = True

    def start(self, text: str, stated: int) -> int | None:
        """Return the start in code points for the offset `stated`; None if no character begins there."""
        return code_point(text, stated, UNITS[self.unit]) if self.unit else stated + self.by

    def __str__(self) -> str:
        if self.unit:
            return f"offsets count {self.unit}, not code points"
        size = f"each start is {abs(self.by)} too {'large' if self.by < 0 else 'small'}"
        return f"offsets are 1-based: {size}" if self.by == -1 else size


def settled(items: Iterable[Item], unit: Unit | None, notes: Counter[str]) -> Iterator[Item]:
    """Yield `items` with offsets in code points.

    A stated text that differs from the text at the offsets in white space only is replaced by the latter.

    Args:
        items: documents and errors from the reader of a format.
        unit: what the stated offsets count. If None, they are taken for code points, and entities for which that is in
            doubt get the defect OFFSET_UNIT.
        notes: counts the documents whose offsets were not converted, because they fit as code points only.

    Yields:
        The documents and errors. An offset that cannot be converted gives a DataError in place of its document.
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
    """Return `document` with its offsets converted from `unit`; unchanged if its stated texts fit as code points only.

    Raises:
        DataError: an offset is inside a character or outside the text, counted in `unit`.
    """
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
    """Return whether the document states the text of an entity, and all stated texts occur at their offsets."""
    stated = [entity for entity in document.entities if entity.surface is not None]
    return bool(stated) and all(fault(document, entity) is None for entity in stated)


def _tolerated(text: str, entity: RawEntity, is_doubted: bool) -> RawEntity:
    """Return `entity` with the text at its offsets if only white space differs; with OFFSET_UNIT if `is_doubted`."""
    if entity.defect is not None or not 0 <= entity.start < entity.end <= len(text):
        return entity
    if entity.surface is None:
        return replace(entity, defect=DOUBTFUL) if is_doubted and is_doubtful(text, entity.end) else entity
    found = text[entity.start : entity.end]
    is_end_wrong = found.startswith(entity.surface)  # or the end is right; a wrong end is an error, not tolerated
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
    """Counts of right and wrong starts of entities, and of how many of them each possible shift would explain.

    Args:
        right: entities whose stated text begins at their start.
        wrong: the other entities with a stated text.
        corrected: for each unit, the wrong entities that are right if their start is counted in it.
        unchanged: for each unit, the right entities whose start is the same if it is counted in it.
        distances: for each distance in code points, the wrong entities that are right if they are moved by it.
    """

    right: int = 0
    wrong: int = 0
    corrected: Counter[str] = field(default_factory=Counter)
    unchanged: Counter[str] = field(default_factory=Counter)
    distances: Counter[int] = field(default_factory=Counter)

    def count(self, document: RawDocument) -> None:
        """Count the entities of a document that have a stated text."""
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
        """Add the counts of later documents."""
        self.right += later.right
        self.wrong += later.wrong
        self.corrected.update(later.corrected)
        self.unchanged.update(later.unchanged)
        self.distances.update(later.distances)

    def shift(self) -> Shift | None:
        """Return the shift that explains nine in ten of the wrong starts; None if there is none.

        A unit must also leave nearly all right starts right; one that does is preferred to a distance.
        """
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
    """Return the shift that the wrong starts of a file share; None if they share none. See `Starts.shift`."""
    starts = Starts()
    for document in documents:
        starts.count(document)
    return starts.shift()


def repaired_span(text: str, entity: RawEntity, shift: Shift | None) -> tuple[int, int] | None:
    """Return the right span of `entity`; None if it is unknown.

    The span begins at the shifted or the stated start if the text of the entity occurs there, else at the only place
    where the text occurs. Without a stated text, or with several places, it is unknown.
    """
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
    """Return the distances, within `_REACH`, from the stated start to where the text occurs; negative if before it."""
    surface = re.escape(entity.surface or "")
    begin = max(entity.start - _REACH, 0)
    around = text[begin : max(entity.start + _REACH, 0)]
    return {begin + match.start() - entity.start for match in re.finditer(f"(?={surface})", around)}


def _occurs(text: str, start: int | None, entity: RawEntity) -> bool:
    return start is not None and start >= 0 and text.startswith(entity.surface or "", start)
