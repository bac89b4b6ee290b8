"""Renaming labels: several to one, dropping, and what formats keep about their entities."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spantune.core import ConfigError, Document, Entity
from spantune.data import formats, parse_label_map, relabel


def test_names_are_read_from_words_even_where_a_label_has_the_sign() -> None:
    known = ["a", "b=c", "d"]
    assert parse_label_map(["a=x", "b=c=y", "d="], known) == {"a": "x", "b=c": "y", "d": None}
    for words, message in (
        (["A=x"], "did you mean 'a'"),
        (["a=x", "a=y"], "twice"),
        (["a"], "expected OLD=NEW"),
        (["=x"], "no entity has the label ''"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_label_map(words, known)


def test_two_labels_are_swapped_and_joined_ones_are_kept_once_with_the_higher_score() -> None:
    entities = (Entity(0, 1, "a", 0.2), Entity(0, 1, "b", 0.7), Entity(1, 2, "a"), Entity(1, 2, "c"))
    document = Document("1", "xy", entities)
    swapped = relabel([document], {"a": "b", "b": "a"}).documents[0].entities
    assert [(e.start, e.label, e.score) for e in swapped] == [
        (0, "a", 0.7), (0, "b", 0.2), (1, "b", None), (1, "c", None),
    ]  # fmt: skip
    joined = relabel([document], {"a": "z", "b": "z", "c": None})
    assert [(e.start, e.label, e.score) for e in joined.documents[0].entities] == [(0, "z", 0.7), (1, "z", None)]
    assert (joined.counts, joined.joined) == ({"a": 2, "b": 1, "c": 1}, 1)


def test_relations_of_a_renamed_entity_stay_and_those_of_a_dropped_one_go(tmp_path: Path) -> None:
    regions = [
        {"id": name, "type": "labels", "from_name": "ner", "to_name": "text",
         "value": {"start": start, "end": start + 1, "text": text, "labels": [label]}}
        for name, start, text, label in (("r1", 0, "x", "a"), ("r2", 1, "y", "b"))
    ]  # fmt: skip
    relation = {"type": "relation", "from_id": "r1", "to_id": "r2", "direction": "right"}
    annotation = {"id": 2, "result": [*regions, relation]}
    source = tmp_path / "in.json"
    source.write_text(json.dumps([{"id": 1, "data": {"text": "xy"}, "annotations": [annotation]}]), encoding="utf-8")
    documents = formats.read(source).documents
    out = tmp_path / "out.json"
    assert formats.write(out, relabel(documents, {"a": "A"}).documents, "label_studio") == {}
    results = json.loads(out.read_text(encoding="utf-8"))[0]["annotations"][0]["result"]
    assert [region["id"] for region in results[:2]] == ["r1", "r2"] and results[2] == relation
    assert results[0]["value"]["labels"] == ["A"] and results[0]["from_name"] == "ner"
    notes = formats.write(out, relabel(documents, {"a": None}).documents, "label_studio")
    assert notes == {"result left out: its entity is gone": 1}
