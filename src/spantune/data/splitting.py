"""Train, dev and test splits of one corpus, and small samples of it: stratified by label, reproducible, without leaks.

Documents of one group, with the same text or with nearly the same text form a cluster, which stays in one split.
Clusters are placed in one pass in the order of the file. The keyed hash of its first text (or of its group) proposes a
split. If that takes one of its labels further than `_slack` from its share so far, the cluster goes to the split that
has the fewest of that label for its share; the rarest label is tried first.

The place of a document depends only on earlier documents, so that appended documents move no earlier one, and a label
soon reaches every split in which it is expected. Stratifying over the whole corpus would come a little closer to the
shares, but every new line would move documents. The hash alone would not depend on the order of lines, but one time in
fourteen it would put no document of a label with 25 documents into a split of a tenth; here, removing or reordering
lines moves up to fifteen documents in a hundred. Only a new document that joins clusters of two splits moves earlier
ones: the later cluster goes to the split of the earlier one, because a leak would be worse; `moved` names these
documents. A group is placed by its first document, whatever its size will be. Shares that leave a split empty are
refused.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

from spantune.core import ConfigError, DataError, Document, nearest, replacing, replacing_path, to_json
from spantune.data import formats
from spantune.data.likeness import near_duplicates

RECORD = "split.json"
SUFFIXES: Mapping[str, str] = {
    "marked": ".txt",
    "chip": ".txt",
    "conll": ".txt",
    "label_studio": ".json",
    "spacy": ".spacy",
    "table": ".csv",
    "pubtator": ".txt",
    "bioc": ".json",
    "brat": "",
    "datasets": "",
}
"""How the files of a format end, where not in `.jsonl`; brat and datasets are folders."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_ALL, _NONE = ("", "all"), ("", "none")
_Stratum = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Rule:
    """How to split: shares by name, seed, the meta key of groups if any, and from which likeness on texts are one.

    Raises:
        ConfigError: names or shares that cannot be right.
    """

    shares: Mapping[str, float]
    seed: int = 0
    by: str | None = None
    threshold: float = 0.9

    def __post_init__(self) -> None:
        if not self.shares or not math.isclose(sum(self.shares.values()), 1, abs_tol=1e-6):
            raise ConfigError(
                f"the shares {list(self.shares.values())} sum to {sum(self.shares.values()):g}; expected 1"
            )
        for name, share in self.shares.items():
            if not _NAME.fullmatch(name) or name == Path(RECORD).stem:
                raise ConfigError(f"{name!r} cannot name a split; expected letters, digits, - and _, and not 'split'")
            if share <= 0:  # and so none is over 1
                raise ConfigError(
                    f"the share of {name} is {share:g}; expected more than 0: leave the split out instead"
                )
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"the likeness is {self.threshold:g}; expected more than 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Division:
    """The documents of each split in the order of the corpus, and what held them together.

    `groups` says where a group went; `copies` are (id, id of the earlier document that it is or resembles); `moved`
    are the ids that left their split because a later document joined their cluster to an earlier one.
    """

    rule: Rule
    parts: Mapping[str, tuple[Document, ...]]
    groups: Mapping[str, str] = field(default_factory=dict)
    copies: tuple[tuple[str, str], ...] = ()
    moved: tuple[str, ...] = ()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {len(part)}" for name, part in self.parts.items())
        return f"Division({sizes})"

    @property
    def size(self) -> int:
        """Documents in all splits."""
        return sum(map(len, self.parts.values()))

    def with_first(self, documents: Iterable[Document]) -> Division:
        """The same, with fewer documents in the first split."""
        return replace(self, parts={**self.parts, next(iter(self.parts)): tuple(documents)})

    def as_dict(self) -> dict[str, object]:
        """The record of the split: seed, shares, counts by split and label, groups and copies."""
        entities = {name: Counter(e.label for d in part for e in d.entities) for name, part in self.parts.items()}
        total = sum(entities.values(), Counter())
        split_of = {document.id: name for name, part in self.parts.items() for document in part}
        return {
            "seed": self.rule.seed,
            "shares": dict(self.rule.shares),
            "by": self.rule.by,
            "threshold": self.rule.threshold,
            "documents": {name: len(part) for name, part in self.parts.items()},
            "entities": {name: sum(counts.values()) for name, counts in entities.items()},
            "labels": {label: {name: entities[name][label] for name in entities} for label in sorted(total)},
            "label_shares": {
                label: {name: round(entities[name][label] / total[label], 4) for name in entities}
                for label in sorted(total)
            },
            "groups": dict(self.groups),
            "near_duplicates": [
                {"id": copy, "of": of, "split": split_of[copy]} for copy, of in self.copies if copy in split_of
            ],
            "moved": list(self.moved),
        }


