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
    return json.dumps(text, ensure_ascii=False).replace(
        "\x7f", "\\u007f"
    )  # the only control character that JSON does not escape


def choice(texts: Iterable[str]) -> str:
    """Return an alternative of the literals `texts`."""
    return " | ".join(map(literal, texts))


def substring(name: str, characters: Sequence[str]) -> list[str]:
    """Return the rules of a terminal for a non-empty substring of `characters`."""
    chunks = json.dumps(characters, ensure_ascii=False)
    return [f"{name}: {name}_RAW & /(?s:.)+/", f'{name}_RAW: %regex {{"substring_chunks": {chunks}}}']


def later(name: str, characters: Sequence[str], start: int, end: int) -> list[str]:
    """Return the rules of a terminal for a substring later than `characters[start:end]`, by start and then by end.

    It begins behind `start`, or it begins there and ends behind `end`. There are no rules if there is no such
    substring.
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
    """Return the rest of `head` behind `tail`, which is already written; None if `head` does not begin with it."""
    return head[len(tail) :] if head.startswith(tail) else None
