"""The units in which files count offsets, and when two ways to state an entity's text mean the same.

Offsets here count Unicode code points. JavaScript, Java and C# count UTF-16 code units, some tools UTF-8 bytes. A tool
that reads a file with universal newlines counts each CRLF as one character. The units differ only after certain
characters.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from functools import lru_cache
from itertools import accumulate
from typing import Literal

Unit = Literal["codepoints", "utf16", "bytes", "crlf"]

UNITS: dict[str, Unit] = {"UTF-16 code units": "utf16", "UTF-8 bytes": "bytes", "each CRLF as one": "crlf"}
"""The units other than code points, by the names that messages use."""

_IRREGULAR = {
    "utf16": re.compile("[\U00010000-\U0010ffff]"),
    "bytes": re.compile("[^\0-\x7f]"),
    "crlf": re.compile("\r\n"),
}
_DOUBTFUL = re.compile("[\U00010000-\U0010ffff]|\r\n")
_ESCAPE = re.compile(r"\\[nrt]")


def code_point(text: str, offset: int, unit: Unit) -> int | None:
    """Return `offset`, which counts in `unit`, in code points; None inside a character or outside the text."""
    if offset < 0:
        return None
    if unit == "codepoints" or not _IRREGULAR[unit].search(text, 0, min(offset, len(text)) + 1):
        return offset if offset <= len(text) else None
    borders = _borders(text, unit)
    place = bisect_left(borders, offset)
    return place if place < len(borders) and borders[place] == offset else None


def is_doubtful(text: str, end: int) -> bool:
    """Return whether a character beyond U+FFFF or a CRLF stands before `end`, so that the units differ there."""
    return _DOUBTFUL.search(text, 0, min(max(end, 0), len(text))) is not None


def unit_of(text: str, start: int, surface: str) -> str | None:
    """Return the name of the unit in which `surface` begins at `start`; None if there is none but code points."""
    for name, unit in UNITS.items():
        place = code_point(text, start, unit)
        if place is not None and place != start and text.startswith(surface, place):
            return name
    return None


def agree(found: str, stated: str) -> bool:
    r"""Return whether the texts differ in white space only; `stated` may write a line break as the two signs `\n`."""
    bare = _bare(found)
    return bool(bare) and bare in (_bare(stated), _bare(_ESCAPE.sub(" ", stated)))


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the span without white space at its edges; an empty span if it has nothing else."""
    surface = text[start:end]
    start += len(surface) - len(surface.lstrip())
    return start, max(start, end - (len(surface) - len(surface.rstrip())))


def _bare(text: str) -> str:
    return "".join(text.split())


@lru_cache(maxsize=8)
def _borders(text: str, unit: Unit) -> list[int]:
    """Return the offset in `unit` of every place between code points and of both ends; CR in a CRLF has width 0."""
    if unit == "utf16":
        widths = [1 + (character > "\uffff") for character in text]
    elif unit == "bytes":
        widths = [len(character.encode("utf-8", "surrogatepass")) for character in text]
    else:
        widths = [int(text[place : place + 2] != "\r\n") for place in range(len(text))]
    return list(accumulate(widths, initial=0))
