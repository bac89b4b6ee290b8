"""An Extraction is written as a record and read back unchanged, and the user's `meta` is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spantune.core import (
    Document,
    Entity,
    Extraction,
    Problem,
    ProblemKind,
    Status,
    as_extraction,
    from_document,
    to_document,
    to_prediction_record,
    to_record,
)
from spantune.data import formats, read_extractions

PROBLEM = Problem(ProblemKind.INVALID, "{x")
OWN = [
    {},
    {"status": "published", "k": 1},
    {"status": "length"},
    {"status": "stopped", "problems": []},
    {"status": "length", "problems": "none"},
    {"status": "length", "problems": [1]},
    {"status": "length", "problems": [{"kind": "typo", "found": "x"}]},
    {"status": "length", "problems": [{"kind": "invalid", "found": 3}]},
    {"status": ["length"], "problems": []},
    {"problems": [{"kind": "invalid", "found": "x"}]},
]


@given(
    st.sampled_from(Status),
    st.lists(st.builds(Problem, st.sampled_from(ProblemKind), st.text(max_size=3)), max_size=3),
    st.sampled_from(OWN),
)
def test_status_and_problems_come_back_and_what_is_written_again_is_the_same(
    status: Status, problems: list[Problem], own: dict[str, Any]
) -> None:
    extraction = Extraction(Document("d", "text", meta=own), status=status, problems=tuple(problems))
    written = to_document(extraction)
    read = from_document(Document(**json.loads(json.dumps(to_record(written) | {"entities": ()}))))
    assert (read.status, read.problems) == (status, tuple(problems))
    assert to_document(read) == written
    renamed = {
        f"own_{key}" if extraction.has_problem and key in ("status", "problems") else key: own[key] for key in own
    }
    assert read.document.meta == renamed


@pytest.mark.parametrize("own", OWN)
def test_a_status_of_the_users_stays_the_users(own: dict[str, Any]) -> None:
    document = Document("d", "text", meta=own)
    assert from_document(document) == Extraction(document) and to_document(Extraction(document)) == document


def test_names_that_are_taken_move_on() -> None:
    own = {"status": "a", "own_status": "b"}
    written = to_document(Extraction(Document("d", "", meta=own), status=Status.LENGTH, problems=(PROBLEM,)))
    assert written.meta == {
        "own_status": "b",
        "own_own_status": "a",
        "status": "length",
        "problems": [{"kind": "invalid", "found": "{x"}],
    }
    assert type(written.meta["status"]) is str and type(written.meta["problems"][0]["kind"]) is str


def test_a_predictions_file_holds_all_of_an_extraction(tmp_path: Path) -> None:
    entities = (Entity(0, 1, "a", 0.75), Entity(1, 3, "b", 0.5))
    extractions = [
        Extraction(Document("1", "abc", entities[:1], {"k": [1]}), "raw \u2028\n", below_threshold=entities[1:]),
        Extraction(Document("2", "abc", (), {"left_out": "mine"}), "{x", Status.LENGTH, (PROBLEM,)),
        Extraction(Document("3", "abc", (), {"left_out": [{"start": 0, "end": 9, "label": "a"}]})),
    ]
    path = tmp_path / "dev-1.jsonl"
    path.write_text("".join(json.dumps(to_prediction_record(item)) + "\n" for item in extractions), encoding="utf-8")
    read = read_extractions(path)
    assert read == extractions
    assert read[0].below_threshold[0].score == 0.5 and read[0].document.entities[0].score == 0.75
    corpus = formats.read(path)
    assert corpus.notes == {} and corpus.documents[0].meta["left_out"][0]["text"] == "bc"


def test_a_bare_document_is_a_prediction_without_problems() -> None:
    document = Document("d", "text", (Entity(0, 1, "a"),), {"status": "length"})
    assert as_extraction(document) == Extraction(document) and not as_extraction(document).has_problem
    assert as_extraction(extraction := Extraction(document, status=Status.FAILED)) is extraction
    assert [status for status in Status if status.is_failure] == ["failed", "refused", "unreadable"]