def usual_names(count: int) -> list[str]:
    """Return the names of so many splits where none are given; none for more than three."""
    return {1: ["train"], 2: ["train", "test"], 3: ["train", "dev", "test"]}.get(count, [])


def parse_shares(shares: str, names: str | None = None) -> dict[str, float]:
    """The shares by name that a command line states, as in "0.8,0.1,0.1" and "train,dev,test".

    Raises:
        ConfigError: one is not a number, or there are not as many names.
    """
    try:
        values = [float(share) for share in shares.split(",")]
    except ValueError:
        raise ConfigError(
            f"found the shares {shares!r}; expected numbers with commas between, as 0.8,0.1,0.1"
        ) from None
    given = names.split(",") if names else usual_names(len(values))
    if len(set(given)) != len(values) or len(given) != len(values):
        raise ConfigError(
            f"found {len(values)} shares and the names {','.join(given)!r}; expected as many, each once: give --names"
        )
    return dict(zip(given, values, strict=True))


def split(documents: Sequence[Document], rule: Rule) -> Division:
    """Divide `documents` by `rule`.

    Raises:
        DataError: a split would have no documents, or none has the meta key that `rule.by` names.
    """
    groups = _groups(documents, rule.by)
    links, copies = _links(documents, groups, rule.threshold)
    ledger = _Ledger(rule.shares)
    clusters = _Clusters()
    moved: set[int] = set()
    for index, document in enumerate(documents):
        name, moves = clusters.join(index, links[index])
        if name is None:
            group = groups[index]
            key = f"text {document.text}" if group is None else f"group {group}"
            name = ledger.choose(document, _fraction(key, rule.seed))
        for moved_index, source in moves.items():
            ledger.move(documents[moved_index], source, name)
        ledger.add(document, name)
        clusters.home.append(name)
        moved |= moves.keys()
    parts: dict[str, list[Document]] = {name: [] for name in rule.shares}
    for document, name in zip(documents, clusters.home, strict=True):
        parts[name].append(document)
    _check_filled(parts, rule)
    return Division(
        rule,
        {name: tuple(part) for name, part in parts.items()},
        {group: name for group, name in zip(groups, clusters.home, strict=True) if group is not None},
        tuple((documents[later].id, documents[earlier].id) for later, earlier in copies),
        tuple(documents[index].id for index in sorted(moved)),
    )


def write_splits(
    folder: Path, division: Division, format: str = "native", facts: Mapping[str, object] | None = None
) -> dict[str, int]:
    """Write every split and `split.json` (with `facts` first) into `folder`, whole or not at all.

    Returns what the format could not hold, with counts.

    Raises:
        DataError: the folder holds something already or cannot be made, or the format cannot hold a document.
    """
    notes: Counter[str] = Counter()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError("exists and is not empty; name another folder, or remove it", path=folder)
    with replacing_path(folder) as partial:
        partial.mkdir()
        for name, part in division.parts.items():
            notes.update(formats.write(partial / f"{name}{SUFFIXES.get(format, '.jsonl')}", part, format))
        with replacing(partial / RECORD) as file:
            file.write(to_json({**(facts or {}), **division.as_dict()}, indent=1) + "\n")
    return dict(notes)


