"""Texts to tokens and tokens to texts, for the formats that have only tokens.

Tokens are joined by one rule. If one of the two adjacent characters is Chinese or Japanese, nothing stands between the
tokens, otherwise one space. If every token of a file is one character and some are Chinese, nothing stands between any
tokens. The white space is thus guessed; only a `joiner` from the user is exact. Korean and Thai are treated like Latin.
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

# Radicals to bopomofo; ideographs, after letters of Hangul; compatibility and full-width forms; planes 2 and 3.
_CJK = ((0x2E80, 0x312F), (0x31A0, 0x9FFF), (0xF900, 0xFAFF), (0xFE30, 0xFE4F), (0xFF00, 0xFFEF), (0x20000, 0x3FFFF))
_NUMBERED = re.compile(r"(.[^0-9]*)(0|[1-9][0-9]*)", re.DOTALL)
_ZERO_WIDTH_JOINER = "\u200d"
_REPLACEMENT = "\ufffd"


@dataclass(slots=True)
class TokenCensus:
    """Counts that show whether all tokens of a file are characters, or characters with their number in the word.

    The latter are the tokens of WeiboNER, such as `字0`.

    Args:
        characters: whether every token so far is one character.
        numbered: whether every token so far is a character with a number.
        cjk: whether a token so far has a Chinese or Japanese character.
    """

    characters: bool = True
    numbered: bool = True
    cjk: bool = False

    def add(self, token: str, is_first: bool) -> None:
        """Count `token`; `is_first` says whether it is the first of its sentence."""
        self.characters = self.characters and is_character(token)
        match = _NUMBERED.fullmatch(token) if self.numbered else None
        self.numbered = match is not None and is_character(match[1]) and (match[2] == "0" or not is_first)
        self.cjk = self.cjk or (not token.isascii() and any(map(is_cjk, token)))

    @property
    def is_segmented(self) -> bool:
        """Whether every token ends with its number in the word, as in WeiboNER; a sentence begins with number 0."""
        return self.cjk and self.numbered

    def joiner(self, stated: str | None) -> str | None:
        """Return the text between tokens: `stated`, or "" in a file of characters; None to decide for each pair."""
        return "" if stated is None and self.cjk and (self.characters or self.numbered) else stated


def unnumbered(token: str) -> str:
    """Return the character of a WeiboNER token: `3` for `310`, which is the eleventh character of its word."""
    match = _NUMBERED.fullmatch(token)
    assert match is not None, "the census has seen every token"
    return match[1]


def is_cjk(character: str) -> bool:
    """Return whether `character` is Han, kana, bopomofo, their punctuation or full width, written without spaces."""
    code = ord(character)
    return code >= _CJK[0][0] and any(first <= code <= last for first, last in _CJK)


def is_character(token: str) -> bool:
    """Return whether `token` is one character with its combining marks, or consists of replacement characters."""
    return not token.strip(_REPLACEMENT) or all(
        _kind(after) == "mark" or before == _ZERO_WIDTH_JOINER for before, after in pairwise(token)
    )


def split(text: str) -> list[Span]:
    """Return the spans of the tokens of `text`: single Chinese and Japanese characters, words and signs; no spaces."""
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
    """Cut `spans` at each of `edges` that lies inside a span."""
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


def join(tokens: Sequence[str], joiner: str | None, glued: Sequence[bool] = ()) -> tuple[str, list[Span]]:
    """Return the text of `tokens` and the span of each token in it.

    Args:
        tokens: the tokens.
        joiner: the text between tokens; None to decide for each two tokens.
        glued: for each token, whether nothing stands after it, whatever `joiner` says; empty if that is not stated.
    """
    pieces: list[str] = []
    spans: list[Span] = []
    length = 0
    for index, token in enumerate(tokens):
        if index:
            between = joiner if joiner is not None else _between(tokens[index - 1], token)
            if glued and glued[index - 1]:
                between = ""
            pieces.append(between)
            length += len(between)
        spans.append((length, length + len(token)))
        pieces.append(token)
        length += len(token)
    return "".join(pieces), spans


def locate(tokens: Sequence[str], text: str) -> list[Span] | int:
    """Return the spans of `tokens` in `text`, with only white space between them.

    If a token does not fit, its index is returned; if text is left after the last token, `len(tokens)`.
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
