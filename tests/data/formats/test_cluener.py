"""CLUENER: inclusive end offsets, verified surfaces, meta, round trips and bad input."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.corpora import file_of, round_trip, spans
from helpers.refusal import assert_unreadable
from helpers.strategies import annotated
from spantune.core import DataError, Document, Entity
from spantune.data import Options, formats

ROW = {
    "text": "张三在北京和北京",
    "label": {"name": {"张三": [[0, 1]]}, "address": {"北京": [[3, 4], [6, 7]]}},
    "year": 3,
}


@pytest.mark.parametrize("name", ["dev.json.jsonl", "dev.json"])
def test_ends_are_inclusive_and_other_fields_are_meta(name: str, tmp_path: Path) -> None:
    corpus = formats.read(file_of(tmp_path, name, [ROW, {"id": 7, "text": "无", "label": {}}]))
    assert corpus.format == "cluener"
    assert spans(corpus.documents) == [[("张三", 0, "name"), ("北京", 3, "address"), ("北京", 6, "address")], []]
    assert [(d.id.rpartition("-")[2], d.meta) for d in corpus.documents] == [("1", {"year": 3}), ("7", {})]
    assert corpus.notes == {"id made from the document's number": 1, "id is a number, taken as text": 1}


@settings(deadline=None, max_examples=40)
@given(st.lists(annotated(), min_size=1, max_size=3))
def test_round_trip_keeps_everything(documents: list[Document]) -> None:
    named = [Document(f"d{n}", d.text, d.entities, {"ward": n}) for n, d in enumerate(documents)]
    expected = [(d.id, d.text, set(d.entities), d.meta) for d in named]
    corpus, notes = round_trip(named, "cluener", "back.json")
    assert [(d.id, d.text, set(d.entities), d.meta) for d in corpus.documents] == expected
    assert notes == {}


@pytest.mark.parametrize(
    ("labels", "fragments"),
    [
        ({"name": {"张三": [[0, 2]]}}, ["field label.name.张三[0]", "ends 3 characters", "has 2"]),
        ({"name": {"张三": [[1, 2]]}}, ["'三在' at 1", "occurs at 0"]),
        ({"name": {"张三": [0, 1]}}, ["label.name.张三[0]", "found 0", "expected [start, last]"]),
        ({"name": {"张三": [["0", 1]]}}, ["label.name.张三[0][0]", "a string", "whole number"]),
        ({"name": ["张三"]}, ["field label.name", "found a list", "an object"]),
        (None, ["field label", "found null"]),
    ],
)
def test_bad_rows_are_refused_by_place(labels: object, fragments: list[str], tmp_path: Path) -> None:
    path = file_of(tmp_path, "bad.jsonl", [ROW, {"text": "张三在北京", "label": labels}])
    assert_unreadable(path, "cluener", ["bad.jsonl:2", *fragments])


def test_the_texts_of_the_test_set_are_read_only_where_texts_are_welcome(tmp_path: Path) -> None:
    path = file_of(tmp_path, "test.json", [{"id": 0, "text": "张三"}])
    assert_unreadable(path, "cluener", ["field label", "missing"])
    (document,) = formats.items(path, "cluener", Counter(), Options(unannotated=True))
    assert not isinstance(document, DataError)
    assert (document.id, document.text, document.entities) == ("0", "张三", ())


def test_meta_under_a_name_of_the_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="meta key 'label'"):
        formats.write(tmp_path / "x", [Document("d", "a", (Entity(0, 1, "x"),), {"label": 1})], "cluener")
    assert list(tmp_path.iterdir()) == []
