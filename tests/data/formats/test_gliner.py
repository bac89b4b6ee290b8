"""GLiNER's training data, W2NER's and SpERT's: token numbers, joined texts, kept tokens, round trips and bad input."""

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
from spantune.data import Options, formats

ROW = {"tokenized_text": ["Ada", "Roe", "does", "n't", "sing", "."], "ner": [[0, 1, "Person"], [1, 1, "last NAME"]]}


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_token_numbers_are_inclusive_and_labels_stay_as_written(name: str, tmp_path: Path) -> None:
    corpus = formats.read(file_of(tmp_path, name, [ROW, {"tokenized_text": ["No", "."], "ner": []}]))
    assert corpus.format == "gliner"
    assert corpus.documents[0].text == "Ada Roe does n't sing ."
    assert spans(corpus.documents) == [[("Ada Roe", 0, "Person"), ("Roe", 4, "last NAME")], []]
    assert corpus.notes == {"id made from the document's number": 2, "text joined from its tokens": 2}


def test_tokens_that_we_would_cut_otherwise_are_kept_and_written_back(tmp_path: Path) -> None:
    corpus = formats.read(file_of(tmp_path, "train.json", [ROW]))
    assert corpus.documents[0].meta == {"tokens": ROW["tokenized_text"]}
    formats.write(tmp_path / "back.json", corpus.documents, "gliner")
    (back,) = json.loads((tmp_path / "back.json").read_text("utf-8"))
    assert back == {"id": "train-1", **ROW}


def test_tokens_of_one_chinese_character_are_joined_by_nothing_and_a_joiner_is_obeyed(tmp_path: Path) -> None:
    path = file_of(tmp_path, "t.json", [{"tokenized_text": list("患者CT"), "ner": [[2, 3, "ite"]]}])
    assert formats.read(path).documents[0].text == "患者CT"
    assert formats.read(path, None, Options(joiner=" ")).documents[0].text == "患 者 C T"


def test_layouts_of_w2ner_and_spert_are_read_too(tmp_path: Path) -> None:
    words = ["Ada", "Roe", "of", "Rome", "sings"]
    several = "entity of several parts, read from the first to the last"
    indexed = {"sentence": words, "ner": [{"index": [0, 1], "type": "per"}, {"index": [1, 3], "type": "x"}], "word": []}
    corpus = formats.read(file_of(tmp_path, "w2ner.json", [indexed]))
    assert corpus.format == "gliner" and corpus.notes[several] == 1
    assert spans(corpus.documents) == [[("Ada Roe", 0, "per"), ("Roe of Rome", 4, "x")]]
    ended = {"tokens": words, "entities": [{"type": "loc", "start": 3, "end": 4}], "relations": [], "orig_id": 5}
    corpus = formats.read(file_of(tmp_path, "spert.json", [ended]))
    assert corpus.format == "gliner" and several not in corpus.notes
    assert spans(corpus.documents) == [[("Rome", 11, "loc")]]
    assert corpus.documents[0].meta == {"relations": [], "orig_id": 5}
    with pytest.raises(DataError, match="no known format"):  # tags
        formats.detect(file_of(tmp_path, "tags.jsonl", [{"sentence": ["a"], "ner": ["B-x"]}]))
    chinese = {"sentence": list("患者腹痛"), "ner": [{"index": [2, 3], "type": "sym"}]}
    assert formats.read(file_of(tmp_path, "zh.jsonl", [chinese])).documents[0].text == "患者腹痛"


@settings(deadline=None, max_examples=40)
@given(st.lists(annotated(), min_size=1, max_size=3))
def test_what_is_written_is_read_back_or_counted(documents: list[Document]) -> None:
    documents = [Document(f"d{n}", d.text, d.entities) for n, d in enumerate(documents)]
    try:
        corpus, notes = round_trip(documents, "gliner", "back.json")
    except DataError as error:
        assert "white space" in str(error)
        return
    same = sum(a.text == b.text for a, b in zip(corpus.documents, documents, strict=True))
    assert notes.get("white space that reading does not restore", 0) == len(documents) - same
    for back, document in zip(corpus.documents, documents, strict=True):
        if back.text == document.text:
            assert back.entities == document.entities
        assert sorted(e.label for e in back.entities) == sorted(e.label for e in document.entities)


def test_scores_are_counted_and_white_space_at_an_edge_is_refused(tmp_path: Path) -> None:
    document = Document("d", "a b", (Entity(0, 1, "x", 0.5),))
    assert formats.write(tmp_path / "x.json", [document], "gliner") == {"score left out": 1}
    with pytest.raises(DataError, match=r"'d': x 'a ' \[0, 2\) begins or ends with white space"):
        formats.write(tmp_path / "y.json", [Document("d", "a b", (Entity(0, 2, "x"),))], "gliner")


@pytest.mark.parametrize(
    ("row", "fragments"),
    [
        ({"tokenized_text": ["a"], "ner": [[0, 1, "x"]]}, ["field ner[0]", "tokens 0 to 1 of 1", "inclusive"]),
        ({"tokenized_text": ["a"], "ner": [[-1, 0, "x"]]}, ["field ner[0]", "tokens -1 to 0"]),
        ({"tokenized_text": ["a"], "ner": [[0, "x"]]}, ["field ner[0]", "expected [first, last, label]"]),
        ({"tokenized_text": ["a", ""], "ner": []}, ["token 1 of tokenized_text", "empty"]),
        ({"tokenized_text": ["a", 3], "ner": []}, ["token 1 of tokenized_text", "the number 3"]),
        ({"sentence": ["a"], "ner": [{"index": [0, 0], "type": "x"}]}, ["field ner[0].index", "such as [3, 4]"]),
        ({"sentence": ["a"], "ner": [{"index": ["0"], "type": "x"}]}, ["field ner[0].index", "such as [3, 4]"]),
        ({"sentence": ["a"], "ner": [{"index": [1], "type": "x"}]}, ["field ner[0]", "tokens 1 to 1 of 1"]),
        ({"sentence": ["a"], "ner": [[0, 0, "x"]]}, ["field ner[0]", "found a list; expected an object"]),
        ({"tokens": ["a"], "entities": [{"start": 0, "end": 0, "type": "x"}]}, ["entities[0]", "tokens 0 to -1 of 1"]),
        ({"tokens": ["a"], "entities": [{"start": 0, "end": 1}]}, ["entities[0].type", "the field is missing"]),
    ],
)
def test_bad_rows_are_refused_by_place(row: object, fragments: list[str], tmp_path: Path) -> None:
    assert_unreadable(file_of(tmp_path, "bad.jsonl", [ROW, row]), None, ["bad.jsonl:2", *fragments])
