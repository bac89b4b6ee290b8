"""Errors sorted: the matrix counts every entity once, and what ailed an answer is read from what extraction leaves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spantune.core import DataError, Document, Entity
from spantune.metrics import judge
from spantune.metrics.error_analysis import answer_errors

TEXT = "abcdefghij"
LABELS = ["a", "b", "c"]
entities = st.builds(
    lambda start, size, label: Entity(start, min(len(TEXT), start + size), label),
    st.integers(0, 9),
    st.integers(1, 5),
    st.sampled_from(LABELS),
)


def test_every_kind_has_its_cell() -> None:
    gold = Document("d", TEXT, (Entity(0, 1, "a"), Entity(2, 3, "a"), Entity(4, 6, "b"), Entity(8, 9, "c")))
    guessed = gold.with_entities([Entity(0, 1, "a"), Entity(2, 3, "b"), Entity(4, 7, "b"), Entity(9, 10, "a")])
    found = judge([gold], [guessed], LABELS)
    assert found.confusion.labels == ("a", "b", "c")
    assert found.confusion.counts == ((1, 1, 0, 0), (0, 1, 0, 0), (0, 0, 0, 1), (1, 0, 0, 0))
    assert found.confusion.boundary == (0, 1, 0)
    assert found.kinds == {"correct": 1, "type": 1, "boundary": 1, "boundary+type": 0, "missed": 1, "spurious": 1}
    assert found.documents[0].wrong == 4


@given(st.lists(entities), st.lists(entities))
def test_rows_are_the_gold_entities_and_columns_the_predicted_ones(true: list[Entity], guessed: list[Entity]) -> None:
    gold = Document("d", TEXT, tuple(set(true)))
    predicted = gold.with_entities(set(guessed))
    counts = judge([gold], [predicted], LABELS).confusion.counts
    for place, label in enumerate(LABELS):
        assert sum(counts[place]) == sum(entity.label == label for entity in gold.entities)
        assert sum(row[place] for row in counts) == sum(entity.label == label for entity in predicted.entities)
    assert counts[-1][-1] == 0


def test_a_label_outside_the_set_has_its_own_row() -> None:
    gold = Document("d", TEXT, (Entity(0, 1, "z"),))
    found = judge([gold], [gold.with_entities([])], ["a"])
    assert found.confusion.labels == ("a", "z") and found.confusion.counts == ((0, 0, 0), (0, 0, 1), (0, 0, 0))


@pytest.mark.parametrize(
    ("meta", "found"),
    [
        ({}, {}),
        ({"status": "stopped", "problems": []}, {}),
        ({"status": "length"}, {"truncated by length": ()}),
        ({"status": "length", "problems": [{"kind": "truncated", "found": "{x"}]}, {"truncated by length": ("{x",)}),
        ({"status": "repeated", "problems": [{"kind": "repeated", "found": "x"}]}, {"never stopped": ("x",)}),
        (
            {"status": "repeated", "problems": [{"kind": k, "found": k} for k in ("repeated", "truncated")]},
            {"never stopped": ("repeated", "truncated")},
        ),
        ({"status": "stopped", "problems": [{"kind": "repeated", "found": "x"}]}, {"mention not in text": ("x",)}),
        ({"status": "failed", "problems": [{"kind": "grammar", "found": "x"}]}, {"invalid answer": ("x",)}),
        (
            {"problems": [{"kind": k, "found": k} for k in ("ungrounded", "label", "invalid")]},
            {"invalid answer": ("label", "invalid"), "mention not in text": ("ungrounded",)},
        ),
        ({"status": "final", "problems": "many"}, {}),
        ({"status": ["length"], "problems": ["x", {"kind": "own"}, {"kind": []}, 3]}, {}),
    ],
)
def test_what_ailed_an_answer_is_read_from_meta(meta: dict[str, Any], found: dict[str, Any]) -> None:
    assert answer_errors(Document("d", "x", (), meta)) == found


def test_answers_are_counted_by_document() -> None:
    problems = [{"kind": "ungrounded", "found": "x"}, {"kind": "ungrounded", "found": "y"}]
    gold = [Document("a", "x"), Document("b", "x")]
    found = judge(gold, [Document("a", "x", (), {"problems": problems}), gold[1]], [])
    assert found.answers["mention not in text"] == 1 and [one.wrong for one in found.documents] == [1, 0]


def test_documents_that_do_not_pair_are_refused() -> None:
    with pytest.raises(DataError, match="gold only"):
        judge([Document("a", "x")], [], [])
