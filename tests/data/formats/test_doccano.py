"""doccano's JSONL: its layouts, relations, round trips, bad input and doccano's own examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.real import SHARED
from helpers.refusal import assert_unreadable
from helpers.strategies import annotated
from spantune.core import DataError, Document, Entity
from spantune.data import formats
from spantune.data.offsets import DOUBTFUL

FIXTURES = Path(__file__).parents[2] / "fixtures" / "doccano"
UNVERIFIED = "entity without a copy of its text in the file: offsets cannot be verified"
NO_ID = "id made from the line number"


def found(document: Document) -> list[tuple[str, str]]:
    return [(document.surface(entity), entity.label) for entity in document.entities]


@pytest.mark.parametrize("name", ["label", "labels", "data"])
def test_triples_are_recognised_and_read(name: str) -> None:
    corpus = formats.read(FIXTURES / f"{name}.jsonl")
    assert corpus.format == "doccano"
    assert [found(document) for document in corpus.documents] == [
        [("右肩", "bod"), ("右肩疼痛", "sym")],
        [],
        [("cafe\u0301", "place"), ("lunch", "food")],
    ]
    assert corpus.notes == {UNVERIFIED: 4, DOUBTFUL.message: 3} | ({} if name == "label" else {NO_ID: 3})


def test_ids_and_other_fields_are_kept_and_written_back(tmp_path: Path) -> None:
    documents = formats.read(FIXTURES / "label.jsonl").documents
    assert [document.id for document in documents] == ["1", "2", "3"]
    assert documents[2].meta == {"Comments": [], "ward": {"floor": 3}}
    assert formats.write(tmp_path / "back.jsonl", documents, "doccano") == {}
    rows = [json.loads(line) for line in (tmp_path / "back.jsonl").read_text("utf-8").splitlines()]
    assert rows[0] == {
        "id": 1,
        "text": "𠮷先生右肩疼痛，血钾低。",
        "label": [[3, 5, "bod"], [3, 7, "sym"]],
        "Comments": [],
    }
    assert formats.read(tmp_path / "back.jsonl").documents == documents


def test_relations_keep_the_ids_that_they_name(tmp_path: Path) -> None:
    source = FIXTURES / "relations.jsonl"
    corpus = formats.read(source)
    assert corpus.format == "doccano"
    assert [found(document) for document in corpus.documents] == [
        [],
        [("右肩", "bod"), ("右肩疼痛", "sym"), ("血钾", "ite")],
    ]
    assert formats.write(tmp_path / "back.jsonl", corpus.documents, "doccano") == {}
    back = (tmp_path / "back.jsonl").read_text("utf-8").splitlines()
    assert json.loads(back[1]) == json.loads(source.read_text("utf-8").splitlines()[1])
    assert formats.read(tmp_path / "back.jsonl").documents == corpus.documents


def test_relation_export_without_any_entity_is_not_taken_for_ours(tmp_path: Path) -> None:
    first = (FIXTURES / "relations.jsonl").read_text("utf-8").splitlines()[0]
    (tmp_path / "empty.jsonl").write_text(first, encoding="utf-8")
    assert formats.detect(tmp_path / "empty.jsonl") == "doccano"


def test_a_relation_whose_entity_is_gone_is_left_out_and_counted(tmp_path: Path) -> None:
    document = formats.read(FIXTURES / "relations.jsonl").documents[1]
    changed = document.with_entities([*document.entities[1:], Entity(0, 1, "new")])
    assert formats.write(tmp_path / "back.jsonl", [changed], "doccano") == {"relation left out: its entity is gone": 1}
    row = json.loads((tmp_path / "back.jsonl").read_text("utf-8"))
    assert row["relations"] == []
    assert {entity["label"]: entity["id"] for entity in row["entities"]} == {"new": 43, "sym": 41, "ite": 42}


def test_scores_have_no_place(tmp_path: Path) -> None:
    notes = formats.write(tmp_path / "x.jsonl", [Document("a", "肺炎", (Entity(0, 2, "dis", 0.5),))], "doccano")
    assert notes == {"score left out": 1}


def test_an_array_is_read_too(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (FIXTURES / "label.jsonl").read_text("utf-8").splitlines()]
    (tmp_path / "array.json").write_text(json.dumps(rows), encoding="utf-8")
    assert formats.read(tmp_path / "array.json").documents == formats.read(FIXTURES / "label.jsonl").documents


@settings(deadline=None)
@given(st.lists(annotated(), min_size=1, max_size=4), st.booleans())
def test_round_trip_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory, documents: list[Document], related: bool
) -> None:
    named = []
    for number, document in enumerate(documents):
        meta: dict[str, object] = {"data": document.text, "meta": {"n": number}}
        if related:
            rows = [
                {"start": e.start, "end": e.end, "label": e.label, "id": 7 * n} for n, e in enumerate(document.entities)
            ]
            relations = [{"from_id": row["id"], "to_id": row["id"], "type": "of"} for row in rows]
            meta |= {"relations": relations, **({"doccano": {"entities": rows}} if rows else {})}
        named.append(Document(str(number) if related else f"d/{number}", document.text, document.entities, meta))
    path = tmp_path_factory.mktemp("trip") / "back.jsonl"
    assert formats.write(path, named, "doccano") == {}
    assert formats.detect(path) == "doccano"
    assert formats.read(path).documents == tuple(named)


def test_annotations_of_old_exports_are_read_and_written_as_triples(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "text": "nothing", "annotations": [], "meta": {}, "annotation_approver": None},
        {
            "id": 2,
            "text": "lung pain",
            "annotations": [
                {"label": 7, "start_offset": 0, "end_offset": 4, "user": 1},
                {"label": "sign", "start_offset": 5, "end_offset": 9, "user": 1},
            ],
            "meta": {"ward": 3},
        },
    ]
    path = tmp_path / "old.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    corpus = formats.read(path)
    assert corpus.format == "doccano"
    assert list(map(found, corpus.documents)) == [[], [("lung", "7"), ("pain", "sign")]]
    assert corpus.documents[1].meta == {"meta": {"ward": 3}}
    assert corpus.notes == {
        "entity field 'user' not read": 2,
        "label is a number, taken as text": 1,
        "entity without a copy of its text in the file: offsets cannot be verified": 2,
    }
    formats.write(tmp_path / "back.jsonl", corpus.documents, "doccano")
    assert formats.read(tmp_path / "back.jsonl").documents == corpus.documents


LABEL = '{"text": "lung pain", "label": [%s]}'
ENTITY = '{"text": "lung pain", "entities": [{"id": 0, "label": "b", "start_offset": 0, "end_offset": 4%s}]%s}'
BAD = {
    "classification": (
        None,
        '{"text": "fine", "label": ["positive"]}',
        ["bad.jsonl:1", "label", '["positive"]', "text"],
    ),
    "classification as text": (
        "doccano",
        '{"text": "fine", "label": "positive"}',
        ["whole text", "sequence labelling"],
    ),
    "old classification": (
        None,
        '{"text": "fine", "annotations": [{"label": 1, "user": 1}]}',
        ["bad.jsonl:1, field annotations[0]", "whole text", "sequence labelling"],
    ),
    "label of an old export": (
        None,
        '{"text": "fine", "annotations": [{"label": null, "start_offset": 0, "end_offset": 1}]}',
        ["field annotations[0].label", "found null", "a string"],
    ),
    "second line a class": (
        None,
        LABEL % "" + '\n{"text": "a", "label": ["x"]}',
        ["bad.jsonl:2", "field label", "export"],
    ),
    "two places for spans": (None, ENTITY % ("", ', "label": []'), ["entities and label", "remove the others"]),
    "no text": (None, LABEL % "" + '\n{"label": [[0, 1, "P"]]}', ["bad.jsonl:2, field text", "missing", "label"]),
    "no spans": (
        None,
        LABEL % "" + '\n{"text": "a"}',
        ["bad.jsonl:2, field label", "missing", "[] for a text", "mend"],
    ),
    "null spans": ("doccano", '{"text": "a", "label": null}', ["field label", "found null", "[start, end, label]"]),
    "two in a triple": (None, LABEL % "[0, 4]", ["field label[0]", "found [0, 4]", "[start, end, label]"]),
    "an object for a triple": (None, LABEL % '[0, 4, "b"], {}', ["of no known format"]),
    "start is text": (None, LABEL % '["0", 4, "b"]', ["field label[0][0]", "found a string", "whole number"]),
    "label is a number": (None, LABEL % '[0, 4, "b"], [0, 4, 7]', ["field label[1][2]", "the number 7", "a string"]),
    "empty label": (None, LABEL % '[0, 4, ""]', ["field label[0][2]", "empty", "mend"]),
    "outside": (None, LABEL % '[5, 10, "b"]', ["field label[0]", "[5, 10)", "9 characters", "mend"]),
    "backwards": (None, LABEL % '[4, 0, "b"]', ["field label[0]", "[4, 0)", "half-open"]),
    "entity outside": (None, ENTITY.replace(": 4", ": 14") % ("", ""), ["entities[0].end_offset", "[0, 14)"]),
    "entity without end": (None, ENTITY.replace("end_", "End_") % ("", ""), ["entities[0].end_offset", "missing"]),
    "id is a list": (None, LABEL.replace("{", '{"id": [],') % "", ["field id", "found a list"]),
    "repeated id": (
        None,
        2 * (LABEL.replace("{", '{"id": 7,') % "" + "\n"),
        ["bad.jsonl:2", "'7' is repeated", "line 1"],
    ),
    "relations without ids": (
        None,
        ENTITY.replace('"id": 0, ', "") % ("", ', "relations": [{}]'),
        ["entities[0].id", "missing"],
    ),
    "not json": (None, LABEL % "" + "\n{'text': 1}", ["bad.jsonl:2", "not JSON at column 2", "double quotes"]),
}


@pytest.mark.parametrize(("format", "content", "fragments"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_by_name(format: str | None, content: str, fragments: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content, encoding="utf-8")
    assert_unreadable(path, format, fragments)


@pytest.mark.parametrize(
    ("meta", "fragments"),
    [
        ({"label": 1}, ["'d'", "meta key 'label'", "rename"]),
        ({"id": 1}, ["meta key 'id'"]),
        ({"relations": [{"from_id": [], "to_id": 0}]}, ["'d'", "from_id and to_id", "remove it"]),
        ({"relations": [{"from_id": 0, "to_id": 0}], "doccano": 3}, ["found 3", "meta['doccano']", "remove it"]),
        (
            {"relations": [{"from_id": 0, "to_id": 0}], "doccano": {"entities": [{}]}},
            ["found {}", "start, end, label, id"],
        ),
    ],
)
def test_meta_that_cannot_be_written_is_refused_and_leaves_nothing(
    meta: dict[str, object], fragments: list[str], tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        formats.write(tmp_path / "x.jsonl", [Document("c", "fine"), Document("d", "a", meta=meta)], "doccano")
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
@pytest.mark.parametrize(
    ("name", "surfaces"),
    [
        ("export", [["EU", "German"], ["Peter Blackburn"], ["Obama"]]),
        ("overlapping", [["e", "e"]]),
        ("relation", [["Google", "September 4, 1998", "Larry Page", "Sergey Brin"]]),
    ],
)
def test_its_own_examples_are_read_whole(name: str, surfaces: list[list[str]], tmp_path: Path) -> None:
    corpus = formats.read(SHARED / "doccano" / f"doccano_official_{name}.jsonl")
    assert corpus.format == "doccano"
    assert [[document.surface(entity) for entity in document.entities] for document in corpus.documents] == surfaces
    formats.write(tmp_path / "back.jsonl", corpus.documents, "doccano")
    assert formats.read(tmp_path / "back.jsonl").documents == corpus.documents


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
def test_its_own_broken_example_is_refused_at_the_line_without_text() -> None:
    with pytest.raises(DataError, match=r"label_triples\.jsonl:3, field text: the field is missing"):
        formats.read(SHARED / "doccano" / "doccano_official_label_triples.jsonl")
