"""Merging corpora: a corrected document replaces the original, and documents stay in their splits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spantune.core import ConfigError, DataError, Document, Entity, config, parse_config
from spantune.data import conflicting, count_predicted, formats, merge_corpora, read_splits


def document(id: str, text: str, *labels: str) -> Document:
    """Return a document whose first character has the given labels."""
    return Document(id, text, tuple(Entity(0, 1, label) for label in labels))


FIRST = [document("1", "alpha", "A"), document("2", "beta"), document("3", "gamma", "A")]


def test_a_later_annotation_replaces_the_earlier_of_the_same_text_in_its_place_and_under_its_id() -> None:
    later = [document("x", "beta", "B"), document("y", "alpha", "A"), document("z", "delta")]
    merged = merge_corpora([("a.jsonl", FIRST), ("b.jsonl", later)])
    assert merged.documents == (FIRST[0], document("2", "beta", "B"), FIRST[2], later[2])
    assert merged.places == (0, 1, 2, None)
    assert (merged.added, merged.replaced, merged.unchanged, merged.renamed) == (1, 1, 1, 0)


def test_an_id_of_another_text_is_made_unique() -> None:
    later = [document("1", "delta"), document("b:1", "epsilon")]
    merged = merge_corpora([("a.jsonl", FIRST), ("dir/b.jsonl", later)])
    assert [document.id for document in merged.documents] == ["1", "2", "3", "b:1", "b:b:1"]
    assert merged.renamed == 2


def test_several_annotations_of_a_text_stay_unless_a_later_file_has_the_text() -> None:
    doubled = [document("1", "alpha", "A"), document("2", "alpha", "B"), document("3", "beta")]
    merged = merge_corpora([("a", doubled), ("b", [document("9", "gamma")])])
    assert merged.documents[:3] == tuple(doubled)
    assert conflicting(doubled) == [doubled[0]]
    decided = merge_corpora([("a", doubled), ("b", [document("9", "alpha", "C")])])
    assert decided.documents == (document("1", "alpha", "C"), doubled[2])
    assert decided.left_out == 1 and "1 left out, since a later file has their text fewer times" in decided.described()
    more = merge_corpora([("a", FIRST), ("b", doubled)])
    assert more.documents[-1] == replaced_id("b:2", doubled[1])
    assert more.places == (0, 1, 2, 0)


def replaced_id(id: str, document: Document) -> Document:
    return Document(id, document.text, document.entities)


@given(st.lists(st.lists(st.tuples(st.sampled_from("123"), st.sampled_from("abcd"), st.booleans())), min_size=1))
def test_no_text_is_lost_ids_are_unique_and_the_last_corpus_is_right(rows: list[list[tuple[str, str, bool]]]) -> None:
    corpora = []
    for number, corpus in enumerate(rows):
        by_id = {id: document(id, text, *(["L"] if labelled else [])) for id, text, labelled in corpus}
        corpora.append((f"f{number}", list(by_id.values())))
    merged = merge_corpora(corpora)
    ids = [document.id for document in merged.documents]
    assert len(set(ids)) == len(ids)
    assert {document.text for document in merged.documents} == {d.text for _, corpus in corpora for d in corpus}
    last = [d for _, corpus in corpora for d in corpus]
    for text in {document.text for document in last}:
        final = next(corpus for _, corpus in reversed(corpora) if any(d.text == text for d in corpus))
        wanted = [d.entities for d in final if d.text == text]
        assert [d.entities for d in merged.documents if d.text == text] == wanted


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Twenty numbered sentences, and a file that corrects a held-out one and a training one and adds a new one."""
    first, later = tmp_path / "notes.jsonl", tmp_path / "corrected.json"
    formats.write(first, [document(str(number), f"n{number} sentence") for number in range(20)], "doccano")
    texts = ["n1 sentence", "n7 sentence", "new sentence"]
    corrected = [document(str(number), text, "N") for number, text in enumerate(texts)]
    formats.write(later, corrected, "label_studio")
    return str(first), str(later)


def test_what_is_held_out_stays_held_out_and_corrected(files: tuple[str, str]) -> None:
    before = read_splits(config.Data(train=files[0], holdout=0.2))
    after = read_splits(config.Data(train=files, holdout=0.2))
    assert [d.id for d in after.dev] == [d.id for d in before.dev] == ["0", "1", "2", "3"]
    assert after.dev[1].entities and not before.dev[1].entities
    assert [d.text for d in after.train] == [*(d.text for d in before.train), "new sentence"]
    assert {d.text for d in after.train}.isdisjoint(d.text for d in after.dev)
    assert after.train[-1].id == "corrected:2"
    assert before.merges == ()
    assert "21 documents; 1 added, 2 replaced by the later annotation of their text, 1 with a new id" in after.merges[0]
    assert after.merges[0] in after.notes


def test_dev_and_test_take_several_files_too(files: tuple[str, str], tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    formats.write(other, [document("o", "other")])
    splits = read_splits(config.Data(train=str(other), dev=files, test=(str(other), files[1])))
    assert (len(splits.dev), len(splits.test)) == (21, 4)


def test_a_list_of_one_file_is_that_file_and_what_names_none_is_refused() -> None:
    def parsed(value: object) -> config.Files:
        tree = {"model": {"source": "x"}, "task": {"labels": ["a"]}, "data": {"train": value}}
        return parse_config(tree).data.train

    assert parsed(["a"]) == "a"
    assert parsed(["a", "b"]) == ("a", "b")
    for value, problem in (([], "list of paths"), ({"a": 1}, "list of paths"), (["a", "a"], "named twice")):
        with pytest.raises(ConfigError, match=problem) as raised:
            parsed(value)
        assert str(raised.value).count("\n") == 0
    with pytest.raises(ConfigError, match="NUL"):
        parsed(["a", "b\0"])


def test_what_a_file_lacks_is_said_of_that_file(files: tuple[str, str]) -> None:
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        read_splits(config.Data(train=(files[0], "missing.jsonl")))


def test_predictions_that_nobody_corrected_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "native.jsonl"
    row = {"start": 0, "end": 1, "label": "A", "text": "a", "score": 0.5}
    path.write_text(json.dumps({"id": "1", "text": "a", "entities": [row]}) + "\n", encoding="utf-8")
    assert count_predicted(formats.read(path).documents) == 1
    assert count_predicted(FIRST) == 0


def test_a_limit_takes_what_later_files_add_or_replace_before_the_rest(files: tuple[str, str]) -> None:
    splits = read_splits(config.Data(train=files, holdout=0.2, limit=3))
    assert [document.text for document in splits.train] == ["n4 sentence", "n7 sentence", "new sentence"]
    alone = read_splits(config.Data(train=files[0], holdout=0.2, limit=3))
    assert [document.id for document in alone.train] == ["4", "5", "6"]


def test_a_stated_format_that_is_not_that_of_the_corrections_is_named(files: tuple[str, str]) -> None:
    with pytest.raises(DataError, match=r"data\.format=doccano holds for every file, and this one looks like label_"):
        read_splits(config.Data(train=files, format="doccano"))
