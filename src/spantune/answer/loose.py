"""Objects with a mention and a label in what a free model wrote instead of one JSON object a line.

Read are objects among other words, several on a line or one over many, in arrays, in a code fence, with single quotes
or a comma too many. Nothing is guessed: an object must be whole and have both keys. Every repair is a problem that says
so.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

from spantune.answer.resolve import Mention, Problem

_DECODER = json.JSONDecoder(strict=False)  # a line break in a string is taken as it is
_COMMA = re.compile(r",\s*(?=\}$)")
_WRAPPING = re.compile(r"[\[\]{},:\s]*+(?:```\w*+)?[\[\]{},:\s]*+")  # possessive: a line of brackets costs its length


def loose_mentions(answer: str, part: tuple[int, int]) -> Iterator[Mention | Problem]:
    """The mentions of the objects in a part of an answer, each with the problem that says so, and what is left."""
    place, end = part
    behind = place  # what the objects before this end with
    while (place := answer.find("{", place, end)) >= 0:
        record, stop = _object(answer, place, end)
        mention = as_mention(record, (place, stop), answer)
        if mention is None:
            place += 1
            continue
        yield from _rest(answer[behind:place])
        yield mention
        yield Problem("repaired", answer[place:stop])
        place = behind = stop
    yield from _rest(answer[behind:end])


def as_mention(record: Any, span: tuple[int, int], answer: str) -> Mention | None:
    """The mention that the object at `span` of an answer states; None where it is another object."""
    if not isinstance(record, dict) or not all(_is_text(record.get(key)) for key in ("entity_text", "entity_label")):
        return None
    label = max(answer.rfind("entity_label", *span), span[0])
    return Mention(record["entity_text"], record["entity_label"], span, (label, span[1]))


def _object(answer: str, start: int, end: int) -> tuple[Any, int]:
    """The object that begins at `start`, if it is one, and where it ends."""
    try:
        record, stop = _DECODER.raw_decode(answer, start)
        return record, stop
    except (ValueError, RecursionError):
        stop = answer.find("}", start, end) + 1
    source = _COMMA.sub("", answer[start:stop])
    for read in (json.loads, ast.literal_eval):
        try:
            return read(source), stop
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None, stop


def _rest(text: str) -> Iterator[Problem]:
    """Lines that are no object: brackets and fences around objects are repairs, all else is invalid."""
    for line in filter(None, map(str.strip, text.split("\n"))):
        yield Problem("repaired" if _WRAPPING.fullmatch(line) else "invalid", line)


def _is_text(value: Any) -> bool:
    """Whether `value` is a string without half a surrogate pair, which an escape can smuggle in."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)
