"""Lark, as llguidance reads it: literals and the terminals for parts of a text.

Texts come as characters in the spelling of the answer, one string each, so that an escape is never taken apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

_ESCAPES = {character: json.dumps(character)[1:-1] for character in (*map(chr, range(32)), '"', "\\")}


def escaped(character: str) -> str:
    """A character as JSON spells it within a string."""
    return _ESCAPES.get(character, character)


def literal(text: str) -> str:
    """`text` and nothing else."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # the one control that JSON leaves as it is


def choice(texts: Iterable[str]) -> str:
    """One of `texts`."""
    return " | ".join(map(literal, texts))


def substring(name: str, characters: Sequence[str]) -> list[str]:
    """A terminal for a non-empty substring of `characters`."""
    chunks = json.dumps(characters, ensure_ascii=False)
    return [f"{name}: {name}_RAW & /(?s:.)+/", f'{name}_RAW: %regex {{"substring_chunks": {chunks}}}']


def later(name: str, characters: Sequence[str], start: int, end: int) -> list[str]:
    """A terminal for a substring that can be found later than `characters[start:end]`, by start and then by end.

    It begins farther on, or it begins there and goes on farther. No rule where there is none.
    """
    rules, ways = [], []
    if start + 1 < len(characters):
        rules += substring(f"{name}_FARTHER", characters[start + 1 :])
        ways.append(f"{name}_FARTHER")
    if end < len(characters):
        beginning = literal("".join(characters[start : end + 1]))
        rules += substring(f"{name}_LONGER_ANY", characters[start:])
        rules += [f"{name}_LONGER_BEGINS: {beginning} /(?s:.*)/"]
        rules += [f"{name}_LONGER: {name}_LONGER_ANY & {name}_LONGER_BEGINS"]
        ways.append(f"{name}_LONGER")
    return [f"{name}: {' | '.join(ways)}", *rules] if ways else []


def without(tail: str, head: str) -> str | None:
    """What is left to write of `head` when `tail` has been written; None where it begins otherwise."""
    return head[len(tail) :] if head.startswith(tail) else None
