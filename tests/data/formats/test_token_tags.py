"""Hugging Face data sets of tokens and tags: column names, numbered tags, Parquet, round trips and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.corpora import file_of, round_trip, spans
from helpers.refusal import assert_unreadable
from helpers.strategies import annotated
from spantune.core import ConfigError, DataError, Document, Entity
from spantune.data import Options, formats

WORDS = ["EU", "rejects", "German", "call", "."]
TAGS = ["B-ORG", "O", "B-MISC", "O", "O"]
FOUND = [("EU", 0, "ORG"), ("German", 11, "MISC")]


@pytest.mark.parametrize(("tokens", "tags"), [("tokens", "ner_tags"), ("words", "ner"), ("tokens", "tags")])
@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
def test_usual_names_of_columns_are_recognised(tokens: str, tags: str, name: str, tmp_path: Path) -> None:
    corpus = formats.read(file_of(tmp_path, name, [{"id": "0", tokens: WORDS, tags: TAGS, "pos_tags": [1, 2]}]))
    assert corpus.format == "token_tags"
    assert corpus.documents[0].text == "EU rejects German call ."
    assert spans(corpus.documents) == [FOUND]
    assert corpus.documents[0].meta == {"pos_tags": [1, 2]}
    assert corpus.notes == {"text joined from its tokens": 1}


def test_another_column_of_tags_can_be_named(tmp_path: Path) -> None:
    path = file_of(tmp_path, "t.jsonl", [{"tokens": ["a", "b"], "ner_tags": ["O", "O"], "fine": ["O", "S-x"]}])
    assert spans(formats.read(path, None, Options(column="fine")).documents) == [[("b", 2, "x")]]
    assert spans(formats.read(path, None, Options(column=2)).documents) == [[("b", 2, "x")]]
    with pytest.raises(DataError, match=r"no column 'coarse'; columns found: 'tokens', 'ner_tags', 'fine'.*--column"):
        formats.read(path, None, Options(column="coarse"))


def test_scheme_and_joiner_are_those_of_the_whole_file(tmp_path: Path) -> None:
    rows = [{"tokens": list("患者痛"), "ner_tags": ["O", "O", "I-sym"]}, {"tokens": list("咳"), "ner_tags": ["I-sym"]}]
    corpus = formats.read(file_of(tmp_path, "t.jsonl", rows))
    assert [document.text for document in corpus.documents] == ["患者痛", "咳"]
    assert spans(corpus.documents) == [[("痛", 2, "sym")], [("咳", 0, "sym")]]


def test_a_stated_text_is_kept_where_the_tokens_stand_in_it(tmp_path: Path) -> None:
    rows = [
        {
            "text": "EU  rejects\ta German call.",
            "tokens": ["EU", "German", "call", "."],
            "ner_tags": ["B-x", "O", "O", "O"],
        },
        {"text": "EU  rejects German call.", "tokens": WORDS, "ner_tags": TAGS},
    ]
    corpus = formats.read(file_of(tmp_path, "t.jsonl", rows))
    assert [document.text for document in corpus.documents] == ["EU German call .", "EU  rejects German call."]
    assert spans(corpus.documents)[1] == [("EU", 0, "ORG"), ("German", 12, "MISC")]
    assert corpus.notes["text joined from its tokens"] == 1


def test_tokens_that_we_would_cut_otherwise_are_written_back(tmp_path: Path) -> None:
    row = {"id": "0", "tokens": ["do", "n't", "U.S."], "ner_tags": ["O", "O", "B-LOC"]}
    corpus = formats.read(file_of(tmp_path, "t.jsonl", [row]))
    formats.write(tmp_path / "back.jsonl", corpus.documents, "token_tags")
    assert json.loads((tmp_path / "back.jsonl").read_text("utf-8")) == row


@settings(deadline=None, max_examples=40)
@given(st.lists(annotated(), min_size=1, max_size=3))
def test_what_is_written_is_read_back_or_counted(documents: list[Document]) -> None:
    documents = [Document(f"d{n}", d.text, d.entities) for n, d in enumerate(documents)]
    try:
        corpus, notes = round_trip(documents, "token_tags", "back.jsonl")
    except DataError as error:
        assert any(reason in str(error) for reason in ("white space", "overlap"))
        return
    same = [a.text == b.text for a, b in zip(corpus.documents, documents, strict=True)]
    assert notes.get("white space that reading does not restore", 0) == same.count(False)
    for back, document in zip(corpus.documents, documents, strict=True):
        assert [e.label for e in back.entities] == [e.label for e in document.entities]
        if back.text == document.text:
            assert back.entities == document.entities


def test_white_space_is_counted_as_the_whole_file_will_be_joined(tmp_path: Path) -> None:
    characters = Document("a", "患a,b", (Entity(0, 1, "x"),))
    assert formats.write(tmp_path / "a.jsonl", [characters], "token_tags") == {}
    assert formats.read(tmp_path / "a.jsonl").documents[0].text == "患a,b"
    notes = formats.write(tmp_path / "b.jsonl", [characters, Document("b", "word")], "token_tags")
    assert notes == {"white space that reading does not restore": 1}
    assert [document.text for document in formats.read(tmp_path / "b.jsonl").documents] == ["患a , b", "word"]


def test_overlaps_are_refused_or_flattened_and_parquet_is_not_written(tmp_path: Path) -> None:
    document = Document("d", "ab cd", (Entity(0, 5, "x"), Entity(3, 5, "y", 0.5)))
    with pytest.raises(DataError, match="overlap, which one row of tags cannot show"):
        formats.write(tmp_path / "t.jsonl", [document], "token_tags")
    notes = formats.write(tmp_path / "t.jsonl", [document], "token_tags", Options(nested="innermost", scheme="bioes"))
    assert json.loads((tmp_path / "t.jsonl").read_text("utf-8"))["ner_tags"] == ["O", "S-y"]
    assert notes == {"overlapping entity left out": 1, "score left out": 1}
    with pytest.raises(DataError, match=r"written as JSON lines; give a name that ends in \.jsonl"):
        formats.write(tmp_path / "t.parquet", [document], "token_tags")


@pytest.mark.parametrize(
    ("row", "fragments"),
    [
        ({"tokens": ["a"], "ner_tags": [3]}, ["field ner_tags[0]", "found 3", "ClassLabel", "to_parquet"]),
        ({"tokens": ["a"], "ner_tags": ["PER"]}, ["field ner_tags[0]", "found 'PER'", "B-dis"]),
        ({"tokens": ["a", "b"], "ner_tags": ["O"]}, ["field ner_tags", "found 2 and 1"]),
        ({"tokens": "a b", "ner_tags": ["O"]}, ["field ner_tags", "found 'a b' and 1"]),
        ({"tokens": [""], "ner_tags": ["B-x"]}, ["token 0 of tokens", "empty"]),
        ({"tokens": ["a", "b"], "ner_tags": ["O", "I-x"]}, ["I-x begins an entity after O"]),
    ],
)
def test_bad_rows_are_refused_by_place(row: object, fragments: list[str], tmp_path: Path) -> None:
    good = {"tokens": ["a", "b"], "ner_tags": ["B-x", "B-x"]}
    assert_unreadable(file_of(tmp_path, "bad.jsonl", [good, row]), None, ["bad.jsonl:2", *fragments])


def test_parquet_with_tokens_is_recognised_by_its_columns_without_the_library(tmp_path: Path) -> None:
    for columns, format in ((b"\x06tokens \x08ner_tags", "token_tags"), (b"\x04text \x08entities", "table")):
        (tmp_path / "t.parquet").write_bytes(b"PAR1" + columns + b"PAR1")
        assert formats.detect(tmp_path / "t.parquet") == format


@pytest.mark.parametrize("kind", ["Sequence", "List", "list"])
def test_parquet_names_its_classes_in_the_metadata_of_its_schema(kind: str, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow, of the extra `table`, is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    classes = {"names": ["O", "B-ORG", "I-ORG", "B-MISC"], "_type": "ClassLabel"}
    feature = [classes] if kind == "list" else {"feature": classes, "_type": kind}
    table = pyarrow.table({"id": [0], "tokens": [WORDS], "ner_tags": [[1, 0, 3, 0, 0]]})
    metadata = {b"huggingface": json.dumps({"info": {"features": {"ner_tags": feature}}}).encode()}
    parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "t.parquet")
    corpus = formats.read(tmp_path / "t.parquet")
    assert (corpus.format, spans(corpus.documents)) == ("token_tags", [FOUND])
    parquet.write_table(table, tmp_path / "bare.parquet")
    assert_unreadable(tmp_path / "bare.parquet", None, ["bare.parquet:1, field ner_tags[0]", "found 1", "ClassLabel"])
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-20])
    assert_unreadable(tmp_path / "cut.parquet", "token_tags", ["not readable as Parquet", "downloaded whole"])


def test_an_empty_token_outside_of_entities_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"tokens": ["Ada", "", "left"], "ner_tags": ["B-PER", "O", "O"]}\n', encoding="utf-8")
    corpus = formats.read(path)
    assert corpus.documents[0].text == "Ada left"
    assert corpus.notes["empty token with the tag O left out"] == 1
    path.write_text('{"tokens": ["Ada", "", "left"], "ner_tags": ["B-PER", "I-PER", "O"]}\n', encoding="utf-8")
    with pytest.raises(DataError, match="token 1 of tokens: the string is empty"):
        formats.read(path)


@pytest.mark.parametrize(
    "tags",
    [
        ["ORG", "O", "MISC", "O", "O"],
        ["b-ORG", "o", "b-MISC", "o", "o"],
        ["ORG-B", "O", "MISC-B", "O", "O"],
        ["ORG_B", "O", "MISC_B", "O", "O"],
    ],
)
def test_tags_of_other_spellings_are_read(tags: list[str], tmp_path: Path) -> None:
    corpus = formats.read(file_of(tmp_path, "t.jsonl", [{"id": "0", "tokens": WORDS, "ner_tags": tags}]))
    assert spans(corpus.documents) == [FOUND]


def test_neighbours_of_one_bare_type_are_one_entity_and_noted(tmp_path: Path) -> None:
    rows = [{"tokens": ["Ada", "Roe", "left", "x"], "ner_tags": ["PER", "PER", "O", "e-mail"]}]
    corpus = formats.read(file_of(tmp_path, "t.jsonl", rows))
    assert spans(corpus.documents) == [[("Ada Roe", 0, "PER"), ("x", 13, "e-mail")]]
    assert corpus.notes["tags without B and I: neighbours of one type read as one entity"] == 1


def test_tags_without_a_type_need_a_label(tmp_path: Path) -> None:
    path = file_of(tmp_path, "t.jsonl", [{"tokens": ["Ada", "Roe", "left"], "ner_tags": ["B", "I", "O"]}])
    with pytest.raises(ConfigError, match=r"'ner_tags' are B and I without a type.*--label NAME, data\.label"):
        formats.read(path)
    assert spans(formats.read(path, None, Options(label="per")).documents) == [[("Ada Roe", 0, "per")]]


@pytest.mark.parametrize("column", ["labels", "label", "tags"])
def test_a_tag_for_each_character_of_a_text_is_read(column: str, tmp_path: Path) -> None:
    rows = [
        {"text": "患者 ab。", column: ["B-x", "I-x", "O", "B-y", "I-y", "O"]},
        {"text": ["腹", "痛"], column: ["B-x", "I-x"]},
    ]
    corpus = formats.read(file_of(tmp_path, "t.jsonl", rows))
    assert [document.text for document in corpus.documents] == ["患者 ab。", "腹痛"]
    assert spans(corpus.documents) == [[("患者", 0, "x"), ("ab", 3, "y")], [("腹痛", 0, "x")]]
    formats.write(tmp_path / "out.jsonl", corpus.documents, "token_tags")
    assert spans(formats.read(tmp_path / "out.jsonl").documents) == spans(corpus.documents)


def test_another_number_of_tags_than_characters_is_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path, "t.jsonl", [{"text": "ab cd", "labels": ["B-x", "I-x"]}])
    with pytest.raises(DataError, match="found 2 tags, and the text has 5 characters; expected a tag for each"):
        formats.read(path)
