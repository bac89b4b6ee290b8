"""What a format keeps in a document's meta beside its entities, and giving it back to them on writing.

Relations and attributes name entities by ids, which an Entity has no place for. A reader keeps a row for each entity,
`{"start", "end", "label", "id", …}`, under `meta[format]["entities"]`; the writer gives a row back to the entity that
still has its span and label. What belongs to an entity that is gone is the writer's to leave out and to count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spantune.document import Document, Entity
from spantune.errors import DataError

Row = dict[str, Any]

_ROW: dict[str, type | tuple[type, ...]] = {"start": int, "end": int, "label": str, "id": (int, str)}


def kept(document: Document, format: str) -> Mapping[str, Any]:
    """What the reader of `format` put into the document's meta; nothing for a document from elsewhere.

    Raises:
        DataError: the meta holds something else under that name.
    """
    values = document.meta.get(format, {})
    if not isinstance(values, Mapping):
        raise strange(document, format, f"found {values!r:.40}; expected an object")
    return values


def reunited(document: Document, format: str) -> tuple[list[tuple[Entity, Row]], list[Row]]:
    """Each entity with its row, in the order of the rows, those without one last; and the rows of entities now gone.

    Raises:
        DataError: the rows are not what the reader keeps.
    """
    rows = kept(document, format).get("entities", [])
    if not isinstance(rows, list):
        raise strange(document, format, f"found {rows!r:.40} for entities; expected a list")
    waiting: dict[tuple[int, int, str], list[Entity]] = {}
    for entity in document.entities:
        waiting.setdefault((entity.start, entity.end, entity.label), []).append(entity)
    pairs: list[tuple[Entity, Row]] = []
    gone: list[Row] = []
    for row in rows:
        if not isinstance(row, dict) or not all(isinstance(row.get(name), kind) for name, kind in _ROW.items()):
            raise strange(document, format, f"found {row!r:.60} in entities; expected an object with {', '.join(_ROW)}")
        if same := waiting.get((row["start"], row["end"], row["label"])):
            pairs.append((same.pop(0), row))
        else:
            gone.append(row)
    return pairs + [(entity, {}) for entities in waiting.values() for entity in entities], gone


def strange(document: Document, format: str, found: str) -> DataError:
    """The error for meta under `format` that its reader did not write."""
    return DataError(
        f"document {document.id!r}: {found}; mend meta[{format!r}], or remove it to write without it", field="meta"
    )
