"""Train, dev and test splits of one corpus, and small samples of it: stratified by label, reproducible, without leaks.

Documents of one group, with the same text or with nearly the same text form a cluster. All documents of a cluster are
in one split. The method places the clusters in one pass, in the order of the file:

1. A keyed hash of the cluster's group, or of its first text, proposes a split.
2. For each label of the cluster's first document, the rarest first, it is checked how far the splits are from their
   shares of that label so far. If the proposed split would be too far above its share, or another one is too far below,
   the cluster goes to the split that is furthest below. `placement._slack` says what is too far.

The split of a document depends only on earlier documents, so appended documents do not move earlier ones. A label soon
reaches every split in which it is expected. Two simpler methods are worse:

- Stratifying over the whole corpus would come a little closer to the shares, but every new line would move documents.
- The hash alone would not depend on the order of the lines. But of a label with 25 documents, one time in fourteen it
  would put none into a split with a share of a tenth.

With the method used here, removing or reordering lines moves up to fifteen documents in a hundred. Appending a document
moves earlier ones in one case only: if it joins clusters of two splits, the later cluster goes to the split of the
earlier one, because a leak would be worse. `moved` names these documents. A group is placed by its first document, so
its size is not known then. Shares that leave a split empty are refused.
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
"""The suffix of the files of a format, where it is not `.jsonl`. The formats brat and datasets are folders."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Rule:
    """How to split a corpus.

    Args:
        shares: the share of each split by its name, each above 0; their sum is 1.
        seed: another seed gives another split.
        by: the key of meta whose values are groups, which are kept together; None for no groups.
        threshold: the Jaccard similarity in (0, 1] from which two texts count as nearly the same.

    Raises:
        ConfigError: a name, a share or the threshold cannot be right.
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
            if share <= 0:  # a share over 1 needs no check: another one would have to be negative
                raise ConfigError(
                    f"the share of {name} is {share:g}; expected more than 0: leave the split out instead"
                )
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"the likeness is {self.threshold:g}; expected more than 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Division:
    """The documents of each split, in the order of the corpus, and which of them had to stay together.

    Args:
        rule: how the corpus was split.
        parts: the documents of each split by its name.
        groups: the split of each group.
        copies: pairs of ids (document, earlier document) whose texts are the same or nearly the same.
        moved: the ids of documents that left their split because a later document joined their cluster to an earlier
            one.
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
        """The number of documents in all splits."""
        return sum(map(len, self.parts.values()))

    def with_first(self, documents: Iterable[Document]) -> Division:
        """Return this division with `documents` as its first split."""
        return replace(self, parts={**self.parts, next(iter(self.parts)): tuple(documents)})

    def as_dict(self) -> dict[str, object]:
        """Return the record of the split as a JSON object: see `record_of`, and the ids that moved."""
        entities = {name: Counter(e.label for d in part for e in d.entities) for name, part in self.parts.items()}
        split_of = {document.id: name for name, part in self.parts.items() for document in part}
        copies = [(copy, of, split_of[copy]) for copy, of in self.copies if copy in split_of]
        return record_of(
            self.rule, Counts({n: len(p) for n, p in self.parts.items()}, entities), self.groups, copies
        ) | {"moved": list(self.moved)}


@dataclass(frozen=True, slots=True)
class Counts:
    """The number of documents of each split, and the number of entities of each split and label."""

    documents: Mapping[str, int]
    entities: Mapping[str, Counter[str]]


def record_of(
    rule: Rule, counts: Counts, groups: Mapping[str, str], copies: Iterable[tuple[str, str, str]]
) -> dict[str, object]:
    """Return the record of a split as a JSON object, without its key `moved`.

    Args:
        rule: how the corpus was split.
        counts: the documents and entities of each split.
        groups: the split of each group.
        copies: (id of a document, id of the earlier document that it resembles, split of both).
    """
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
    """How the first split is reduced.

    Args:
        k_shot: reduce it to documents with at least this many entities of every label; see `few_shot`.
        sample: reduce it to this many documents; see `sample`.
        allow_fewer: accept labels that have fewer than `k_shot` entities.
    """

    k_shot: int | None = None
    sample: int | None = None
    allow_fewer: bool = False

    def __bool__(self) -> bool:
        return bool(self.k_shot or self.sample)

    def of(self, division: Division) -> Division:
        """Return `division` with its first split reduced.

        Raises:
            DataError: as `few_shot` and `sample` raise it.
        """
        first = next(iter(division.parts.values()))
        if self.k_shot:
            division = division.with_first(few_shot(first, self.k_shot, division.rule.seed, self.allow_fewer))
        if self.sample:
            division = division.with_first(sample(first, self.sample, division.rule.seed))
        return division


