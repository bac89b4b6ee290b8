"""Give the labels of a corpus other names, join several into one, or drop one.

All labels are replaced at the same time, so that two labels can be swapped. If two entities become equal, one is kept,
with the higher score. Some formats keep fields of an entity in the document's meta; the label there is replaced too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from spantune.core import ConfigError, Document, Entity, nearest


@dataclass(frozen=True)
class Relabeled:
    """The result of `relabel`.

    Args:
        documents: the documents with their new labels.
        counts: for each old label that was replaced or dropped, how many entities had it.
        joined: how many entities became equal to another one of their document and were dropped.
    """

    documents: tuple[Document, ...]
    counts: Mapping[str, int]
    joined: int


def parse_label_map(words: Sequence[str], known: Iterable[str]) -> dict[str, str | None]:
    """Return the new name of each label from words `OLD=NEW`, or None for a label that `OLD=` drops.

    A label may contain `=`: a word is cut at the first `=` that has a known label before it.

    Raises:
        ConfigError: a word has no `=`, or names a label that is not `known` or was named before.
    """
    codes = set(known)
    mapping: dict[str, str | None] = {}
    for word in words:
        splits = [(word[:index], word[index + 1 :]) for index, sign in enumerate(word) if sign == "="]
        if not splits:
            raise ConfigError(f"{word!r}: expected OLD=NEW, such as person=Person, or OLD= to drop the label")
        old, new = next((pair for pair in splits if pair[0] in codes), splits[0])
        if old not in codes:
            raise ConfigError(f"{word!r}: no entity has the label {old!r}; {nearest(old, codes)}")
        if old in mapping:
            raise ConfigError(f"{word!r}: the label {old!r} is given a new name twice; give it one")
        mapping[old] = new or None
    return mapping


def relabel(documents: Sequence[Document], mapping: Mapping[str, str | None]) -> Relabeled:
    """Return the documents with the labels of `mapping` replaced. Entities whose new label is None are dropped."""
    counts: Counter[str] = Counter(
        entity.label for document in documents for entity in document.entities if entity.label in mapping
    )
    changed = [_relabeled(document, mapping) for document in documents]
    return Relabeled(tuple(document for document, _ in changed), counts, sum(joined for _, joined in changed))


def _relabeled(document: Document, mapping: Mapping[str, str | None]) -> tuple[Document, int]:
    """Return the document with its new labels, and how many of its entities were joined with another."""
    remaining = [
        replace(entity, label=label)
        for entity in document.entities
        if (label := mapping.get(entity.label, entity.label)) is not None
    ]
    kept: dict[Entity, Entity] = {}
    for entity in remaining:
        before = kept.get(entity)
        if before is None or (entity.score or 0.0) > (before.score or 0.0):
            kept[entity] = entity
    entities = tuple(kept.values())
    return replace(document, entities=entities, meta=_meta(document.meta, mapping)), len(remaining) - len(entities)


def _meta(meta: Mapping[str, object], mapping: Mapping[str, str | None]) -> dict[str, object]:
    """Return `meta` with new labels in the entity fields that formats keep; dropped labels are unchanged."""
    changed = dict(meta)
    for format, values in meta.items():
        rows = values.get("entities") if isinstance(values, dict) else None
        if isinstance(values, dict) and isinstance(rows, list):
            changed[format] = values | {"entities": [_row(row, mapping) for row in rows]}
    return changed


def _row(row: object, mapping: Mapping[str, str | None]) -> object:
    label = row.get("label") if isinstance(row, dict) else None
    new = mapping.get(label) if isinstance(label, str) else None
    return row if new is None or not isinstance(row, dict) else row | {"label": new}
