"""Which split each document of a corpus goes to, decided in one pass in the order of the file.

What is known of a document here are its strata (its labels), its links to earlier ones, and a number drawn for it, so
that a corpus can be placed that is not in memory. `splitting` says how and why.
"""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from spantune.core import Document

Stratum = tuple[str, str]
Strata = frozenset[Stratum]
_ALL, _NONE = ("", "all"), ("", "none")


@dataclass(frozen=True, slots=True)
class Placement:
    """The split of each document, and which of them left their first one for that of an earlier document."""

    homes: list[str]
    moved: list[int]


def placed(
    strata: Sequence[Strata],
    links: Mapping[int, Sequence[int]],
    drawn: Callable[[int], float],
    shares: Mapping[str, float],
) -> Placement:
    """Place each document.

    Args:
        strata: of each document.
        links: the earlier documents that a document belongs with, by their indices, where there are any.
        drawn: the number in [0, 1) of a document, which is asked for where no earlier document decides.
        shares: of each split.
    """
    ledger = _Ledger(shares)
    clusters = _Clusters()
    moved: set[int] = set()
    for index, own in enumerate(strata):
        name, moves = clusters.join(index, links.get(index, ()))
        if name is None:
            name = ledger.choose(own, drawn(index))
        for moved_index, source in moves.items():
            ledger.move(strata[moved_index], source, name)
        ledger.add(own, name)
        clusters.home.append(name)
        moved |= moves.keys()
    return Placement(clusters.home, sorted(moved))


def links_of(groups: Sequence[str | None], copies: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    """Return the earlier documents that each belongs with: the first of its group, and those of `copies`.

    Args:
        groups: the group of each document that has one.
        copies: pairs (later, earlier) of documents whose texts are equal or alike.
    """
    links: dict[int, list[int]] = {}
    by_group: dict[str, int] = {}
    for index, group in enumerate(groups):
        if group is not None and (first := by_group.setdefault(group, index)) != index:
            links.setdefault(index, []).append(first)
    for later, earlier in copies:
        links.setdefault(later, []).append(earlier)
    return links


def strata_of(document: Document) -> Strata:
    """Return what is kept in proportion: all documents, each label, and having none."""
    labels = frozenset(("label", entity.label) for entity in document.entities)
    return labels | {_ALL} if document.entities else frozenset({_ALL, _NONE})


def group_of(document: Document, by: str) -> str | None:
    """Return the value of the key `by` in the document's meta as text; None if it has none."""
    value = document.meta.get(by)
    return value if value is None or isinstance(value, str) else json.dumps(value, sort_keys=True)


def drawn_number(document: Document, group: str | None, seed: int) -> float:
    """Return the number in [0, 1) of a document's group, or of its text if it has none."""
    return fraction(f"text {document.text}" if group is None else f"group {group}", seed)


def fraction(key: str, seed: int) -> float:
    """A number in [0, 1) from the keyed hash of `key`."""
    digest = blake2b(key.encode("utf-8", "surrogatepass"), key=str(seed).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


class _Clusters:
    """Which documents belong together, and the split of each so far."""

    def __init__(self) -> None:
        self.home: list[str] = []
        self._root = array("q")
        self._members: dict[int, list[int]] = {}  # of clusters of several

    def join(self, index: int, links: Iterable[int]) -> tuple[str | None, dict[int, str]]:
        """Put `index` with the earlier documents `links`: their split, if any, and who came to it from which other."""
        first, *rest = sorted({self._root[link] for link in links}) or [index]
        self._root.append(first)
        if first == index:
            return None, {}
        name = self.home[first]
        moves: dict[int, str] = {}
        members = self._members.setdefault(first, [first])
        members.append(index)
        for member in [member for root in rest for member in self._members.pop(root, [root])]:
            self._root[member] = first
            members.append(member)
            if self.home[member] != name:
                moves[member], self.home[member] = self.home[member], name
        return name, moves


class _Ledger:
    """How many documents of every stratum there are so far, in all and by split."""

    def __init__(self, shares: Mapping[str, float]) -> None:
        self._shares = shares
        self._seen: Counter[Stratum] = Counter()
        self._have: dict[str, Counter[Stratum]] = {name: Counter() for name in shares}

    def add(self, strata: Strata, name: str) -> None:
        for stratum in strata:
            self._seen[stratum] += 1
            self._have[name][stratum] += 1

    def move(self, strata: Strata, source: str, target: str) -> None:
        for stratum in strata:
            self._have[source][stratum] -= 1
            self._have[target][stratum] += 1

    def choose(self, strata: Strata, fraction: float) -> str:
        """The split of a new cluster that begins with a document of these strata."""
        drawn = _at(self._shares, fraction)
        for stratum in sorted(strata, key=lambda stratum: (self._seen[stratum], stratum)):
            expected = {name: share * (self._seen[stratum] + 1) for name, share in self._shares.items()}
            owed = {name: expected[name] - self._have[name][stratum] for name in expected}
            behind = max(owed, key=lambda name: owed[name] / _slack(expected[name]))
            if owed[behind] >= _slack(expected[behind]) or owed[drawn] - 1 < -_slack(expected[drawn]):
                return behind
        return drawn


def _slack(expected: float) -> float:
    """How many documents a stratum may be away from what is expected: half a standard deviation of chance, or one."""
    return max(1.0, math.sqrt(expected) / 2)


def _at(shares: Mapping[str, float], fraction: float) -> str:
    """The split in whose stretch of [0, 1) `fraction` lies."""
    end = 0.0
    for name, share in shares.items():
        end += share
        if fraction < end:
            return name
    return name  # the shares sum to a little less than 1
