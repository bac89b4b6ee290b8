"""Which split each document of a corpus goes to, decided in one pass in the order of the file.

Three things are known of a document here: its strata, its links to earlier documents, and a number drawn for it. So a
corpus need not be in memory to be placed. `splitting` describes the method and the reasons for it.
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
"""Something that is kept in proportion in all splits: `("label", LABEL)`, all documents, or those without entities."""
Strata = frozenset[Stratum]
"""All strata of a document."""
_ALL, _NONE = ("", "all"), ("", "none")


@dataclass(frozen=True, slots=True)
class Placement:
    """The split of each document, and the indices of documents that moved to the split of an earlier document."""

    homes: list[str]
    moved: list[int]


def placed(
    strata: Sequence[Strata],
    links: Mapping[int, Sequence[int]],
    drawn: Callable[[int], float],
    shares: Mapping[str, float],
) -> Placement:
    """Place each document into a split.

    Args:
        strata: the strata of each document.
        links: for the index of a document, the indices of earlier documents that must be in the same split.
        drawn: returns the number in [0, 1) of the document at an index. It is called for a document without links.
        shares: the share of each split.
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
    """Return for each document that has any the earlier ones it must stay with: the first of its group, and its copies.

    Args:
        groups: the group of each document; None for a document without one.
        copies: pairs (later, earlier) of indices of documents with the same or nearly the same text.
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
    """Return the strata of a document: that of all documents, each label, and that of documents without entities."""
    labels = frozenset(("label", entity.label) for entity in document.entities)
    return labels | {_ALL} if document.entities else frozenset({_ALL, _NONE})


def group_of(document: Document, by: str) -> str | None:
    """Return the value of the key `by` in the document's meta, as text; None if it has no such key."""
    value = document.meta.get(by)
    return value if value is None or isinstance(value, str) else json.dumps(value, sort_keys=True)


def drawn_number(document: Document, group: str | None, seed: int) -> float:
    """Return the number in [0, 1) that the seed draws for a document's group, or for its text if it has no group."""
    return fraction(f"text {document.text}" if group is None else f"group {group}", seed)


def fraction(key: str, seed: int) -> float:
    """Return a number in [0, 1) from the hash of `key`, keyed with `seed`."""
    digest = blake2b(key.encode("utf-8", "surrogatepass"), key=str(seed).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


class _Clusters:
    """Which documents belong together, and the split of each document so far.

    A cluster is named by the index of its first document, its root.
    """

    def __init__(self) -> None:
        self.home: list[str] = []
        self._root = array("q")
        self._members: dict[int, list[int]] = {}  # only of clusters with several documents

    def join(self, index: int, links: Iterable[int]) -> tuple[str | None, dict[int, str]]:
        """Put the document `index` into the cluster of the earlier documents `links`, which are united.

        Returns:
            The split of the cluster, or None if it is new; and for each document that has to move the split it leaves.
        """
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
    """The number of documents of every stratum so far, in the corpus and in each split."""

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
        """Return the split of a new cluster, whose first document has these strata.

        For each stratum, the rarest so far first, it is checked whether a split is too far below its share, or whether
        the split that `fraction` proposes would be too far above. The split that is furthest below is then returned.
        """
        drawn = _at(self._shares, fraction)
        for stratum in sorted(strata, key=lambda stratum: (self._seen[stratum], stratum)):
            expected = {name: share * (self._seen[stratum] + 1) for name, share in self._shares.items()}
            owed = {name: expected[name] - self._have[name][stratum] for name in expected}
            behind = max(owed, key=lambda name: owed[name] / _slack(expected[name]))
            if owed[behind] >= _slack(expected[behind]) or owed[drawn] - 1 < -_slack(expected[drawn]):
                return behind
        return drawn


def _slack(expected: float) -> float:
    """Return how far a split may be from its `expected` number: half the standard deviation of chance, at least one."""
    return max(1.0, math.sqrt(expected) / 2)


def _at(shares: Mapping[str, float], fraction: float) -> str:
    """Return the split in whose part of [0, 1) `fraction` lies; the parts have the sizes of the shares."""
    end = 0.0
    for name, share in shares.items():
        end += share
        if fraction < end:
            return name
    return name  # rounding may let the shares sum to a little less than 1
