"""CSV, TSV and Parquet: fixtures written by other programs, round trips, bad input and the real files."""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.corpora import CLINIC, FIXTURES
from helpers.real import SHARED
from helpers.refusal import assert_refused
from helpers.strategies import annotated
from spantune.core import ConfigError, DataError, Document, Entity
from spantune.data import Options, formats
from spantune.data.offsets import DOUBTFUL
from spantune.data.raw.text_files import BOM_NOTE, CRLF_NOTE

try:
    import pyarrow
    from pyarrow import parquet
except ModuleNotFoundError:
    pyarrow = None

needs_parquet = pytest.mark.skipif(pyarrow is None, reason="pyarrow, of the extra `table`, is not installed")
FILES = ["table/clinic.csv", "table/triples.tsv", pytest.param("table/structs.parquet", marks=needs_parquet)]
SUFFIXES = [".csv", ".tsv", pytest.param(".parquet", marks=needs_parquet)]
TAIL = [
    [("Chronic kidney disease", "dis"), ("kidney", "bod"), ("pain", "sym")],
    [("Sjo\u0308gren’s syndrome", "dis")],
]
HEAD = b"id,text,entities\n"


@pytest.mark.parametrize("name", FILES)
def test_fixture_is_recognised_and_read(name: str) -> None:
    corpus = formats.read(FIXTURES / name)
    assert corpus.format == "table"
    assert [[(d.surface(e), e.label) for e in d.entities] for d in corpus.documents] == CLINIC + TAIL
    assert corpus.documents[4].text == 'Chronic kidney disease,\nstage 3 😀; "no pain".'
    assert corpus.documents[5].text == "Sjo\u0308gren’s syndrome  改善 👩🏽"


def test_csv_keeps_ids_and_other_columns_and_notes_its_line_ends() -> None:
    corpus = formats.read(FIXTURES / "table/clinic.csv")
    assert corpus.documents[2].id == "clinic/2"
    assert [document.meta for document in corpus.documents] == [{}, {}, {"ward": "2"}, {}, {"ward": "7"}, {}]
    assert corpus.notes == {CRLF_NOTE: 7}  # the line break inside a cell is a line feed
    corpus = formats.read(FIXTURES / "table/triples.tsv")
    assert corpus.documents[2].id == "triples-3"
    assert corpus.notes == {
        "id made from the row number": 6,
        "entity without a copy of its text in the file: offsets cannot be verified": 10,
        DOUBTFUL.message: 1,
    }


