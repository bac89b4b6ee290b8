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

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from spantune.core import ConfigError, DataError, Document, nearest, replacing, replacing_path, to_json
from spantune.data import formats
from spantune.data.likeness import near_duplicates
from spantune.data.placement import Stratum, drawn_number, fraction, group_of, links_of, placed, strata_of

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
        split_of = {document.id: name for name, part in self.parts.items() for document in part}
        copies = [(copy, of, split_of[copy]) for copy, of in self.copies if copy in split_of]
        return record_of(
            self.rule, Counts({n: len(p) for n, p in self.parts.items()}, entities), self.groups, copies
        ) | {"moved": list(self.moved)}


@dataclass(frozen=True, slots=True)
class Counts:
    """How many documents each split has, and how many entities of each label."""

    documents: Mapping[str, int]
    entities: Mapping[str, Counter[str]]


def record_of(
    rule: Rule, counts: Counts, groups: Mapping[str, str], copies: Iterable[tuple[str, str, str]]
) -> dict[str, object]:
    """Return the record of a split, but for what moved; `copies` are ids: a copy, what it is a copy of, its split."""
    entities = counts.entities
    total = sum(entities.values(), Counter())
    return {
        "seed": rule.seed,
        "shares": dict(rule.shares),
        "by": rule.by,
        "threshold": rule.threshold,
        "documents": dict(counts.documents),
        "entities": {name: labels.total() for name, labels in entities.items()},
        "labels": {label: {name: entities[name][label] for name in entities} for label in sorted(total)},
        "label_shares": {
            label: {name: round(entities[name][label] / total[label], 4) for name in entities}
            for label in sorted(total)
        },
        "groups": dict(groups),
        "near_duplicates": [{"id": copy, "of": of, "split": name} for copy, of, name in copies],
    }


@dataclass(frozen=True, slots=True)
class Fewer:
    """How the first split is reduced: to `k_shot` entities of every label, or to a `sample` of so many documents."""

    k_shot: int | None = None
    sample: int | None = None
    allow_fewer: bool = False

    def __bool__(self) -> bool:
        return bool(self.k_shot or self.sample)

    def of(self, division: Division) -> Division:
        """Return the division with its first split reduced.

        Raises:
            DataError: as `few_shot` and `sample`.
        """
        first = next(iter(division.parts.values()))
        if self.k_shot:
            division = division.with_first(few_shot(first, self.k_shot, division.rule.seed, self.allow_fewer))
        if self.sample:
            division = division.with_first(sample(first, self.sample, division.rule.seed))
        return division


@dataclass(frozen=True, slots=True)
class Written:
    """The record of a split, what reading and writing noted, and whether documents have `group` in their meta."""

    record: Mapping[str, object]
    notes: Mapping[str, int]
    has_groups: bool


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
    copies = _copies(documents, rule.threshold)
    strata = [strata_of(document) for document in documents]
    placement = placed(
        strata,
        links_of(groups, copies),
        lambda index: drawn_number(documents[index], groups[index], rule.seed),
        rule.shares,
    )
    parts: dict[str, list[Document]] = {name: [] for name in rule.shares}
    for document, name in zip(documents, placement.homes, strict=True):
        parts[name].append(document)
    require_filled({name: len(part) for name, part in parts.items()}, rule)
    return Division(
        rule,
        {name: tuple(part) for name, part in parts.items()},
        {group: name for group, name in zip(groups, placement.homes, strict=True) if group is not None},
        tuple((documents[later].id, documents[earlier].id) for later, earlier in copies),
        tuple(documents[index].id for index in placement.moved),
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
    require_empty(folder)
    with replacing_path(folder) as partial:
        partial.mkdir()
        for name, part in division.parts.items():
            notes.update(formats.write(partial / f"{name}{SUFFIXES.get(format, '.jsonl')}", part, format))
        with replacing(partial / RECORD) as file:
            file.write(to_json({**(facts or {}), **division.as_dict()}, indent=1) + "\n")
    return dict(notes)


def require_empty(folder: Path) -> None:
    """Check that nothing is where `folder` is to be made.

    Raises:
        DataError: something is.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError("exists and is not empty; name another folder, or remove it", path=folder)


def sample(documents: Sequence[Document], count: int, seed: int = 0) -> list[Document]:
    """`count` documents with the labels in proportion, in the order of the corpus; a larger sample contains a smaller.

    Documents are spread evenly over each stratum (their rarest label), so that every prefix is in proportion.

    Raises:
        DataError: there are fewer documents.
    """
    if count > len(documents):
        raise DataError(f"a sample of {count} of {len(documents)} documents cannot be had; ask for fewer")
    seen = Counter(stratum for document in documents for stratum in strata_of(document))
    members: dict[Stratum, list[tuple[float, int]]] = defaultdict(list)
    for index, document in enumerate(documents):
        rarest = min(strata_of(document), key=lambda stratum: (seen[stratum], stratum))
        members[rarest].append((fraction(f"sample {document.id} {document.text}", seed), index))
    order: list[tuple[float, int]] = []
    for stratum, drawn in members.items():
        first = fraction(f"stratum {stratum}", seed)
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
    ties = [fraction(f"shot {document.id} {document.text}", seed) for document in documents]
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


def _groups(documents: Sequence[Document], by: str | None) -> list[str | None]:
    """The group of every document that has one."""
    if by is None:
        return [None] * len(documents)
    groups = [group_of(document, by) for document in documents]
    if all(group is None for group in groups):
        raise no_group(by, {key for document in documents for key in document.meta})
    return groups


def no_group(by: str, keys: Collection[str]) -> DataError:
    """Return the error for documents whose meta has other `keys` only."""
    hint = nearest(by, keys) if keys else "they have no meta at all"
    return DataError(f"no document has {by!r} in its meta; {hint}. Name one that is there, or leave --by out")


def _copies(documents: Sequence[Document], threshold: float) -> list[tuple[int, int]]:
    """The pairs (later, earlier) of documents that are or resemble each other."""
    by_text: dict[str, int] = {}
    copies: list[tuple[int, int]] = []
    for index, document in enumerate(documents):
        if by_text.setdefault(document.text, index) != index:
            copies.append((index, by_text[document.text]))
    firsts = list(by_text.values())
    copies += [(firsts[later], firsts[earlier]) for earlier, later in near_duplicates(list(by_text), threshold)]
    return sorted(copies)


def require_filled(sizes: Mapping[str, int], rule: Rule) -> None:
    """Check that each split has documents.

    Raises:
        DataError: one has none.
    """
    for name, size in sizes.items():
        if not size:
            counts = ", ".join(f"{split} {documents}" for split, documents in sizes.items())
            raise DataError(
                f"the split {name!r} (share {rule.shares[name]:g}) would have no document ({counts}); give it a larger "
                "share, take another --seed, or split more documents or smaller groups"
            )
