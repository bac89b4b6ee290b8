"""Entity and Document: half-open offsets in code points; values are checked once and cannot be changed."""

from __future__ import annotations

import dataclasses
import json

import pytest

from spantune.core import DataError, Document, Entity, to_record

TEXT = "👩🏽 e\u0301 右肩疼痛"  # the emoji and the é have two code points each


def test_offsets_count_code_points() -> None:
    document = Document("1", TEXT, (Entity(6, 8, "bod"), Entity(0, 2, "x"), Entity(3, 5, "y")))
    assert [document.surface(entity) for entity in document.entities] == ["👩🏽", "e\u0301", "右肩"]


def test_entities_are_sorted_by_start_end_and_label() -> None:
    entities = (Entity(6, 10, "sym"), Entity(6, 8, "dis"), Entity(6, 8, "bod"), Entity(0, 1, "x"))
    assert Document("1", TEXT, entities).entities == entities[::-1]


def test_nested_crossing_and_doubly_labelled_entities_are_legal() -> None:
    entities = (Entity(0, 3, "a"), Entity(0, 3, "b"), Entity(1, 2, "a"), Entity(2, 5, "a"), Entity(0, len(TEXT), "a"))
    assert len(Document("1", TEXT, entities).entities) == 5


@pytest.mark.parametrize(("start", "end"), [(2, 2), (3, 2), (-1, 2), (0, 11), (11, 12)])
def test_an_empty_or_outlying_entity_is_refused(start: int, end: int) -> None:
    with pytest.raises(DataError) as caught:
        Document("note-7", TEXT, (Entity(start, end, "sym"),))
    assert caught.value.field == "entities"
    for part in ("'note-7'", "'sym'", f"[{start}, {end})", "10 characters"):
        assert part in str(caught.value)


def test_with_entities_checks_again_and_keeps_the_rest() -> None:
    document = Document("1", TEXT, (Entity(0, 2, "x"),), {"ward": 3})
    changed = document.with_entities([Entity(6, 8, "bod")])
    assert (changed.id, changed.text, changed.meta, changed.entities) == (
        "1",
        TEXT,
        {"ward": 3},
        (Entity(6, 8, "bod"),),
    )
    assert document.entities == (Entity(0, 2, "x"),)
    with pytest.raises(DataError):
        document.with_entities([Entity(6, 80, "bod")])


def test_values_are_frozen_and_a_score_does_not_make_another_entity() -> None:
    entity = Entity(1, 2, "x", 0.5)
    assert entity == Entity(1, 2, "x") and hash(entity) == hash(Entity(1, 2, "x"))
    assert entity.shifted(10) == Entity(11, 12, "x") and entity.shifted(10).score == 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        entity.start = 0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Document("1", TEXT).text = "other"  # type: ignore[misc]


def test_to_record_is_the_native_object() -> None:
    document = Document("1", TEXT, (Entity(6, 8, "bod", 0.12345678), Entity(0, 2, "x")), {"ward": 3})
    record = to_record(document)
    assert record == {
        "id": "1",
        "text": TEXT,
        "entities": [
            {"start": 0, "end": 2, "label": "x", "text": "👩🏽"},
            {"start": 6, "end": 8, "label": "bod", "text": "右肩", "score": 0.123457},
        ],
        "meta": {"ward": 3},
    }
    assert list(record) == ["id", "text", "entities", "meta"]
    assert json.loads(json.dumps(record)) == record
    assert to_record(Document("2", "x")) == {"id": "2", "text": "x", "entities": []}