def sample(documents: Sequence[Document], count: int, seed: int = 0) -> list[Document]:
    """`count` documents with the labels in proportion, in the order of the corpus; a larger sample contains a smaller.

    Documents are spread evenly over each stratum (their rarest label), so that every prefix is in proportion.

    Raises:
        DataError: there are fewer documents.
    """
    if count > len(documents):
        raise DataError(f"a sample of {count} of {len(documents)} documents cannot be had; ask for fewer")
    seen = Counter(stratum for document in documents for stratum in _strata(document))
    members: dict[_Stratum, list[tuple[float, int]]] = defaultdict(list)
    for index, document in enumerate(documents):
        rarest = min(_strata(document), key=lambda stratum: (seen[stratum], stratum))
        members[rarest].append((_fraction(f"sample {document.id} {document.text}", seed), index))
    order: list[tuple[float, int]] = []
    for stratum, drawn in members.items():
        first = _fraction(f"stratum {stratum}", seed)
        order += [((place + first) / len(drawn), index) for place, (_, index) in enumerate(sorted(drawn))]
    return [documents[index] for index in sorted(index for _, index in sorted(order)[:count])]


def few_shot(documents: Sequence[Document], k: int, seed: int = 0, allow_fewer: bool = False) -> list[Document]:
    """As few documents as a greedy search finds that hold `k` entities of every label, in the order of the corpus.

    The search takes the document with the most entities still wanted, ties by seed; so it favours long documents.

    Raises:
        DataError: a label has fewer than `k` entities, unless `allow_fewer`.
    """
    counts = [Counter(entity.label for entity in document.entities) for document in documents]
    total = sum(counts, Counter())
    short = {label: count for label, count in sorted(total.items()) if count < k}
    if not total or (short and not allow_fewer):
        problem = (
            ", ".join(f"{label!r} has {count}" for label, count in short.items()) or "there are no entities at all"
        )
        raise DataError(f"{problem} of {k} entities among {len(documents)} documents; ask for fewer, or --allow-fewer")
    missing = Counter({label: min(k, count) for label, count in total.items()})
    ties = [_fraction(f"shot {document.id} {document.text}", seed) for document in documents]
    left = {index for index, count in enumerate(counts) if count}
    chosen: list[int] = []
    while +missing:
        best = max(left, key=lambda index: ((counts[index] & missing).total(), ties[index]))
        left.remove(best)
        chosen.append(best)
        missing = missing - counts[best]
    have = sum((counts[index] for index in chosen), Counter())
    for index in list(chosen):  # an early choice may have become superfluous
        if all(have[label] - count >= min(k, total[label]) for label, count in counts[index].items()):
            chosen.remove(index)
            have -= counts[index]
    return [documents[index] for index in sorted(chosen)]


class _Clusters:
    """Which documents belong together, and the split of each so far."""

    def __init__(self) -> None:
        self.home: list[str] = []
        self._root: list[int] = []
        self._members: dict[int, list[int]] = {}

    def join(self, index: int, links: Iterable[int]) -> tuple[str | None, dict[int, str]]:
        """Put `index` with the earlier documents `links`: their split, if any, and who came to it from which other."""
        first, *rest = sorted({self._root[link] for link in links}) or [index]
        name = None if first == index else self.home[first]
        moves: dict[int, str] = {}
        self._root.append(first)
        self._members.setdefault(first, []).append(index)
        for member in [member for root in rest for member in self._members.pop(root)]:
            self._root[member] = first
            self._members[first].append(member)
            if name is not None and self.home[member] != name:
                moves[member], self.home[member] = self.home[member], name
        return name, moves


