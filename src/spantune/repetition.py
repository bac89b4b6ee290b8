"""Texts that stand in a corpus more than once, or nearly, within a file or in several, alike annotated or not.

A text in two splits is measured after it was learnt; a text annotated in two ways teaches at least one wrong thing.
Blank texts are not compared. Of two texts that are nearly the same, the annotations conflict when a surface that both
hold is an entity in one of them only; where in them it stands is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from spantune.findings import Tally, excerpt, place_of
from spantune.formats.raw import RawDocument
from spantune.similarity import near_duplicates


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
