"""Error analysis: the confusion matrix counts every entity once, and errors of an answer come from its Extraction."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spantune.core import DataError, Document, Entity, Extraction, Problem, ProblemKind, Status
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


def problems(*kinds: ProblemKind) -> tuple[Problem, ...]:
    return tuple(Problem(kind, str(kind)) for kind in kinds)


@pytest.mark.parametrize(
    ("status", "problems", "expected"),
    [
        (Status.STOPPED, (), {}),
        (Status.LENGTH, (), {"truncated by length": ()}),
        (Status.LENGTH, problems(ProblemKind.TRUNCATED), {"truncated by length": ("truncated",)}),
        (Status.REPEATED, problems(ProblemKind.REPEATED), {"never stopped": ("repeated",)}),
        (
            Status.REPEATED,
            problems(ProblemKind.REPEATED, ProblemKind.TRUNCATED),
            {"never stopped": ("repeated", "truncated")},
        ),
        (Status.STOPPED, problems(ProblemKind.REPEATED), {"mention not in text": ("repeated",)}),
        (Status.FAILED, problems(ProblemKind.GRAMMAR), {"invalid answer": ("grammar",)}),
        (
            Status.STOPPED,
            problems(ProblemKind.UNGROUNDED, ProblemKind.LABEL, ProblemKind.INVALID),
            {"invalid answer": ("label", "invalid"), "mention not in text": ("ungrounded",)},
        ),
        (Status.STOPPED, problems(ProblemKind.REPAIRED), {}),
    ],
)
def test_errors_of_an_answer_are_those_of_its_status_and_problems(
    status: Status, problems: tuple[Problem, ...], expected: dict[str, Any]
) -> None:
    assert answer_errors(Extraction(Document("d", "x"), "", status, problems)) == expected


def test_a_status_of_the_users_in_meta_is_no_error() -> None:
    meta = {"status": "length", "problems": [{"kind": "invalid", "found": "x"}]}
    judged = judge([Document("d", "x")], [Document("d", "x", (), meta)], [])
    assert judged.documents[0].answer == {} and judged.documents[0].wrong == 0


def test_answers_are_counted_by_document() -> None:
    gold = [Document("a", "x"), Document("b", "x")]
    ungrounded = problems(ProblemKind.UNGROUNDED, ProblemKind.UNGROUNDED)
    outcome = judge(gold, [Extraction(gold[0], problems=ungrounded), gold[1]], [])
    assert outcome.answers["mention not in text"] == 1 and [judged.wrong for judged in outcome.documents] == [1, 0]


def test_documents_that_do_not_pair_are_refused() -> None:
    with pytest.raises(DataError, match="gold only"):
        judge([Document("a", "x")], [], [])
