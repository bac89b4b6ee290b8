"""Find duplicate and near-duplicate texts in a file and between files, and whether their annotations agree.

A text in two splits makes the scores on it too high, and a text annotated in two ways teaches at least one error. Blank
texts are not compared. The annotations of near-duplicates conflict if a surface that both texts contain is an entity in
only one of them; its position is not compared.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from spantune.core import ConfigError
from spantune.data.findings import Tally, excerpt, place_of
from spantune.data.raw.document import RawDocument
from spantune.data.rules import Rule


class _Copy(NamedTuple):
    """A document, and the number of the split that it is in."""

    split: int
    document: RawDocument


_CONFLICTING = {
    Rule.NEAR_DUPLICATE: Rule.CONFLICTING_NEAR_DUPLICATE,
    Rule.SHARED_NEAR_DUPLICATE: Rule.CONFLICTING_SHARED_NEAR_DUPLICATE,
}


def check_repetition(splits: Sequence[Sequence[RawDocument]], tally: Tally) -> None:
    """Count the texts of `splits` that are duplicates or near-duplicates of one of the same or another split."""
    copies: dict[str, list[_Copy]] = {}
    for number, documents in enumerate(splits):
        for document in documents:
            if document.text.strip():
                copies.setdefault(document.text, []).append(_Copy(number, document))
    for duplicates in copies.values():
        if len(duplicates) > 1:
            _check_copies(duplicates, tally)
    texts = list(copies)
    seen: set[int] = set()
    for i, j in near_duplicates(texts):
        if j not in seen:
            seen.add(j)
            _check_near(copies[texts[i]], copies[texts[j]], tally)


def _check_copies(copies: Sequence[_Copy], tally: Tally) -> None:
    """Count the documents that repeat one of their split, and the text once if it is in several splits."""
    first_of: dict[int, RawDocument] = {}
    conflicting: set[int] = set()
    for split, document in copies:
        if split not in first_of:
            first_of[split] = document
            continue
        tally.add(Rule.DUPLICATE_TEXT, place_of(document), _pair(document, first_of[split]))
        if split not in conflicting and _annotation(document) != _annotation(first_of[split]):
            conflicting.add(split)
            tally.add(Rule.CONFLICTING_DUPLICATE, place_of(document), _pair(document, first_of[split]))
    if len(first_of) > 1:
        first = copies[0].document
        shared = next(document for split, document in copies if split != copies[0].split)
        tally.add(Rule.SHARED_TEXT, place_of(shared), _pair(shared, first))
        conflicts = (d for split, d in copies if split and _annotation(d) != _annotation(first))
        if conflict := next(conflicts, None):
            tally.add(Rule.CONFLICTING_SHARED_TEXT, place_of(conflict), _pair(conflict, first))


def _check_near(earlier: Sequence[_Copy], later: Sequence[_Copy], tally: Tally) -> None:
    """Count the text of `later`, which is nearly that of `earlier`."""
    pairs = [(first, second) for first in earlier for second in later]
    rule = Rule.NEAR_DUPLICATE
    between_splits = [(first, second) for first, second in pairs if first.split != second.split]
    if between_splits:
        rule, pairs = Rule.SHARED_NEAR_DUPLICATE, between_splits
    (_, first), (_, second) = pairs[0]
    tally.add(rule, place_of(second), _pair(second, first))
    for (_, first), (_, second) in pairs:
        if conflict := _missing(first, second) or _missing(second, first):
            tally.add(_CONFLICTING[rule], place_of(second), f"{_pair(second, first)}: {conflict}")
            return


def _annotation(document: RawDocument) -> frozenset[tuple[int, int, str]]:
    return frozenset((entity.start, entity.end, entity.label) for entity in document.entities)


def _surfaces(document: RawDocument) -> set[tuple[str, str]]:
    return {(document.text[entity.start : entity.end], entity.label) for entity in document.entities}


def _missing(first: RawDocument, second: RawDocument) -> str:
    """Show an entity of `first` whose surface occurs in `second` and is not an entity there; "" if there is none."""
    missing = sorted(_surfaces(first) - _surfaces(second))
    return next((f"{excerpt(surface)} ({label})" for surface, label in missing if surface in second.text), "")


def _pair(document: RawDocument, earlier: RawDocument) -> str:
    return f"{excerpt(document.text)}, as {earlier.id!r} at {place_of(earlier)}"


THRESHOLD = 0.9

_HASHES = 128
_RECALL = 0.9995
_DIGITS = re.compile(r"\d+")
_SIGNS = re.compile(r"[\W_]+")
_WIDE = "\u2e80"  # the first character of the scripts in which a character counts for about three letters


def near_duplicates(texts: Sequence[str], threshold: float = THRESHOLD) -> list[tuple[int, int]]:
    """Find the pairs (i, j), i < j, of positions in `texts` whose Jaccard similarity is `threshold` or more, in order.

    Of texts that are equal after `fold`, each is paired with the first only, and only the first with other texts. So
    the connected pairs are the groups of near-duplicates, and many repetitions give few pairs. Texts that consist of
    numbers after `fold` are compared unfolded.

    Raises:
        ConfigError: `threshold` is not a share above 0.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"the similarity threshold is {threshold}; expected a share above 0, and 1 at the most")
    firsts: dict[str, int] = {}
    pairs = []
    for place, text in enumerate(texts):
        folded = fold(text)
        first = firsts.setdefault(folded if folded.strip("0") else text, place)
        if first != place:
            pairs.append((first, place))
    places = list(firsts.values())
    pairs += [(places[i], places[j]) for i, j in _similar(list(firsts), threshold)]
    return sorted(pairs)


def fold(text: str) -> str:
    """Return `text` without case, compatibility forms, numbers, white space and punctuation."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return _SIGNS.sub("", _DIGITS.sub("0", plain))


def _similar(folded: Sequence[str], threshold: float) -> list[tuple[int, int]]:
    """Return the pairs (i, j), i < j, of different texts that are similar enough."""
    from rensa import RMinHash, RMinHashLSH

    shingles = [_shingles(text) for text in folded]
    hashes = RMinHash.from_token_sets([list(text_shingles) for text_shingles in shingles], num_perm=_HASHES, seed=1)
    index = RMinHashLSH(threshold, _HASHES, _bands(threshold))
    pairs = []
    for place, (text_shingles, text_hash) in enumerate(zip(shingles, hashes, strict=True)):
        for earlier in index.query(text_hash):
            shared = len(text_shingles & shingles[earlier])
            if shared >= threshold * (len(text_shingles) + len(shingles[earlier]) - shared):
                pairs.append((earlier, place))
        index.insert(place, text_hash)
    return pairs


def _shingles(text: str) -> set[str]:
    """Return the substring at each character: two characters from an ideograph on, else four."""
    return {text[place : place + (2 if character >= _WIDE else 4)] for place, character in enumerate(text)}


def _bands(threshold: float) -> int:
    """Return the fewest bands of the index, and so candidates, that find a pair at `threshold` with `_RECALL`."""
    return next(
        bands
        for bands in (8, 16, 32, 64, _HASHES)
        if bands == _HASHES or 1 - (1 - threshold ** (_HASHES // bands)) ** bands >= _RECALL
    )
