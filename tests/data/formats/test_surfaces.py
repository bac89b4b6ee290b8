"""Entities without offsets: their layouts, the order in which they are anchored, ambiguity, and bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.corpora import file_of, round_trip, spans
from helpers.refusal import assert_unreadable
from helpers.strategies import annotated
from spantune.core import DataError, Document, Entity
from spantune.data import formats
from spantune.data.raw.anchored import AMBIGUOUS, REPEATED

LAYOUTS = {
    "objects": [{"text": "Ada Roe", "label": "PER"}, {"text": "Rome", "label": "LOC"}],
    "other names": [{"entity": "PER", "word": "Ada Roe"}, {"name": "Rome", "type": "LOC"}],
    "tutorial": [{"entity_text": "Ada Roe", "entity_label": "PER"}, {"entity_text": "Rome", "entity_label": "LOC"}],
    "pairs": [["Ada Roe", "PER"], ["Rome", "LOC"]],
    "by label": {"LOC": ["Rome"], "PER": ["Ada Roe"]},
}


@pytest.mark.parametrize("entities", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
def test_every_layout_is_recognised_and_anchored(entities: object, name: str, tmp_path: Path) -> None:
    rows = [
        {"id": 1, "text": "Nobody.", "entities": []},
        {"id": 2, "text": "Is Ada Roe in Rome?", "entities": entities},
    ]
    corpus = formats.read(file_of(tmp_path, name, rows))
    assert corpus.format == "surfaces"
    assert spans(corpus.documents) == [[], [("Ada Roe", 3, "PER"), ("Rome", 14, "LOC")]]
    assert corpus.notes == {"id is a number, taken as text": 2}


TEXT = "pain, fever, pain, cough, pain"


@pytest.mark.parametrize(
    ("stated", "starts", "notes"),
    [
        (["pain"], [0], {AMBIGUOUS: 1}),
        (["pain", "pain", "pain"], [0, 13, 26], {}),
        (["fever", "pain", "cough"], [6, 13, 19], {}),
        (["fever", "pain"], [6, 13], {AMBIGUOUS: 1}),
        (["pain", "fever"], [0, 6], {}),
        (["cough", "fever", "pain"], [6, 13, 19], {AMBIGUOUS: 1}),
        (["cough", "pain", "pain", "fever"], [0, 6, 19, 26], {AMBIGUOUS: 2}),
        (["fever", "fever"], [6], {REPEATED: 1}),
    ],
)
def test_what_the_order_does_not_decide_is_counted(
    stated: list[str], starts: list[int], notes: dict[str, int], tmp_path: Path
) -> None:
    row = {"id": "a", "text": TEXT, "entities": [{"text": text, "label": "sym"} for text in stated]}
    corpus = formats.read(file_of(tmp_path, "t.jsonl", [row]))
    assert [start for _, start, _ in spans(corpus.documents)[0]] == starts
    assert corpus.notes == notes


@settings(deadline=None, max_examples=40)
@given(st.lists(annotated(), min_size=1, max_size=3))
def test_the_writer_counts_exactly_what_comes_back_elsewhere(documents: list[Document]) -> None:
    named = [Document(f"d{n}", d.text, d.entities, {"ward": n}) for n, d in enumerate(documents)]
    named = [Document(d.id, d.text, tuple(dict.fromkeys(d.entities)), d.meta) for d in named]
    corpus, notes = round_trip(named, "surfaces", "back.jsonl")
    lost = sum(notes.values())
    for back, document in zip(corpus.documents, named, strict=True):
        assert (back.id, back.text, back.meta) == (document.id, document.text, document.meta)
        assert sorted((document.surface(e), e.label) for e in document.entities) == sorted(
            (back.surface(e), e.label) for e in back.entities
        )
    moved = sum(b.entities != d.entities for b, d in zip(corpus.documents, named, strict=True))
    assert (moved == 0) == (lost == 0) and moved <= lost


def test_files_with_offsets_stay_with_their_formats(tmp_path: Path) -> None:
    native = {"id": "a", "text": "Rome", "entities": [{"text": "Rome", "label": "LOC", "start": 0, "end": 4}]}
    assert formats.detect(file_of(tmp_path, "a.jsonl", [native])) == "native"
    few = {"text": "Rome", "entities": [{"entity_text": "Rome", "entity_label": "LOC", "start_idx": 0, "end_idx": 3}]}
    assert formats.detect(file_of(tmp_path, "b.jsonl", [few])) == "few_shot"


def test_an_entity_that_says_a_place_is_not_anchored_by_guess(tmp_path: Path) -> None:
    for place in ({"pos": [0, 4]}, {"offset": 0}, {"begin": 0}):
        row = {"sentence": "Rome", "entities": [{"name": "Rome", "type": "LOC", **place}]}
        with pytest.raises(DataError, match="of no known format"):
            formats.detect(file_of(tmp_path, "a.jsonl", [row]))
    corpus = formats.read(file_of(tmp_path, "a.jsonl", [row]), "surfaces")
    assert spans(corpus.documents) == [[("Rome", 0, "LOC")]]
    assert corpus.notes["entity field 'begin' not read"] == 1
    named = {"sentence": "Rome", "entities": [{"name": "Rome", "type": "LOC", "id": 3}]}
    assert formats.detect(file_of(tmp_path, "b.jsonl", [named])) == "surfaces"


@pytest.mark.parametrize(
    ("entities", "fragments"),
    [
        (
            [{"text": "rome", "label": "LOC"}],
            ["field entities[0].text", "'rome' (LOC) does not occur", "copied exactly"],
        ),
        ([{"text": "Rome", "label": ""}], ["field entities[0].label", "empty"]),
        ([{"text": "", "label": "LOC"}], ["field entities[0].text", "empty"]),
        ([["Rome"]], ["field entities[0]", "expected [text, label]"]),
        ({"LOC": "Rome"}, ["field entities.LOC", "a list"]),
        ("Rome", ["field entities", "found a string"]),
        (None, ["field entities", "null"]),
    ],
)
def test_bad_entities_are_refused_by_place(entities: object, fragments: list[str], tmp_path: Path) -> None:
    path = file_of(tmp_path, "bad.jsonl", [{"text": "Is it Rome?", "entities": entities}])
    assert_unreadable(path, "surfaces", ["bad.jsonl:1", *fragments])


def test_two_labels_of_one_span_and_scores(tmp_path: Path) -> None:
    document = Document("d", "a", (Entity(0, 1, "x", 0.5), Entity(0, 1, "y")))
    corpus, notes = round_trip([document], "surfaces", "back.jsonl")
    assert corpus.documents[0].entities == document.entities and notes == {"score left out": 1}
