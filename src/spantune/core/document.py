"""Entity and Document: the two values that all layers exchange.

The offsets of an entity form a half-open range and count Unicode code points of the unchanged text. Entities may be
nested, may cross, and may have the same span under two labels. A Document refuses an entity that is empty or outside
its text when it is constructed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from spantune.core.errors import DataError, expect
from spantune.core.frames import number

_SURROGATE = re.compile("[\ud800-\udfff]")


def half_surrogate(text: str) -> int | None:
    """Return the offset of the first surrogate code point, which UTF-8 cannot encode; None if `text` has none."""
    match = _SURROGATE.search(text)
    return match.start() if match else None


def encodable(text: str) -> str:
    """Return `text` with U+FFFD in place of every surrogate code point, so that it can be encoded as UTF-8.

    Python puts such code points into file names whose bytes are not UTF-8.
    """
    return _SURROGATE.sub("\ufffd", text)


@dataclass(frozen=True, slots=True, order=True)
class Entity:
    """A labelled span `text[start:end]`.

    Two entities are equal if start, end and label are equal; the score is not compared.

    Args:
        start: the offset of the first character, in code points.
        end: the offset after the last character.
        label: the code of the entity type.
        score: the probability that the entity is correct, in [0, 1]; None if it is not known.
    """

    start: int
    end: int
    label: str
    score: float | None = field(default=None, compare=False)

    def shifted(self, by: int) -> Entity:
        """Return the entity with `by` characters added to both offsets."""
        return replace(self, start=self.start + by, end=self.end + by)


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its entities.

    Args:
        id: the identifier of the document in its corpus.
        text: the text, which is never changed.
        entities: the entities of the text; they are sorted by (start, end, label).
        meta: everything else that a file says about the document; not interpreted.

    Raises:
        DataError: an entity is empty or lies outside the text, or a value is of a wrong type.
    """

    id: str
    text: str
    entities: tuple[Entity, ...] = ()
    meta: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (
            not isinstance(self.id, str)
            or not isinstance(self.text, str)
            or not isinstance(self.entities, list | tuple)
        ):
            raise DataError(
                f"document {self.id!r}: expected an id and a text that are strings and a list of entities, found "
                f"{type(self.id).__name__}, {type(self.text).__name__} and {type(self.entities).__name__}"
            )
        if not isinstance(self.meta, Mapping):
            raise DataError(f"document {self.id!r}: expected a mapping for meta, found {type(self.meta).__name__}")
        for entity in self.entities:
            if not isinstance(entity, Entity):
                raise DataError(f"document {self.id!r}: expected Entity objects, found {entity!r}", field="entities")
            if not (isinstance(entity.start, int) and isinstance(entity.end, int) and isinstance(entity.label, str)):
                raise DataError(
                    f"document {self.id!r}: expected an entity with whole numbers for start and end and a string for "
                    f"its label, found {entity!r}",
                    field="entities",
                )
            if not 0 <= entity.start < entity.end <= len(self.text):
                raise DataError(
                    f"document {self.id!r}: entity {entity.label!r} at [{entity.start}, {entity.end}) is empty or "
                    f"outside the text of {len(self.text)} characters; offsets are half-open code points: mend the "
                    "annotation",
                    field="entities",
                )
        object.__setattr__(self, "entities", tuple(sorted(self.entities)))

    def __repr__(self) -> str:
        start = self.text if len(self.text) <= 40 else f"{self.text[:37]}..."
        return f"Document({self.id!r}, {start!r}, {number(len(self.entities), 'entity', 'entities')})"

    def _repr_html_(self) -> str:
        from spantune.core.drawing import entities_html

        return entities_html(self)

    def to_dict(self) -> dict[str, object]:
        """Return the document as the native JSON object: id, text, entities with their surface, and any `meta`."""
        return to_record(self)

    def surface(self, entity: Entity) -> str:
        """Return the surface of `entity`: the characters of the text that it covers.

        Raises:
            ConfigError: `entity` is not an Entity.
        """
        if not isinstance(entity, Entity):
            expect(entity, Entity, "surface", "an Entity of the document")
        return self.text[entity.start : entity.end]

    def with_entities(self, entities: Iterable[Entity]) -> Document:
        """Return the same document with `entities` in place of its own.

        Raises:
            ConfigError: `entities` is not a list of Entity objects.
            DataError: an entity is empty or lies outside the text.
        """
        if isinstance(entities, str) or not isinstance(entities, Iterable):
            expect(entities, (), "with_entities", "a list of Entity objects")
        return replace(self, entities=tuple(entities))


def hash_documents(documents: Iterable[Document]) -> str:
    """Return the SHA-256, in hexadecimal digits, of the ids, texts and entities of `documents` in their order.

    Scores and `meta` are not included.
    """
    digest = hashlib.sha256()
    for document in documents:
        entities = [[entity.start, entity.end, entity.label] for entity in document.entities]
        digest.update((json.dumps([document.id, document.text, entities], ensure_ascii=True) + "\n").encode())
    return digest.hexdigest()


def to_record(document: Document) -> dict[str, object]:
    """Return `document` as the native JSON object, with the keys `id`, `text`, `entities` and, if not empty, `meta`.

    Each entity has `start`, `end`, `label`, its surface as `text` and, if known, its `score` with 6 decimal places.
    """
    entities = []
    for entity in document.entities:
        row: dict[str, object] = {
            "start": entity.start,
            "end": entity.end,
            "label": entity.label,
            "text": document.surface(entity),
        }
        if entity.score is not None:
            row["score"] = round(entity.score, 6)
        entities.append(row)
    record: dict[str, object] = {"id": document.id, "text": document.text, "entities": entities}
    if document.meta:
        record["meta"] = dict(document.meta)
    return record
