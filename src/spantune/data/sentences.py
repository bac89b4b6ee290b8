"""Where sentences and clauses end, in English, Chinese and mixed text; decision 015 says why by rules of our own.

The offsets are exact, because the text is not changed. A text is gone through once, whatever its length. A full stop is
the only sign that often does not end a sentence; the word before it and the word after it decide.
"""

from __future__ import annotations

import re

_CLOSERS = "[”’」』）】》›»)\\]\"']*"
_ASCII_WORD = "[0-9A-Za-z_/=&#%]"

_SENTENCE_STOP = re.compile(
    rf"(?:[。｡！？；।॥؟۔\n]+{_CLOSERS}"  # these end a sentence wherever they stand
    rf"|[!?;。！？；]+{_CLOSERS}(?!{_ASCII_WORD})"  # but not in an address or an entity of HTML
    rf"|(?P<ellipsis>(?:…+|\.{{3,}}){_CLOSERS})"
    rf"|(?P<period>\.){_CLOSERS}(?![^\s\u2e80-\uffff]))"
    r"\s*"
)
CLAUSE_END = re.compile(rf"(?:[，、：…—]+{_CLOSERS}|[,:]+{_CLOSERS}(?!{_ASCII_WORD}))\s*")
SPACE = re.compile(r"\s+")

_WORD_BEFORE = re.compile(r"(?:[^\W_\u2e80-\uffff]|[.'’-])*\Z")
_WORD_BEHIND = re.compile(r"[\"'“‘(\[]*([^\W\d_]+)")
_SHORT = 4
"""The most letters of a word that counts as an abbreviation if a small letter follows its full stop."""
_LONGEST_ABBREVIATION = 24
"""The number of characters before a full stop that are examined."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NEVER_LAST = _words(
    "dr mr mrs ms mx prof rev fr hon pres gov gen col lt sgt capt cmdr sen rep st mt messrs drs profs fig figs eq eqs "
    "tab tabs sect chap vol vols ref refs ed eds spp subsp rx dx hx tx inj sig adm temp e.g i.e eg ie cf "
    "vs viz approx ca resp incl esp abbr dept univ est"
)
"""Abbreviations after which a sentence always goes on, without their last full stop."""
_BEFORE_A_NUMBER = _words("no nos nr art p pp ch sec para pt pts jan feb mar apr jun jul aug sep sept oct nov dec")
"""Abbreviations after which a sentence goes on if a number follows; otherwise they may be its last word."""
_MAYBE_LAST = _words(
    "etc al inc ltd co corp jr sr bros mg kg ml dl mm cm km hr hrs min sec wk wks yr yrs mo mos lb lbs oz ft"
)
"""Abbreviations that end a sentence, unless the next word begins with a small letter or no word follows."""
_STARTERS = _words(
    "The A An This That These Those There Here He She It They We You His Her Its Their Our In On At By For From With "
    "After Before During When While Although Because If As Since But And Or So However Therefore Then Thus Both All "
    "Some Many Most No Not Patient Patients"
)
"""Words that begin a new sentence after an initial or U.S.; before another word, maybe a name, it goes on."""


def sentence_ends(text: str) -> list[int]:
    """Return the offset after each sentence of `text`, ascending. Text without a stop at its end has no end there.

    Closing quotes and brackets after a stop, and the white space that follows, belong to the sentence.
    """
    return [match.end() for match in _SENTENCE_STOP.finditer(text) if _ends_here(text, match)]


def clause_ends(text: str) -> list[int]:
    """Return the offset after each clause of `text`, ascending."""
    return [match.end() for match in CLAUSE_END.finditer(text)]


def space_ends(text: str) -> list[int]:
    """Return the offset after each run of white space in `text`, ascending."""
    return [match.end() for match in SPACE.finditer(text)]


def _ends_here(text: str, match: re.Match[str]) -> bool:
    """Return whether the stop that `match` found ends a sentence."""
    place = match.end()  # where the next sentence would begin
    behind, has_space = text[place : place + 1], text[place - 1].isspace()
    if match["ellipsis"] is not None:
        is_closed = match["ellipsis"][-1] not in ".…"
        return is_closed or not behind or (has_space and not behind.islower())
    if match["period"] is None or not behind or "\n" in match[0]:
        return True
    before = _WORD_BEFORE.search(text, max(0, match.start() - _LONGEST_ABBREVIATION), match.start())
    word = before[0] if before else ""
    return (has_space or behind > "\u2e80") and not _goes_on(text, word, match.start(), place)


def _goes_on(text: str, word: str, stop: int, place: int) -> bool:
    """Return whether the sentence goes on at `place`, after the full stop at `stop`, which follows `word`."""
    behind = _WORD_BEHIND.match(text, place)
    next_word, abbreviation = behind[1] if behind else "", word.lower()
    has_number = text[place].isdigit()
    if abbreviation in _NEVER_LAST or (abbreviation in _BEFORE_A_NUMBER and has_number):
        return True
    if abbreviation in _MAYBE_LAST:
        return not next_word or next_word[0].islower()
    if (len(word) == 1 and word.isalpha()) or "." in word:  # an initial, or U.S., a.m., Ph.D.
        return next_word not in _STARTERS and not text[place] > "\u2e80"
    if 0 < len(word) <= _SHORT and word.isascii() and word.isalpha() and next_word[:1].islower():
        return True
    if word.isdigit() and len(word) <= 3:  # the number of a list item, at the beginning of a line
        return stop == len(word) or text[stop - len(word) - 1] == "\n"
    return False
