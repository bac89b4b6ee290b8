"""Parts of Lark grammars for llguidance: literals, and terminals for the mentions of a text.

A text is passed with a function that writes each of its characters into the answer, so that an escape is never split. A
mention is a substring that begins and ends with a character that is not white space.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

_ESCAPES = {character: json.dumps(character)[1:-1] for character in (*map(chr, range(32)), '"', "\\")}
Writer = Callable[[str], str]
"""Returns what the answer has for a character of the text."""


def escaped(character: str) -> str:
    """Return a character as JSON writes it inside a string."""
    return _ESCAPES.get(character, character)


def literal(text: str) -> str:
    """Return the Lark literal for exactly `text`."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # a control character JSON does not escape


def choice(texts: Iterable[str]) -> str:
    """Return the Lark alternatives of the literals `texts`."""
    return " | ".join(map(literal, texts))


def mention(name: str, text: str, write: Writer, start: int = 0, excluded: str = "") -> list[str]:
    """Return the rules of a terminal for the mentions that begin at or after `start`; none if there is no such mention.

    Args:
        name: the name of the terminal.
        text: the document's text.
        write: returns what the answer has for a character.
        start: an offset in the text.
        excluded: alternatives in Lark that must not match, each after a bar.
    """
    part = text[start:].strip()
    if not part:
        return []
    edges = _edges({*part}, write)
    conditions = [f"/{edges}/"] if edges else []
    if excluded or not edges:
        conditions.append(f'~(""{excluded})')
    chunks = json.dumps(list(map(write, part)), ensure_ascii=False)
    return [
        f"{name}: {' & '.join([f'{name}_RAW', *conditions])}",
        f'{name}_RAW: %regex {{"substring_chunks": {chunks}}}',
    ]


def later(name: str, text: str, write: Writer, start: int, end: int) -> list[str]:
    """Return the rules of a terminal for a mention that comes after `text[start:end]` in the order of (start, end).

    Such a mention begins after `start`, or it begins at `start` and ends after `end`. There are no rules if no such
    mention exists.
    """
    if not text[start + 1 :].strip():
        return []
    # Prefixes of the last mention are excluded, except those that occur again after `start`.
    again = next(
        (size for size in range(end - start, 0, -1) if text.find(text[start : start + size], start + 1) >= 0), 0
    )
    excluded = ""
    if start + again < end:
        rest = len("".join(map(write, text[start + again + 1 : end])))
        excluded = f" | {literal(''.join(map(write, text[start : start + again + 1])))}"
        excluded += f" /(?s:.{{0,{rest}}})/" if rest else ""
    return mention(name, text, write, start, excluded)


def without(tail: str, head: str) -> str | None:
    """Return the rest of `head` after `tail`, which is already written; None if `head` does not begin with `tail`."""
    return head[len(tail) :] if head.startswith(tail) else None


def _edges(characters: Iterable[str], write: Writer) -> str:
    """Return a regular expression for strings that begin and end with no white space and consist of `characters`.

    It is empty if no character is white space. It matches the answer in units of one character of the text, because the
    end of an escaped backslash followed by a letter looks like an escaped line break.
    """
    characters = sorted(characters)
    blanks = [character for character in characters if character.isspace()]
    if not blanks:
        return ""
    raw = [character for character in blanks if write(character) == character]
    escapes = [write(character) for character in characters if write(character) != character]
    escaped_blanks = [write(character) for character in blanks if write(character) != character]
    others = [escape for escape in escapes if escape not in escaped_blanks]
    plain = "[^" + "".join(map(_code, [*raw, *(["\\"] if escapes else [])])) + "]"
    unit = "|".join([plain, *map(_quoted, others)])
    blank = "|".join([*map(_code, raw), *map(_quoted, escaped_blanks)])
    return f"(?s:(?:{unit})(?:(?:{unit}|{blank})*(?:{unit}))?)"


def _code(character: str) -> str:
    return "\\x{" + format(ord(character), "x") + "}"


def _quoted(text: str) -> str:
    return "".join(map(_code, text))