@needs_parquet
def test_parquet_keeps_types_and_takes_a_number_for_an_id() -> None:
    corpus = formats.read(FIXTURES / "table/structs.parquet")
    assert [(d.id, d.meta) for d in corpus.documents[2:5]] == [("2", {"ward": 2}), ("3", {}), ("4", {"ward": 7})]
    assert corpus.notes == {"id is a number, taken as text": 6}


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(deadline=None, max_examples=60)
@given(documents=st.lists(st.tuples(annotated(), st.text(min_size=1, max_size=3) | st.none()), min_size=1, max_size=4))
def test_round_trip_is_the_identity(suffix: str, documents: list[tuple[Document, str | None]]) -> None:
    named = [
        Document(f"d/{n}", d.text, tuple(Entity(e.start, e.end, e.label, 0.5) for e in d.entities), _meta(value))
        for n, (d, value) in enumerate(documents)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"back{suffix}"
        assert formats.write(path, named, "table") == {}
        assert formats.detect(path) == "table"
        corpus = formats.read(path)
        assert [item.name for item in Path(folder).iterdir()] == [path.name]
    assert corpus.documents == tuple(named)
    assert all(e.score == 0.5 for document in corpus.documents for e in document.entities)
    assert set(corpus.notes) <= {CRLF_NOTE} and not corpus.notes.get(CRLF_NOTE)


def _meta(value: str | None) -> dict[str, Any]:
    """Return a meta whose strings UTF-8 can encode; None leaves the key out."""
    return {} if value is None or not value.isprintable() else {"ward": value, 'a "b",\n;': value}


@pytest.mark.parametrize(
    ("suffix", "back", "json_texts"),
    [
        (
            ".csv",
            {
                "n": "3",
                "x": "1.5",
                "b": "true",
                "mixed": "3",
                "list": '[1, {"肺": null}]',
                "big": str(1 << 70),
                "late": "a",
            },
            8,
        ),
        pytest.param(
            ".parquet",
            {"n": 3, "x": 1.5, "b": True, "mixed": "3", "list": '[1, {"肺": null}]', "big": str(1 << 70), "late": "a"},
            4,
            marks=needs_parquet,
        ),
    ],
)
def test_meta_that_a_column_cannot_hold_is_noted(
    suffix: str, back: dict[str, Any], json_texts: int, tmp_path: Path
) -> None:
    meta = {
        "n": 3,
        "x": 1.5,
        "b": True,
        "mixed": 3,
        "list": [1, {"肺": None}],
        "big": 1 << 70,
        "none": None,
        "late": "a",
    }
    documents = [Document("a", "肺", (), meta), Document("b", "肺", (), {"mixed": "three", "n": 4, "late": 5})]
    notes = formats.write(tmp_path / f"x{suffix}", documents, "table")
    assert notes == {"null meta value left out": 1, "meta value written as JSON text": json_texts}
    assert formats.read(tmp_path / f"x{suffix}").documents[0].meta == back


def test_csv_has_no_place_for_an_empty_string_in_meta(tmp_path: Path) -> None:
    notes = formats.write(tmp_path / "x.csv", [Document("a", "", (), {"ward": ""})], "table")
    assert notes == {"empty meta value left out": 1}
    assert formats.read(tmp_path / "x.csv").documents == (Document("a", ""),)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_column_of_entities_may_have_another_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    documents = (Document("a", "肺炎", (Entity(0, 2, "dis"),), {"entities": "kept"}),)
    options = Options(column="gold")
    formats.write(path, documents, "table", options)
    assert formats.read(path, "table", options).documents == documents
    assert formats.read(path, "table", Options(column=2)).documents == documents
    assert formats.read(path, "table", Options(column=-2)).documents == documents
    with pytest.raises(DataError, match=r"there is no column 'NER'; columns found: 'id', 'text', 'gold', 'entities'"):
        formats.read(path, "table", Options(column="NER"))
    with pytest.raises(DataError, match=r"there is no column 9;.*--column NAME"):
        formats.read(path, "table", Options(column=9))


def test_semicolons_a_byte_order_mark_blank_lines_and_crlf_in_cells_are_read(tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_bytes(b'\xef\xbb\xbf\r\n;text;entities\r\n0;"a\r\nb";"[[0, 1, ""x""]]"\r\n\r\n')
    corpus = formats.read(path)
    assert corpus.documents == (Document("excel-1", "a\r\nb", (Entity(0, 1, "x"),)),)
    assert corpus.notes == {
        BOM_NOTE: 1,
        CRLF_NOTE: 4,
        "column without a name not read": 1,
        "id made from the row number": 1,
        "entity without a copy of its text in the file: offsets cannot be verified": 1,
    }


def test_a_csv_of_other_columns_is_not_claimed_and_marks_in_a_table_do_not_mislead(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("text,label\na,b\n", encoding="utf-8")
    with pytest.raises(DataError, match="of no known format"):
        formats.detect(path)
    path.write_text('text,entities\n"{dis|lung}",[]\n', encoding="utf-8")
    assert formats.detect(path) == "table"


def test_a_broken_row_does_not_end_reading(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(HEAD + b'a,x,[]\nb,"y"z,[]\nc,y\nd,z,nothing\ne,w,[]\n')
    items = list(formats.items(path, None, Counter()))
    assert [item.line for item in items] == [2, 3, 4, 5, 6]
    assert [isinstance(item, DataError) for item in items] == [False, True, True, True, False]


def test_a_long_cell_is_read(tmp_path: Path) -> None:
    documents = (Document("a", "肺" * 200_000),)  # longer than the csv module's default limit
    formats.write(tmp_path / "x.csv", documents, "table")
    assert formats.read(tmp_path / "x.csv").documents == documents


def test_a_header_alone_holds_no_document(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(HEAD)
    with pytest.raises(DataError, match=r"x\.csv: no document was found.*check the path"):
        formats.read(tmp_path / "x.csv")


ROW = HEAD + b'ok,a,[]\nbad,lung pain,"%b"\n'
BAD_CSV = {
    "no text column": (b"id,body,entities\n", ["'text'", "columns found: 'id', 'body', 'entities'", "rename"]),
    "no entities column": (b"id,text,label\n", ["'entities'", "'id', 'text', 'label'", "--column NAME"]),
    "column twice": (b"text,entities,text\n", ["'text' is repeated", "rename one"]),
    "too few cells": (HEAD + b"a,x\n", ["bad.csv:2:", "found 2 cells", "expected 3 (id, text, entities)", "quote"]),
    "too many cells": (HEAD + b"a,x,y,[]\n", ["bad.csv:2:", "found 4 cells", "expected 3", "quote"]),
    "after a cell of two lines": (HEAD + b'a,"x\ny",[]\nb,y\n', ["bad.csv:4:", "found 2 cells"]),
    "quote not closed": (HEAD + b'a,"x,[]\n', ["bad.csv:2:", "unexpected end of data", "close it"]),
    "text after a quote": (HEAD + b'a,"x"y,[]\n', ["bad.csv:2:", "expected after '\"'", "double the quotes"]),
    "carriage returns alone": (HEAD + b"a,x,[]\rb,y,[]\r", ["bad.csv:2:", "new-line character", "quote a cell"]),
    "not json": (ROW % b"[{'start': 0}]", ["bad.csv:3, field entities", "not JSON", "double quotes"]),
    "json cut short": (ROW % b"[[0, 4", ["bad.csv:3, field entities", "not JSON", "mend it there"]),
    "empty cell": (ROW % b"", ["bad.csv:3, field entities", "the cell is empty", "[] for a text without"]),
    "an object": (ROW % b"{}", ["bad.csv:3, field entities", "found an object", "a list of objects"]),
    "a number": (ROW % b"3", ["bad.csv:3, field entities", "the number 3", "a list of objects"]),
    "a pair": (ROW % b"[[0, 4]]", ["bad.csv:3, field entities[0]", "a list of 2", "[start, end, label]"]),
    "a name": (ROW % b'[""x""]', ["bad.csv:3, field entities[0]", "found a string", "expected an object"]),
    "start is text": (ROW % b'[[""0"", 4, ""x""]]', ["entities[0].start", "found a string", "a whole number"]),
    "no label": (ROW % b'[{""start"": 0, ""end"": 4}]', ["entities[0].label", "missing", "start, end"]),
    "empty label": (ROW % b'[[0, 4, """"]]', ["entities[0].label", "is empty", "mend or remove"]),
    "key twice": (ROW % b'[{""start"": 0, ""start"": 1}]', ["field entities", "'start' is repeated"]),
    "score": (
        ROW % b'[{""start"": 0, ""end"": 4, ""label"": ""x"", ""score"": 2}]',
        ["bad.csv:3", "entities[0].score", "found 2", "from 0 to 1"],
    ),
    "outside": (ROW % b'[[5, 10, ""x""]]', ["bad.csv:3, field entities[0].end", "[5, 10)", "mend"]),
    "wrong text": (
        ROW % b'[{""start"": 1, ""end"": 5, ""label"": ""x"", ""text"": ""lung""}]',
        ["bad.csv:3, field entities[0].text", "'ung '", "it occurs at 0", "mend"],
    ),
    "id twice": (HEAD + b"a,x,[]\na,y,[]\n", ["bad.csv:3, field id", "'a' is repeated", "line 2"]),
    "not utf-8": (HEAD + "a,肺,[]\n".encode("gb18030"), ["bad.csv:2:", "not UTF-8", "gb18030 if the text is Chinese"]),
    "empty": (b"\n\n", ["is empty", "check the path"]),
}


@pytest.mark.parametrize(("content", "fragments"), BAD_CSV.values(), ids=BAD_CSV)
def test_bad_csv_is_refused_by_place_and_leaves_nothing(content: bytes, fragments: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    for target in ("out.csv", "out.tsv"):
        assert_refused(path, "table", fragments, target)


ENTITY = {"start": 0, "end": 4, "label": "x"}
BAD_PARQUET: dict[str, tuple[dict[str, list[Any]], list[str]]] = {
    "no text": ({"body": ["a"], "entities": ["[]"]}, ["'text'", "'body', 'entities'", "rename"]),
    "no entities": ({"text": ["a"], "tags": ["[]"]}, ["'entities'", "'text', 'tags'", "--column NAME"]),
    "text is a number": ({"text": [3], "entities": ["[]"]}, [":1, field text", "the number 3", "a string"]),
    "text is null": ({"text": ["a", None], "entities": ["[]", "[]"]}, [":2, field text", "found null", "a string"]),
    "text is bytes": ({"text": [b"a"], "entities": ["[]"]}, [":1, field text", "found null", "a string"]),
    "entities are null": ({"text": ["a"], "entities": [None]}, [":1, field entities", "is empty", "[] for"]),
    "entities are numbers": (
        {"text": ["a"], "entities": [3]},
        [":1, field entities", "the number 3", "list of objects"],
    ),
    "not json": ({"text": ["a"] * 2, "entities": ["[]", "[}"]}, [":2, field entities", "not JSON", "mend it"]),
    "start is a float": (
        {"text": ["lung"], "entities": [[ENTITY | {"start": 0.5}]]},
        [":1, field entities[0].start", "0.5", "whole"],
    ),
    "no end": (
        {"text": ["lung"] * 2, "entities": [[ENTITY], [ENTITY | {"end": None}]]},
        [":2, field entities[0].end", "missing", "expected a whole number"],
    ),
    "lists differ": (
        {"text": ["lung"], "entities": [{"start": [0], "end": [4, 5], "label": ["x"]}]},
        [":1, field entities", "differ in length", "one value an entity"],
    ),
    "outside": ({"text": ["pus"], "entities": [[ENTITY]]}, [":1, field entities[0].end", "[0, 4)", "mend"]),
    "id twice": ({"id": [1, 1], "text": ["a"] * 2, "entities": ["[]"] * 2}, [":2, field id", "repeated", "unique"]),
}


@needs_parquet
@pytest.mark.parametrize(("columns", "fragments"), BAD_PARQUET.values(), ids=BAD_PARQUET)
def test_bad_parquet_is_refused_by_row_and_leaves_nothing(
    columns: dict[str, list[Any]], fragments: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "bad.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    assert_refused(path, "table", fragments, "out.parquet")


@needs_parquet
def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    content = (FIXTURES / "table/structs.parquet").read_bytes()
    path = tmp_path / "bad.parquet"
    path.write_bytes(content[:-20])
    assert_refused(
        path, "table", ["bad.parquet: not readable as Parquet after row 0", "downloaded whole"], "out.parquet"
    )
    path.write_bytes(content.replace("家属".encode(), b"\xff" * 6))
    assert_refused(
        path, "table", ["bad.parquet: rows 1 to 6 hold a value that cannot be read", "write them anew"], "out.parquet"
    )


@pytest.mark.parametrize(
    ("name", "document", "message"),
    [
        ("x.csv", Document("d", "a", meta={"text": "b"}), "'d'.*meta key 'text'; rename it"),
        ("x.csv", Document("d", "a", meta={"": "b"}), "meta key ''; rename it"),
        ("x.csv", Document("d", "a\ud83d"), r"U\+D83D.*mend the document"),
        ("x.json", Document("d", "a"), r"expected one that ends in \.csv, \.tsv, \.tab, \.parquet: rename it"),
        ("no/x.csv", Document("d", "a"), "there is no folder"),
        pytest.param("x.parquet", Document("d", "a\ud83d"), r"U\+D83D.*mend the document", marks=needs_parquet),
        pytest.param("x.parquet", Document("d", "a", meta={"id": 1}), "meta key 'id'; rename", marks=needs_parquet),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_the_old_file(
    name: str, document: Document, message: str, tmp_path: Path
) -> None:
    (tmp_path / Path(name).name).write_text("old", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        formats.write(tmp_path / name, [Document("first", "fine"), document], "table")
    assert [(file.name, file.read_text("utf-8")) for file in tmp_path.iterdir()] == [(Path(name).name, "old")]


def test_without_pyarrow_parquet_asks_for_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"needs pyarrow, .*pip install .*\[table\]'"):
        formats.read(FIXTURES / "table/structs.parquet")
    with pytest.raises(ConfigError, match=r"pip install .*\[table\]'"):
        formats.write(tmp_path / "x.parquet", [Document("a", "b")], "table")
    assert list(tmp_path.iterdir()) == []


@needs_parquet
def test_arrow_values_that_json_lacks_are_noted(tmp_path: Path) -> None:
    from datetime import date

    row = {"text": "a", "entities": "[]", "day": date(2020, 1, 2), "nan": float("nan"), "raw": b"x", "in": {"a": 1}}
    parquet.write_table(pyarrow.Table.from_pylist([row, row | {"in": {"b": 2}}]), tmp_path / "x.parquet")
    corpus = formats.read(tmp_path / "x.parquet")
    assert [document.meta for document in corpus.documents] == [
        {"day": "2020-01-02", "in": {"a": 1}},
        {"day": "2020-01-02", "in": {"b": 2}},
    ]
    assert corpus.notes == {
        "id made from the row number": 2,
        "date taken as text": 2,
        "number that is none (NaN, infinity) left out": 2,
        "bytes left out": 2,
    }


@needs_parquet
def test_many_rows_are_numbered_through_the_batches(tmp_path: Path) -> None:
    columns = {"text": ["a"] * 2500, "entities": ["[]"] * 2499 + ["["]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet", row_group_size=700)
    with pytest.raises(DataError, match=r"x\.parquet:2500, field entities"):
        formats.read(tmp_path / "x.parquet")


def test_csv_is_what_other_readers_expect(tmp_path: Path) -> None:
    document = Document("a", 'say "肺",\r\n;', (Entity(5, 6, "bod", 0.25),))
    formats.write(tmp_path / "x.csv", [document], "table")
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["id"], row["text"]) == ("a", document.text)
    assert json.loads(row["entities"]) == [{"start": 5, "end": 6, "label": "bod", "text": "肺", "score": 0.25}]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_real_documents_come_back(suffix: str, tmp_path: Path) -> None:
    documents = formats.read(SHARED / "cmeee_v1/dev.jsonl").documents
    formats.write(tmp_path / f"dev{suffix}", documents, "table")
    corpus = formats.read(tmp_path / f"dev{suffix}")
    assert corpus.documents == documents
    assert (len(documents), sum(len(d.entities) for d in corpus.documents)) == (2500, 10263)


EXPORT = (
    "text,id,label,annotator,annotation_id,lead_time\n"
    '"Acme paid Bolt",7,"[{""start"": 0, ""end"": 4, ""text"": ""Acme"", ""labels"": [""ORG"", ""BUYER""]}]",1,20,3.5\n'
    "Nobody paid,8,,1,21,3.5\n"
)


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_label_studios_export_is_recognised_and_read(suffix: str, delimiter: str, tmp_path: Path) -> None:
    path = tmp_path / f"export{suffix}"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(csv.reader(EXPORT.splitlines()))
    for options in (Options(), Options(column="label"), Options(column=2)):
        corpus = formats.read(path, options=options)
        assert corpus.format == "table"
        assert [(d.id, d.meta["group"]) for d in corpus.documents] == [("7-20", "7"), ("8-21", "8")]
        assert corpus.documents[0].entities == (Entity(0, 4, "BUYER"), Entity(0, 4, "ORG"))
        assert corpus.notes["empty cell of regions read as no entities"] == 1
    path.write_text(path.read_text("utf-8").replace("Acme" + '""', "Acne" + '""'), encoding="utf-8")
    with pytest.raises(DataError, match=r"label\[0\]\.text: the entity's text is 'Acne'"):
        formats.read(path)


def test_regions_are_told_from_the_first_cell_that_has_any(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(
        'text,label\nNobody,\nAcme,"[{""start"": 0, ""end"": 4, ""labels"": [""ORG""]}]"\n', encoding="utf-8"
    )
    documents = formats.read(path, options=Options(column="label")).documents
    assert [len(document.entities) for document in documents] == [0, 1]
    path.write_text('text,label\nNobody,\nAcme,"[[0, 4, ""ORG""]]"\n', encoding="utf-8")
    with pytest.raises(DataError, match="the cell is empty"):
        formats.read(path, options=Options(column="label"))
    path.write_text('text,label\nAcme,"[{""start"": 0, ""end"": 4, ""labels"": []}]"\n', encoding="utf-8")
    with pytest.raises(DataError, match="expected a list of at least one label"):
        formats.read(path, options=Options(column="label"))


def test_a_column_that_is_named_helps_recognition(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('text,label\nAcme,"[[0, 4, ""ORG""]]"\n', encoding="utf-8")
    for column in ("label", 1, -1):
        assert formats.detect(path, Options(column=column)) == "table"
    with pytest.raises(DataError, match=r"no known format.*--column NAME or NUMBER"):
        formats.detect(path)
    for column in ("labels", 0, 5):
        with pytest.raises(DataError, match=f"column {column!r} holds no tags or entities"):
            formats.detect(path, Options(column=column))