class _Ledger:
    """How many documents of every stratum there are so far, in all and by split."""

    def __init__(self, shares: Mapping[str, float]) -> None:
        self._shares = shares
        self._seen: Counter[_Stratum] = Counter()
        self._have: dict[str, Counter[_Stratum]] = {name: Counter() for name in shares}

    def add(self, document: Document, name: str) -> None:
        for stratum in _strata(document):
            self._seen[stratum] += 1
            self._have[name][stratum] += 1

    def move(self, document: Document, source: str, target: str) -> None:
        for stratum in _strata(document):
            self._have[source][stratum] -= 1
            self._have[target][stratum] += 1

    def choose(self, document: Document, fraction: float) -> str:
        """The split of a new cluster that begins with `document`."""
        drawn = _at(self._shares, fraction)
        for stratum in sorted(_strata(document), key=lambda stratum: (self._seen[stratum], stratum)):
            expected = {name: share * (self._seen[stratum] + 1) for name, share in self._shares.items()}
            owed = {name: expected[name] - self._have[name][stratum] for name in expected}
            behind = max(owed, key=lambda name: owed[name] / _slack(expected[name]))
            if owed[behind] >= _slack(expected[behind]) or owed[drawn] - 1 < -_slack(expected[drawn]):
                return behind
        return drawn


def _slack(expected: float) -> float:
    """How many documents a stratum may be away from what is expected: half a standard deviation of chance, or one."""
    return max(1.0, math.sqrt(expected) / 2)


def _strata(document: Document) -> set[_Stratum]:
    return {_ALL, *(("label", entity.label) for entity in document.entities)} | (
        set() if document.entities else {_NONE}
    )


def _at(shares: Mapping[str, float], fraction: float) -> str:
    """The split in whose stretch of [0, 1) `fraction` lies."""
    end = 0.0
    for name, share in shares.items():
        end += share
        if fraction < end:
            return name
    return name  # the shares sum to a little less than 1


def _fraction(key: str, seed: int) -> float:
    """A number in [0, 1) from the keyed hash of `key`."""
    digest = blake2b(key.encode("utf-8", "surrogatepass"), key=str(seed).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def _groups(documents: Sequence[Document], by: str | None) -> list[str | None]:
    """The group of every document that has one."""
    if by is None:
        return [None] * len(documents)
    values = [document.meta.get(by) for document in documents]
    if all(value is None for value in values):
        keys = {key for document in documents for key in document.meta}
        hint = nearest(by, keys) if keys else "they have no meta at all"
        raise DataError(f"no document has {by!r} in its meta; {hint}. Name one that is there, or leave --by out")
    return [value if value is None or isinstance(value, str) else json.dumps(value, sort_keys=True) for value in values]


def _links(
    documents: Sequence[Document], groups: Sequence[str | None], threshold: float
) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """The earlier documents that each belongs with, and the (later, earlier) that are or resemble each other."""
    links: list[list[int]] = [[] for _ in documents]
    by_group: dict[str, int] = {}
    by_text: dict[str, int] = {}
    copies: list[tuple[int, int]] = []
    for index, (document, group) in enumerate(zip(documents, groups, strict=True)):
        if group is not None and by_group.setdefault(group, index) != index:
            links[index].append(by_group[group])
        if by_text.setdefault(document.text, index) != index:
            copies.append((index, by_text[document.text]))
    firsts = list(by_text.values())
    copies += [(firsts[later], firsts[earlier]) for earlier, later in near_duplicates(list(by_text), threshold)]
    for later, earlier in copies:
        links[later].append(earlier)
    return links, sorted(copies)


def _check_filled(parts: Mapping[str, Sequence[Document]], rule: Rule) -> None:
    for name, part in parts.items():
        if not part:
            sizes = ", ".join(f"{split} {len(documents)}" for split, documents in parts.items())
            raise DataError(
                f"the split {name!r} (share {rule.shares[name]:g}) would have no document ({sizes}); give it a larger "
                "share, take another --seed, or split more documents or smaller groups"
            )
