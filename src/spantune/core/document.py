"""Entity and Document: the two values that every layer passes on.

Offsets are half-open and count Unicode code points of the unchanged text. Entities may be nested, may cross, and may
have the same span under two labels. An entity that is empty or outside its text is refused when the document is made.
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
    """Return the offset of the first half of a surrogate pair, which cannot be encoded; None if there is none."""
    match = _SURROGATE.search(text)
    return match.start() if match else None


def encodable(text: str) -> str:
    """Return `text` with U+FFFD for what cannot be encoded, such as bytes of a file name that are not UTF-8."""
    return _SURROGATE.sub("\ufffd", text)


@dataclass(frozen=True, slots=True, order=True)
class Entity:
    """A labelled span `text[start:end]`; `score` is its probability in [0, 1], if known."""

    start: int
    end: int
    label: str
    score: float | None = field(default=None, compare=False)

    def shifted(self, by: int) -> Entity:
        """Return the same entity in a text that begins `by` characters earlier."""
        return replace(self, start=self.start + by, end=self.end + by)


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its entities, sorted by (start, end, label).

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
        """Return the document as the native JSON object: id, text, entities with their surface, meta if any."""
        return to_record(self)

    def surface(self, entity: Entity) -> str:
        """Return the characters that `entity` covers.

        Raises:
            ConfigError: `entity` is no Entity.
        """
        if not isinstance(entity, Entity):
            expect(entity, Entity, "surface", "an Entity of the document")
        return self.text[entity.start : entity.end]

    def with_entities(self, entities: Iterable[Entity]) -> Document:
        """Return the same document with other entities.

        Raises:
            ConfigError: `entities` is no list of Entity objects.
            DataError: one of them is empty or lies outside the text.
        """
        if isinstance(entities, str) or not isinstance(entities, Iterable):
            expect(entities, (), "with_entities", "a list of Entity objects")
        return replace(self, entities=tuple(entities))


def hash_documents(documents: Iterable[Document]) -> str:
    """Return one SHA-256 over ids, texts and entities, in order."""
    digest = hashlib.sha256()
    for document in documents:
        entities = [[entity.start, entity.end, entity.label] for entity in document.entities]
        digest.update((json.dumps([document.id, document.text, entities], ensure_ascii=True) + "\n").encode())
    return digest.hexdigest()


def to_record(document: Document) -> dict[str, object]:
    """Return `document` as the native JSON object: id, text, entities with their surface, meta if any."""
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
