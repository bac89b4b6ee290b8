"""Give the labels of a corpus other names, join several into one, or drop one.

All labels are replaced at once, so that two can be swapped. Where two entities become the same one, it is kept once,
with the higher score. What a format keeps of an entity in the document's meta follows its label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from spantune.core import ConfigError, Document, Entity, nearest


@dataclass(frozen=True)
class Relabeled:
    """The documents with other labels, the entities of each old label, and those that became the same as another."""

    documents: tuple[Document, ...]
    counts: Mapping[str, int]
    joined: int


def parse_label_map(words: Sequence[str], known: Iterable[str]) -> dict[str, str | None]:
    """Return the new name of each label from `OLD=NEW` words; None for one that is dropped, by `OLD=`.

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
    """Return the documents with the labels of `mapping` replaced, or dropped where their new name is None."""
    counts: Counter[str] = Counter(
        entity.label for document in documents for entity in document.entities if entity.label in mapping
    )
    changed = [_relabeled(document, mapping) for document in documents]
    return Relabeled(tuple(document for document, _ in changed), counts, sum(joined for _, joined in changed))


def _relabeled(document: Document, mapping: Mapping[str, str | None]) -> tuple[Document, int]:
    """The document with its new labels, and how many of its entities were joined with another."""
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
    """The meta with new labels in the rows that formats keep of entities; those of dropped ones stay as they are."""
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