@dataclass(frozen=True, slots=True)
class Written:
    """The record of a split, what reading and writing noted, and whether a document has the key `group` in its meta."""

    record: Mapping[str, object]
    notes: Mapping[str, int]
    has_groups: bool


def usual_names(count: int) -> list[str]:
    """Return the names that `count` splits have when none are given; an empty list if `count` is not 1, 2 or 3."""
    return {1: ["train"], 2: ["train", "test"], 3: ["train", "dev", "test"]}.get(count, [])


def parse_shares(shares: str, names: str | None = None) -> dict[str, float]:
    """Return the shares by name from what a command line states, such as "0.8,0.1,0.1" and "train,dev,test".

    Raises:
        ConfigError: a share is not a number, or the names are not as many as the shares, or not distinct.
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
    """Divide `documents` by `rule`; the module says how.

    Raises:
        DataError: a split would have no documents, or no document has the meta key that `rule.by` names.
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
    """Write every split and the record `split.json` into `folder`. Either all files are written, or none.

    Args:
        folder: a new or empty folder.
        division: the splits.
        format: the format of the files.
        facts: keys and values that the record has before its own.

    Returns:
        What the format could not hold, with counts.

    Raises:
        DataError: the folder is not empty or cannot be made, or the format cannot hold a document.
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
    """Check that `folder` does not exist, or is an empty folder.

    Raises:
        DataError: it is a file, or a folder with something in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError("exists and is not empty; name another folder, or remove it", path=folder)


def sample(documents: Sequence[Document], count: int, seed: int = 0) -> list[Document]:
    """Return `count` documents in the order of the corpus, in which each label has about its share of the corpus.

    The stratum of a document is its rarest label. Documents are taken in an order in which those of each stratum are
    spread evenly. Every beginning of that order therefore has the labels in proportion, and a larger sample contains a
    smaller one.

    Raises:
        DataError: there are fewer than `count` documents.
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
    """Return documents with at least `k` entities of every label, as few as a greedy search finds, in corpus order.

    Each step takes the document with the most entities that are still needed; `seed` decides between equals. Long
    documents are therefore preferred. With `allow_fewer`, all entities of a label that has fewer than `k` are taken.

    Raises:
        DataError: there are no entities, or a label has fewer than `k` and `allow_fewer` is False.
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
    for index in list(chosen):  # documents chosen later may have made an earlier one unnecessary
        if all(have[label] - count >= min(k, total[label]) for label, count in counts[index].items()):
            chosen.remove(index)
            have -= counts[index]
    return [documents[index] for index in sorted(chosen)]


def _groups(documents: Sequence[Document], by: str | None) -> list[str | None]:
    """Return the group of every document; None for a document without one."""
    if by is None:
        return [None] * len(documents)
    groups = [group_of(document, by) for document in documents]
    if all(group is None for group in groups):
        raise no_group(by, {key for document in documents for key in document.meta})
    return groups


def no_group(by: str, keys: Collection[str]) -> DataError:
    """Return the error for documents without the meta key `by`; `keys` are those that their meta has."""
    hint = nearest(by, keys) if keys else "they have no meta at all"
    return DataError(f"no document has {by!r} in its meta; {hint}. Name one that is there, or leave --by out")


def _copies(documents: Sequence[Document], threshold: float) -> list[tuple[int, int]]:
    """Return the sorted pairs (later, earlier) of indices whose documents have the same or nearly the same text."""
    by_text: dict[str, int] = {}
    copies: list[tuple[int, int]] = []
    for index, document in enumerate(documents):
        if by_text.setdefault(document.text, index) != index:
            copies.append((index, by_text[document.text]))
    firsts = list(by_text.values())
    copies += [(firsts[later], firsts[earlier]) for earlier, later in near_duplicates(list(by_text), threshold)]
    return sorted(copies)


def require_filled(sizes: Mapping[str, int], rule: Rule) -> None:
    """Check that each split has at least one document.

    Raises:
        DataError: a split has none.
    """
    for name, size in sizes.items():
        if not size:
            counts = ", ".join(f"{split} {documents}" for split, documents in sizes.items())
            raise DataError(
                f"the split {name!r} (share {rule.shares[name]:g}) would have no document ({counts}); give it a larger "
                "share, take another --seed, or split more documents or smaller groups"
            )
