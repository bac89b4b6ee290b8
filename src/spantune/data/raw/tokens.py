"""Texts to tokens and tokens to texts, for the formats that know tokens only.

A text is made of tokens by one rule: nothing between two tokens where either shows the other a Chinese or Japanese
character, else one space; nothing anywhere in a file whose every token is one character, Chinese among them. The
trade-off: white space that the tokens never held is guessed, by a rule that can be said in a sentence, and only a
`joiner` given by the user is exact. Korean and Thai are not told apart from Latin.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

Span = tuple[int, int]

# Radicals to bopomofo, then past Hangul's letters the ideographs; compatibility and full-width forms; planes 2 and 3.
_CJK = ((0x2E80, 0x312F), (0x31A0, 0x9FFF), (0xF900, 0xFAFF), (0xFE30, 0xFE4F), (0xFF00, 0xFFEF), (0x20000, 0x3FFFF))
_NUMBERED = re.compile(r"(.[^0-9]*)(0|[1-9][0-9]*)", re.DOTALL)
_ZERO_WIDTH_JOINER = "\u200d"
_REPLACEMENT = "\ufffd"


@dataclass(slots=True)
class TokenCensus:
    """What the tokens of a file are: a character each, or numbered by their place in the word, as WeiboNER's `字0`."""

    characters: bool = True
    numbered: bool = True
    cjk: bool = False

    def add(self, token: str, is_first: bool) -> None:
        """Count `token`, the first of its sentence or not."""
        self.characters = self.characters and is_character(token)
        match = _NUMBERED.fullmatch(token) if self.numbered else None
        self.numbered = match is not None and is_character(match[1]) and (match[2] == "0" or not is_first)
        self.cjk = self.cjk or (not token.isascii() and any(map(is_cjk, token)))

    @property
    def is_segmented(self) -> bool:
        """Whether every token ends in WeiboNER's number: its place in the word, 0 at the beginning of a sentence."""
        return self.cjk and self.numbered

    def joiner(self, stated: str | None) -> str | None:
        """What stands between the tokens: as stated, nothing in a file of characters, else None: it depends."""
        return "" if stated is None and self.cjk and (self.characters or self.numbered) else stated


def unnumbered(token: str) -> str:
    """The character of a WeiboNER token: `3` of `310`, the eleventh of its word."""
    match = _NUMBERED.fullmatch(token)
    assert match is not None, "the census has seen every token"
    return match[1]


def is_cjk(character: str) -> bool:
    """Whether `character` is of a script written without spaces: Han, kana, bopomofo, their punctuation, full width."""
    code = ord(character)
    return code >= _CJK[0][0] and any(first <= code <= last for first, last in _CJK)


def is_character(token: str) -> bool:
    """Whether `token` is one character with the marks on it, or what a bad conversion left of one."""
    return not token.strip(_REPLACEMENT) or all(
        _kind(after) == "mark" or before == _ZERO_WIDTH_JOINER for before, after in pairwise(token)
    )


def split(text: str) -> list[Span]:
    """The tokens of `text`: characters where they are Chinese or Japanese, else words and signs; no white space."""
    spans: list[Span] = []
    before = "space"
    for place, character in enumerate(text):
        kind = _kind(character)
        joins = kind == "mark" or kind == before == "word" or (place > 0 and text[place - 1] == _ZERO_WIDTH_JOINER)
        if kind != "space" and before != "space" and joins:
            spans[-1] = (spans[-1][0], place + 1)
            before = before if kind == "mark" else kind
        else:
            if kind != "space":
                spans.append((place, place + 1))
            before = kind
    return spans


def cut(spans: Iterable[Span], edges: Iterable[int]) -> list[Span]:
    """`spans` cut at every one of `edges` that lies inside one."""
    ordered = sorted(set(edges))
    pieces: list[Span] = []
    index = 0
    for start, end in spans:
        while index < len(ordered) and ordered[index] < end:
            if ordered[index] > start:
                pieces.append((start, ordered[index]))
                start = ordered[index]
            index += 1
        pieces.append((start, end))
    return pieces


def join(tokens: Sequence[str], joiner: str | None) -> tuple[str, list[Span]]:
    """The text of `tokens` and where each stands in it; `joiner` None decides at each boundary."""
    pieces: list[str] = []
    spans: list[Span] = []
    length = 0
    for index, token in enumerate(tokens):
        if index:
            between = joiner if joiner is not None else _between(tokens[index - 1], token)
            pieces.append(between)
            length += len(between)
        spans.append((length, length + len(token)))
        pieces.append(token)
        length += len(token)
    return "".join(pieces), spans


def locate(tokens: Sequence[str], text: str) -> list[Span] | int:
    """Where `tokens` stand in `text`, white space between them; else the index of the first that does not.

    It is `len(tokens)` when text is left after the last.
    """
    spans: list[Span] = []
    place = 0
    for index, token in enumerate(tokens):
        while not text.startswith(token, place) and text[place : place + 1].isspace():
            place += 1
        if not text.startswith(token, place):
            return index
        spans.append((place, place + len(token)))
        place += len(token)
    return len(tokens) if text[place:].strip() else spans


def _between(left: str, right: str) -> str:
    return "" if is_cjk(left[-1]) or is_cjk(right[0]) else " "


@lru_cache(maxsize=1 << 16)
def _kind(character: str) -> Literal["space", "mark", "cjk", "word", "sign"]:
    if character.isspace():
        return "space"
    if unicodedata.category(character)[0] == "M" or character == _ZERO_WIDTH_JOINER or "🏻" <= character <= "🏿":
        return "mark"
    if is_cjk(character):
        return "cjk"
    return "word" if character.isalnum() or character == "_" else "sign"
