"""BioC JSON: passages, sentences, entities with several locations, collections, round trips and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.corpora import file_of, round_trip, spans
from helpers.refusal import assert_unreadable
from helpers.strategies import annotated
from spantune.core import Document, Entity
from spantune.data import Options, formats


def annotation(text: str | None, label: str, *locations: tuple[int, int], **infons: str) -> dict[str, object]:
    places = [{"offset": offset, "length": length} for offset, length in locations]
    stated = {} if text is None else {"text": text}
    return {"id": "T1", "infons": {"type": label, **infons}, **stated, "locations": places}


def passage(offset: int, text: str, *annotations: object) -> dict[str, object]:
    return {"infons": {}, "offset": offset, "text": text, "sentences": [], "annotations": annotations, "relations": []}


TITLE = passage(0, "Gout and flu.", annotation("Gout", "Disease", (0, 4), identifier="D006073"))
ABSTRACT = passage(14, "Hand and foot pain.", annotation("Hand pain", "Sign", (14, 4), (28, 4)))
DOCUMENT = {"id": "7", "infons": {}, "passages": [TITLE, ABSTRACT], "relations": [{"id": "R1"}]}
COLLECTION = {"source": "x", "date": "", "key": "", "infons": {}, "documents": [DOCUMENT]}


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(COLLECTION),
        json.dumps(COLLECTION, indent=1),
        json.dumps([{"bioctype": "BioCCollection", **COLLECTION}]),
        json.dumps({"PubTator3": [DOCUMENT]}),
        json.dumps({"_id": "7|None", **DOCUMENT}) + "\n",
    ],
    ids=["collection", "indented", "array", "pubtator3", "lines"],
)
def test_collections_and_lines_of_documents_are_recognised_and_read(content: str, tmp_path: Path) -> None:
    corpus = formats.read(file_of(tmp_path, "a.json", content))
    assert corpus.format == "bioc"
    assert [(d.id, d.text) for d in corpus.documents] == [("7", "Gout and flu. Hand and foot pain.")]
    assert spans(corpus.documents) == [[("Gout", 0, "Disease"), ("Hand and foot pain", 14, "Sign")]]
    assert corpus.notes == {"entity of several parts, read from the first to the last": 1, "relation not read": 1}


def test_offsets_count_from_the_passage_wherever_it_is(tmp_path: Path) -> None:
    late = passage(900, "Mild flu.", annotation("flu", "Disease", (905, 3)))
    corpus = formats.read(
        file_of(tmp_path, "a.json", json.dumps({"documents": [{"id": "1", "passages": [TITLE, late]}]}))
    )
    assert corpus.documents[0].text == "Gout and flu. Mild flu."
    assert spans(corpus.documents) == [[("Gout", 0, "Disease"), ("flu", 19, "Disease")]]
    assert corpus.notes == {"passages whose offsets do not follow each other: joined by a space": 1}


def test_sentences_hold_the_text_or_only_annotations(tmp_path: Path) -> None:
    sentences = [
        {"offset": 0, "text": "Gout.", "annotations": [annotation("Gout", "Disease", (0, 4))]},
        {"offset": 6, "text": "No flu.", "annotations": [annotation("flu", "Disease", (9, 3))]},
    ]
    bare = {"offset": 0, "sentences": sentences}
    full = {"offset": 0, "text": "Gout. No flu.", "sentences": sentences, "annotations": []}
    for given_passage in (bare, full):
        content = json.dumps({"documents": [{"id": "1", "passages": [given_passage]}]})
        corpus = formats.read(file_of(tmp_path, "a.json", content))
        assert corpus.documents[0].text == "Gout. No flu."
        assert spans(corpus.documents) == [[("Gout", 0, "Disease"), ("flu", 9, "Disease")]]


def test_another_infon_can_be_the_label(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a.json", json.dumps({"documents": [{"id": "1", "passages": [TITLE]}]}))
    assert spans(formats.read(path, None, Options(column="identifier")).documents) == [[("Gout", 0, "D006073")]]
    with pytest.raises(Exception, match=r"documents\[0\]\.passages\[0\]\.annotations\[0\]\.infons\.kind.*missing"):
        formats.read(path, None, Options(column="kind"))


@settings(deadline=None, max_examples=40)
@given(st.lists(annotated(), min_size=1, max_size=3))
def test_round_trip_keeps_texts_and_entities(documents: list[Document]) -> None:
    named = [Document(f"d{n}", d.text, d.entities) for n, d in enumerate(documents)]
    corpus, notes = round_trip(named, "bioc", "back.json")
    assert [(d.id, d.text, d.entities) for d in corpus.documents] == [(d.id, d.text, d.entities) for d in named]
    assert notes == {}


def test_identifiers_are_written_back_and_what_has_no_place_is_counted(tmp_path: Path) -> None:
    (document,) = formats.read(file_of(tmp_path, "a.json", json.dumps(COLLECTION))).documents
    changed = Document(
        "7", document.text, (document.entities[0], Entity(9, 12, "x", 0.5)), {**document.meta, "ward": 1}
    )
    notes = formats.write(tmp_path / "b.json", [changed], "bioc")
    rows = json.loads((tmp_path / "b.json").read_text("utf-8"))["documents"][0]["passages"][0]["annotations"]
    assert rows[0] == annotation("Gout", "Disease", (0, 4), identifier="D006073")
    assert notes == {"meta left out": 1, "score left out": 1}
    assert formats.write(tmp_path / "c.json", [document.with_entities(())], "bioc") == {
        "identifier left out: its entity is gone": 1
    }


@pytest.mark.parametrize(
    ("bad", "fragments"),
    [
        (annotation("Goat", "Disease", (0, 4)), ["annotations[0].locations", "'Goat'", "does not occur"]),
        (annotation("Gout", "Disease"), ["annotations[0].locations", "there is no location"]),
        (annotation("Gout flu", "Disease", (0, 4), (8, 3)), ["annotations[0].locations", "'Gout flu'"]),
        (annotation("Gout", "", (0, 4)), ["infons.type", "empty"]),
        ({"infons": {"type": "x"}, "locations": [{"offset": "0", "length": 4}]}, ["locations[0].offset", "a string"]),
    ],
)
def test_bad_annotations_are_refused_by_place(bad: object, fragments: list[str], tmp_path: Path) -> None:
    content = json.dumps({"documents": [{"id": "1", "passages": [passage(0, "Gout and flu.", bad)]}]})
    assert_unreadable(file_of(tmp_path, "a.json", content), "bioc", ["documents[0].passages[0]", *fragments])


def test_a_json_file_of_something_else_is_refused(tmp_path: Path) -> None:
    assert_unreadable(file_of(tmp_path, "a.json", '{"a": 1}'), "bioc", ["field collections[0].documents", "missing"])
