"""Where annotators drew the edge of an entity now here, now there: `急性阑尾炎` whole, and in it only `阑尾炎`.

A surface is compared with those that have one word more at its left or right edge. Without a word segmenter, a word is
here up to four ideographs, or a run of other letters with the space around it; so a difference in the middle, or of
several words, is not seen, and a surface that rightly has both readings is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from spantune.formats.raw import RawDocument

_WIDE = "\u2e80"  # where the scripts without spaces between words begin
_LONGEST = 4
_BEFORE = re.compile(r"[^\s\u2e80-\U0010ffff]+\s?$")
_AFTER = re.compile(r"\s?[^\s\u2e80-\U0010ffff]+")
_REACH = 40  # characters, in which a word must end


@dataclass(slots=True)
class Inconsistency:
    """`whole` is annotated as `label` `times` times, and only `part` of it `cut` times, first in `document`."""

    label: str
    whole: str
    part: str
    times: int
    document: RawDocument
    cut: int = 0


def inconsistencies(documents: Iterable[RawDocument]) -> list[Inconsistency]:
    """The surfaces that are annotated sometimes with and sometimes without a word at their edge."""
    documents = list(documents)
    surfaces = Counter(
        (entity.label, document.text[entity.start : entity.end])
        for document in documents
        for entity in document.entities
    )
    found: dict[tuple[str, str, str], Inconsistency] = {}
    for document in documents:
        spans = {(entity.start, entity.end, entity.label) for entity in document.entities}
        for start, end, label in sorted(spans):
            for left, right in _wider(document.text, start, end):
                whole = document.text[left:right]
                if (label, whole) in surfaces and (left, right, label) not in spans:
                    part = document.text[start:end]
                    times = surfaces[label, whole]
                    one = found.setdefault((label, whole, part), Inconsistency(label, whole, part, times, document))
                    one.cut += 1
    return list(found.values())


def _wider(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The spans with a word more on the left, and those with one more on the right."""
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


def _is_ideograph(sign: str) -> bool:
    """Whether `sign` is of a script without spaces, and no punctuation."""
    return sign >= _WIDE and sign.isalnum()
