"""Lark grammars for llguidance: literals, and terminals for parts of a text.

A text is given as a list of its characters as the answer writes them, so that an escape is never split.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

_ESCAPES = {character: json.dumps(character)[1:-1] for character in (*map(chr, range(32)), '"', "\\")}


def escaped(character: str) -> str:
    """Return a character as JSON writes it inside a string."""
    return _ESCAPES.get(character, character)


def literal(text: str) -> str:
    """Return the literal for exactly `text`."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # a control that JSON does not escape


def choice(texts: Iterable[str]) -> str:
    """Return an alternative of the literals `texts`."""
    return " | ".join(map(literal, texts))


def substring(name: str, characters: Sequence[str], excluded: str = "") -> list[str]:
    """Return the rules of a terminal for a non-empty substring of `characters` that `excluded` does not match."""
    chunks = json.dumps(characters, ensure_ascii=False)
    return [f'{name}: {name}_RAW & ~(""{excluded})', f'{name}_RAW: %regex {{"substring_chunks": {chunks}}}']


def later(name: str, characters: Sequence[str], start: int, end: int) -> list[str]:
    """Return the rules of a terminal for a substring later than `characters[start:end]`, by start and then by end.

    It begins behind `start`, or it begins there and ends behind `end`. There are no rules if no such substring exists.
    """
    if start + 1 >= len(characters) and end >= len(characters):
        return []
    # the beginnings of the last substring are excluded, but for those that occur again behind `start`
    again = next((size for size in range(end - start, 0, -1) if _occurs(characters, start, size)), 0)
    excluded = ""
    if start + again < end:
        rest = len("".join(characters[start + again + 1 : end]))
        excluded = f" | {literal(''.join(characters[start : start + again + 1]))}"
        excluded += f" /(?s:.{{0,{rest}}})/" if rest else ""
    return substring(name, characters[start:], excluded)


def _occurs(characters: Sequence[str], start: int, size: int) -> bool:
    """Whether the `size` characters at `start` occur again behind it."""
    sought = characters[start : start + size]
    return any(characters[place : place + size] == sought for place in range(start + 1, len(characters) - size + 1))


def without(tail: str, head: str) -> str | None:
    """Return the rest of `head` behind `tail`, which is already written; None if `head` does not begin with it."""
    return head[len(tail) :] if head.startswith(tail) else None
