"""Find surfaces that are sometimes annotated with a word at their edge and sometimes without it.

All annotated surfaces of the corpus are counted first. Then each document is searched for entities that would be one
of these surfaces, with the same label, if they were one word longer.
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
"""A label, a surface that has it somewhere, and the part of this surface that is annotated elsewhere instead."""
_WIDE = "\u2e80"  # from this character on: scripts without spaces between words
_LONGEST = 4  # the most characters of a word in such a script
_BEFORE = re.compile(r"[^\s\u2e80-\U0010ffff]+\s?$")
_AFTER = re.compile(r"\s?[^\s\u2e80-\U0010ffff]+")
_REACH = 40  # the most characters of a word in other scripts, with the space between it and the entity


@dataclass(slots=True)
class Cuts:
    """How often only the part of a Case is annotated, and the place of the first such document."""

    where: str
    count: int = 0


def surfaces_of(documents: Iterable[RawDocument]) -> Counter[Surface]:
    """Count the entities of `documents` by label and text."""
    return Counter(
        (entity.label, document.text[entity.start : entity.end])
        for document in documents
        for entity in document.entities
    )


def cut_surfaces(documents: Iterable[RawDocument], surfaces: Collection[Surface]) -> dict[Case, Cuts]:
    """Find entities without a word at their edge, although the longer surface is annotated elsewhere.

    Example: in "type 2 diabetes" only "diabetes" is annotated, but in another text all of "type 2 diabetes" has that
    label. If both are annotated in the same place, that is nesting and is not reported.

    Args:
        documents: the documents to search.
        surfaces: the (label, text) of all entities of the corpus.
    """
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
    """Add to `cases` the cuts of later documents."""
    for case, cuts in more.items():
        if case in cases:
            cases[case].count += cuts.count
        else:
            cases[case] = cuts


def _wider(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the spans that are longer by one word on the left or on the right.

    In a script without spaces between words, any one to `_LONGEST` letters beside the span may be a word.
    """
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
    """Return whether `character` is a letter of a script without spaces between words."""
    return character >= _WIDE and character.isalnum()
