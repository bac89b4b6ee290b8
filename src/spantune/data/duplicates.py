"""Texts that stand in a corpus more than once, or nearly, within a file or in several, alike annotated or not.

A text in two splits is measured after it was learnt; a text annotated in two ways teaches at least one wrong thing.
Blank texts are not compared. Of two texts that are nearly the same, the annotations conflict when a surface that both
hold is an entity in one of them only; where in them it stands is not looked at.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from spantune.core import ConfigError
from spantune.data.findings import Tally, excerpt, place_of
from spantune.data.raw.document import RawDocument


class _Copy(NamedTuple):
    """A document, and the number of the split that it is in."""

    split: int
    document: RawDocument


def check_repetition(splits: Sequence[Sequence[RawDocument]], tally: Tally) -> None:
    """Count the texts of `splits` that are, or nearly are, one of their own or another split."""
    copies: dict[str, list[_Copy]] = {}
    for number, documents in enumerate(splits):
        for document in documents:
            if document.text.strip():
                copies.setdefault(document.text, []).append(_Copy(number, document))
    for same in copies.values():
        if len(same) > 1:
            _check_copies(same, tally)
    texts = list(copies)
    seen: set[int] = set()
    for i, j in near_duplicates(texts):
        if j not in seen:
            seen.add(j)
            _check_near(copies[texts[i]], copies[texts[j]], tally)


def _check_copies(same: Sequence[_Copy], tally: Tally) -> None:
    """Count the documents that repeat one of their split, and the text once where it is in several splits."""
    first: dict[int, RawDocument] = {}
    differing: set[int] = set()
    for number, document in same:
        if number not in first:
            first[number] = document
            continue
        tally.add("duplicate-text", place_of(document), _both(document, first[number]))
        if number not in differing and _annotation(document) != _annotation(first[number]):
            differing.add(number)
            tally.add("conflicting-duplicate", place_of(document), _both(document, first[number]))
    if len(first) > 1:
        one = next(iter(first.values()))
        other = next(copy.document for copy in same if copy.document is not one and copy.split != same[0].split)
        tally.add("shared-text", place_of(other), _both(other, one))
        conflict = next((c.document for c in same if c.split and _annotation(c.document) != _annotation(one)), None)
        if conflict:
            tally.add("conflicting-shared-text", place_of(conflict), _both(conflict, one))


def _check_near(these: Sequence[_Copy], those: Sequence[_Copy], tally: Tally) -> None:
    """Count the text of `those`, which is nearly that of `these`."""
    pairs = [(one, other) for one in these for other in those]
    name = "near-duplicate"
    apart = [(one, other) for one, other in pairs if one.split != other.split]
    if apart:
        name, pairs = "shared-near-duplicate", apart
    (_, one), (_, other) = pairs[0]
    tally.add(name, place_of(other), _both(other, one))
    for (_, one), (_, other) in pairs:
        if conflict := _lacking(one, other) or _lacking(other, one):
            tally.add(f"conflicting-{name}", place_of(other), f"{_both(other, one)}: {conflict}")
            return


def _annotation(document: RawDocument) -> frozenset[tuple[int, int, str]]:
    return frozenset((entity.start, entity.end, entity.label) for entity in document.entities)


def _surfaces(document: RawDocument) -> set[tuple[str, str]]:
    return {(document.text[entity.start : entity.end], entity.label) for entity in document.entities}


def _lacking(one: RawDocument, other: RawDocument) -> str:
    """An entity of `one` whose surface stands in `other` and is none there; "" when there is no such."""
    missing = sorted(_surfaces(one) - _surfaces(other))
    return next((f"{excerpt(surface)} ({label})" for surface, label in missing if surface in other.text), "")


def _both(document: RawDocument, other: RawDocument) -> str:
    return f"{excerpt(document.text)}, as {other.id!r} at {place_of(other)}"


THRESHOLD = 0.9

_HASHES = 128
_RECALL = 0.9995
_DIGITS = re.compile(r"\d+")
_SIGNS = re.compile(r"[\W_]+")
_WIDE = "\u2e80"  # where the scripts begin of which a character says about as much as three letters


def near_duplicates(texts: Sequence[str], threshold: float = THRESHOLD) -> list[tuple[int, int]]:
    """Find the pairs (i, j), i < j, of positions in `texts` whose Jaccard similarity is `threshold` or more, in order.

    Of texts that are equal when folded, each is paired with the first only, and only the first with others: the
    connected pairs are the groups of near-duplicates, and many repetitions stay few pairs. Texts that folding leaves
    nothing of but numbers are compared as they are.

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
    """`text` without what makes no difference: case, compatibility forms, numbers, white space and punctuation."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return _SIGNS.sub("", _DIGITS.sub("0", plain))


def _similar(folded: Sequence[str], threshold: float) -> list[tuple[int, int]]:
    """The pairs (i, j), i < j, of texts that differ and are similar enough."""
    from rensa import RMinHash, RMinHashLSH

    shingles = [_shingles(text) for text in folded]
    hashes = RMinHash.from_token_sets([list(found) for found in shingles], num_perm=_HASHES, seed=1)
    index = RMinHashLSH(threshold, _HASHES, _bands(threshold))
    pairs = []
    for place, (mine, its_hash) in enumerate(zip(shingles, hashes, strict=True)):
        for earlier in index.query(its_hash):
            shared = len(mine & shingles[earlier])
            if shared >= threshold * (len(mine) + len(shingles[earlier]) - shared):
                pairs.append((earlier, place))
        index.insert(place, its_hash)
    return pairs


def _shingles(text: str) -> set[str]:
    """The pieces that begin at each character: two ideographs, or four letters, which say about as much."""
    return {text[place : place + (2 if sign >= _WIDE else 4)] for place, sign in enumerate(text)}


def _bands(threshold: float) -> int:
    """The fewest bands of the index, so the fewest candidates, that find a pair at `threshold` with `_RECALL`."""
    return next(
        bands
        for bands in (8, 16, 32, 64, _HASHES)
        if bands == _HASHES or 1 - (1 - threshold ** (_HASHES // bands)) ** bands >= _RECALL
    )
