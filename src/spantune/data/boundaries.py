"""Surfaces that are annotated sometimes with and sometimes without a word at their edge.

All annotated surfaces of a corpus are counted first. Then each document is looked at for entities that a known surface
with the same label would widen.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from spantune.data.findings import place_of
from spantune.data.raw.document import RawDocument

Surface = tuple[str, str]
"""The label and the text of an entity."""
Case = tuple[str, str, str]
"""A label, a surface with it, and a part of this that is an entity where the whole stands too."""
_WIDE = "\u2e80"  # the first character of the scripts without spaces between words
_LONGEST = 4  # characters of a word in such a script
_BEFORE = re.compile(r"[^\s\u2e80-\U0010ffff]+\s?$")
_AFTER = re.compile(r"\s?[^\s\u2e80-\U0010ffff]+")
_REACH = 40  # characters within which a word must end


@dataclass(slots=True)
class Cuts:
    """How often only the part of a Case is annotated, and where first."""

    where: str
    count: int = 0


def surfaces_of(documents: Iterable[RawDocument]) -> Counter[Surface]:
    """Count the surfaces of the entities of `documents`."""
    return Counter(
        (entity.label, document.text[entity.start : entity.end])
        for document in documents
        for entity in document.entities
    )


def cut_surfaces(documents: Iterable[RawDocument], surfaces: Collection[Surface]) -> dict[Case, Cuts]:
    """Find the entities of `documents` of which a word more, at one edge, is one of `surfaces` and not annotated."""
    cases: dict[Case, Cuts] = {}
    for document in documents:
        spans = {(entity.start, entity.end, entity.label) for entity in document.entities}
        for start, end, label in sorted(spans):
            for left, right in _wider(document.text, start, end):
                whole = document.text[left:right]
                if (label, whole) in surfaces and (left, right, label) not in spans:
                    case = (label, whole, document.text[start:end])
                    if case not in cases:
                        cases[case] = Cuts(place_of(document))
                    cases[case].count += 1
    return cases


def add_cuts(cases: dict[Case, Cuts], more: Mapping[Case, Cuts]) -> None:
    """Add to `cases` those of later documents."""
    for case, cuts in more.items():
        if case in cases:
            cases[case].count += cuts.count
        else:
            cases[case] = cuts


def _wider(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the spans that are wider by a word on the left, and those by a word on the right."""
    for left in range(start - 1, max(start - _LONGEST, 0) - 1, -1):
        if not _is_ideograph(text[left]):
            break
        yield left, end
    for right in range(end + 1, min(end + _LONGEST, len(text)) + 1):
        if not _is_ideograph(text[right - 1]):
            break
        yield start, right
    if start and text[start - 1] < _WIDE and (word := _BEFORE.search(text[max(start - _REACH, 0) : start])):
        yield start - len(word[0]), end
    if end < len(text) and text[end] < _WIDE and (word := _AFTER.match(text, end, end + _REACH)):
        yield start, end + len(word[0])


def _is_ideograph(character: str) -> bool:
    """Whether `character` is a letter of a script without spaces between words."""
    return character >= _WIDE and character.isalnum()
