"""CCKS' clinical records: exclusive ends, meta, round trips and bad input."""

from __future__ import annotations

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
    "originalText": "，患者因“直肠癌”行根治术。",
    "entities": [
        {"label_type": "疾病和诊断", "overlap": 0, "start_pos": 5, "end_pos": 8},
        {"label_type": "手术", "overlap": 0, "start_pos": 10, "end_pos": 13},
    ],
}


@pytest.mark.parametrize("name", ["train.txt", "train.json"])
def test_ends_are_exclusive_and_other_fields_are_meta(name: str, tmp_path: Path) -> None:
    corpus = formats.read(file_of(tmp_path, name, [ROW, {"originalText": "无异常。", "entities": [], "ward": 3}]))
    assert corpus.format == "ccks" and [document.id for document in corpus.documents] == ["train-1", "train-2"]
    assert spans(corpus.documents) == [[("直肠癌", 5, "疾病和诊断"), ("根治术", 10, "手术")], []]
    assert [document.meta for document in corpus.documents] == [{}, {"ward": 3}]
    assert corpus.notes == {"entity without a copy of its text in the file: offsets cannot be verified": 2}


def test_an_overlap_that_says_something_is_counted(tmp_path: Path) -> None:
    entity = {"label_type": "x", "overlap": 1, "start_pos": 0, "end_pos": 1}
    corpus = formats.read(file_of(tmp_path, "a.jsonl", [{"originalText": "a", "entities": [entity]}]))
    assert corpus.notes["entity field 'overlap' not read"] == 1


@settings(deadline=None, max_examples=40)
@given(st.lists(annotated(), min_size=1, max_size=3))
def test_round_trip_keeps_all_but_ids_and_scores(documents: list[Document]) -> None:
    named = [Document(f"d{n}", d.text, d.entities, {"ward": n}) for n, d in enumerate(documents)]
    corpus, notes = round_trip(named, "ccks", "back.jsonl")
    expected = [(d.text, {(e.start, e.end, e.label) for e in d.entities}, d.meta) for d in named]
    back = [(d.text, {(e.start, e.end, e.label) for e in d.entities}, d.meta) for d in corpus.documents]
    assert back == expected and notes["id left out"] == len(documents)


def test_what_it_cannot_hold_is_counted_or_refused(tmp_path: Path) -> None:
    document = Document("d", "a b", (Entity(0, 1, "x", 0.5),))
    assert formats.write(tmp_path / "x.jsonl", [document], "ccks") == {"id left out": 1, "score left out": 1}
    with pytest.raises(DataError, match="meta key 'originalText'"):
        formats.write(tmp_path / "y.jsonl", [Document("d", "a", meta={"originalText": 1})], "ccks")


@pytest.mark.parametrize(
    ("entity", "fragments"),
    [
        ({"label_type": "x", "start_pos": 0}, ["entities[0].end_pos", "the field is missing"]),
        ({"label_type": "x", "start_pos": "0", "end_pos": 1}, ["entities[0].start_pos", "a string", "whole number"]),
        ({"label_type": "x", "start_pos": 0, "end_pos": 9}, ["entities[0].end_pos", "9"]),
        ({"label_type": "x", "start_pos": 1, "end_pos": 1}, ["entities[0].end_pos"]),
        ({"label_type": "", "start_pos": 0, "end_pos": 1}, ["entities[0].label_type", "empty"]),
    ],
)
def test_bad_rows_are_refused_by_place(entity: object, fragments: list[str], tmp_path: Path) -> None:
    path = file_of(tmp_path, "bad.jsonl", [ROW, {"originalText": "肠癌", "entities": [entity]}])
    assert_unreadable(path, None, ["bad.jsonl:2", *fragments])


def test_texts_without_entities_are_read_only_where_texts_are_welcome(tmp_path: Path) -> None:
    path = file_of(tmp_path, "test.jsonl", [{"originalText": "患者腹痛。"}])
    assert_unreadable(path, None, ["entities", "the field is missing"])
    (document,) = formats.read(path, None, Options(unannotated=True)).documents
    assert document.text == "患者腹痛。" and document.entities == ()
