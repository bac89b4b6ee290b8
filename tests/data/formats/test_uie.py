"""UIE: the lines with one content make one document; prompts of relations, round trips and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.corpora import file_of, round_trip, spans
from helpers.refusal import assert_unreadable
from helpers.strategies import annotated
from spantune.core import DataError, Document, Entity
from spantune.data import formats


def line(content: str, prompt: str, *results: tuple[str, int, int]) -> dict[str, object]:
    rows = [{"text": text, "start": start, "end": end} for text, start, end in results]
    return {"content": content, "result_list": rows, "prompt": prompt}


def test_lines_of_one_content_are_one_document_wherever_they_stand(tmp_path: Path) -> None:
    lines = [
        line("甲炮是乙国的。", "武器", ("甲炮", 0, 2)),
        line("无。", "国家"),
        line("甲炮是乙国的。", "国家", ("乙国", 3, 5)),
        line("甲炮是乙国的。", "武器", ("甲炮", 0, 2)),
    ]
    corpus = formats.read(file_of(tmp_path, "t.txt", lines))
    assert corpus.format == "uie"
    assert spans(corpus.documents) == [[("甲炮", 0, "武器"), ("乙国", 3, "国家")], []]
    assert [document.id for document in corpus.documents] == ["t-1", "t-2"]
    assert corpus.notes == {"entity stated again: left out": 1}


def test_prompts_of_relations_are_left_out_and_counted_but_not_labels_with_the_same_word(tmp_path: Path) -> None:
    lines = [
        line("甲炮是乙国的。", "武器", ("甲炮", 0, 2)),
        line("甲炮是乙国的。", "甲炮的产国", ("乙国", 3, 5)),
        line("甲炮是乙国的。", "武器的名称", ("甲炮", 0, 2)),
    ]
    corpus = formats.read(file_of(tmp_path, "t.txt", lines))
    assert spans(corpus.documents) == [[("甲炮", 0, "武器"), ("甲炮", 0, "武器的名称")]]
    assert corpus.notes == {"prompt of a relation left out": 1}


def test_every_label_is_asked_of_every_document(tmp_path: Path) -> None:
    documents = [
        Document("a", "甲炮", (Entity(0, 2, "武器", 0.5),), {"ward": 1}),
        Document("b", "乙国", (Entity(0, 2, "国"),)),
    ]
    notes = formats.write(tmp_path / "t.txt", documents, "uie")
    rows = [json.loads(row) for row in (tmp_path / "t.txt").read_text("utf-8").splitlines()]
    assert [(row["content"], row["prompt"], len(row["result_list"])) for row in rows] == [
        ("甲炮", "武器", 1), ("甲炮", "国", 0), ("乙国", "武器", 0), ("乙国", "国", 1)
    ]  # fmt: skip
    assert notes == {"id left out": 2, "meta left out": 1, "score left out": 1}


@settings(deadline=None, max_examples=40)
@given(st.lists(annotated(), min_size=1, max_size=3, unique_by=lambda document: document.text))
def test_round_trip_keeps_texts_and_entities(documents: list[Document]) -> None:
    if not any(document.entities for document in documents):
        with pytest.raises(DataError, match="no document has an entity"):
            round_trip(documents, "uie", "back.txt")
        return
    corpus, _ = round_trip(documents, "uie", "back.txt")
    assert [(d.text, set(d.entities)) for d in corpus.documents] == [(d.text, set(d.entities)) for d in documents]


def test_equal_texts_are_counted_because_reading_joins_them() -> None:
    documents = [Document("a", "甲炮", (Entity(0, 2, "武器"),)), Document("b", "甲炮", (Entity(0, 1, "字"),))]
    corpus, notes = round_trip(documents, "uie", "back.txt")
    assert notes["text of an earlier document: reading joins the two"] == 1
    assert len(corpus.documents) == 1


@pytest.mark.parametrize(
    ("bad", "fragments"),
    [
        (line("甲炮", "武器", ("甲炮", 0, 1)), ["result_list[0].text", "ends 1 characters"]),
        (line("甲炮", "武器", ("乙", 0, 1)), ["does not occur in the text"]),
        (line("甲炮", "情感[正向]", ("正向", -4, -2)), ["result_list[0].text", "at -4"]),
        (line("甲炮", ""), ["field prompt", "empty"]),
        ({"content": "甲", "prompt": "武器", "result_list": None}, ["field result_list", "found null"]),
    ],
)
def test_bad_lines_are_refused_by_place(bad: object, fragments: list[str], tmp_path: Path) -> None:
    path = file_of(tmp_path, "bad.txt", [line("乙", "国"), bad])
    assert_unreadable(path, "uie", ["bad.txt:2", *fragments])
