"""Folders saved by Hugging Face `datasets`: fixtures that it wrote, round trips, bad input and real files."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from itertools import groupby
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
from spantune.data.raw.document import RawDocument

try:
    import datasets
    from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
except ModuleNotFoundError:
    datasets = None

needs_datasets = pytest.mark.skipif(datasets is None, reason="datasets, of the extra `datasets`, is not installed")
TAGGED = FIXTURES / "datasets/tagged"
TAIL = [
    [("Chronic kidney disease", "dis"), ("kidney", "bod"), ("pain", "sym")],
    [("Sjo\u0308gren’s syndrome", "dis")],
]


@pytest.fixture(autouse=True)
def no_bars() -> None:
    if datasets is not None:
        datasets.disable_progress_bars()


def test_saved_folders_are_recognised_without_the_library(tmp_path: Path) -> None:
    for name in ("structs", "tagged", "splits"):
        assert formats.detect(FIXTURES / "datasets" / name) == "datasets"
    (tmp_path / "state.json").touch()
    with pytest.raises(DataError, match=r"a folder with state\.json, which is of no known format"):
        formats.detect(tmp_path)


@needs_datasets
def test_structs_are_read_with_the_names_of_their_class_labels() -> None:
    corpus = formats.read(FIXTURES / "datasets/structs")
    assert corpus.format == "datasets"
    assert [[(d.surface(e), e.label) for e in d.entities] for d in corpus.documents] == CLINIC + TAIL
    assert [(d.id, d.meta) for d in corpus.documents[2:5]] == [("2", {"ward": 2}), ("3", {}), ("4", {"ward": 7})]
    assert corpus.notes == {"id is a number, taken as text": 6}


@needs_datasets
@pytest.mark.parametrize("name", ["tagged", "splits/train"])
def test_tokens_are_joined_and_class_labels_decoded(name: str) -> None:
    corpus = formats.read(FIXTURES / "datasets" / name)
    assert corpus.documents == (
        Document("0", "肩周炎疼痛。", (Entity(0, 3, "dis"), Entity(3, 5, "sym"))),
        Document("1", "No pain in Crohn 's disease today", (Entity(3, 7, "sym"), Entity(11, 27, "dis"))),
        Document("2", "右肺CT 😀 e\u0301"),
    )
    assert corpus.notes == {"text joined from its tokens": 3}
    spaced = formats.read(FIXTURES / "datasets" / name, None, Options(joiner=" ")).documents[0]
    assert (spaced.text, spaced.entities[0]) == ("肩 周 炎 疼 痛 。", Entity(0, 5, "dis"))


@needs_datasets
@settings(deadline=None, max_examples=30)
@given(st.lists(annotated(), min_size=1, max_size=4))
def test_round_trip_is_the_identity(documents: list[Document]) -> None:
    named = [
        Document(
            f"d/{n}", d.text, tuple(Entity(e.start, e.end, e.label, 0.5) for e in d.entities), {"x": n, "y": d.text}
        )
        for n, d in enumerate(documents)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "back"
        assert formats.write(path, named, "datasets") == {}
        assert formats.detect(path) == "datasets"
        corpus = formats.read(path)
        assert [item.name for item in Path(folder).iterdir()] == ["back"]
    assert corpus.documents == tuple(named)
    assert all(e.score == 0.5 for document in corpus.documents for e in document.entities)
    assert corpus.notes == {}


@needs_datasets
def test_what_is_written_is_what_the_library_loads(tmp_path: Path) -> None:
    document = Document("a", "肺炎", (Entity(0, 1, "bod"), Entity(0, 2, "dis", 0.25)), {"ward": 3, "list": [1]})
    notes = formats.write(tmp_path / "x", [document, Document("b", "")], "datasets")
    assert notes == {"meta value written as JSON text": 1}
    table = datasets.load_from_disk(str(tmp_path / "x"))
    assert list(table) == [
        {
            "id": "a",
            "text": "肺炎",
            "entities": [
                {"start": 0, "end": 1, "label": "bod", "text": "肺", "score": None},
                {"start": 0, "end": 2, "label": "dis", "text": "肺炎", "score": 0.25},
            ],
            "ward": 3,
            "list": "[1]",
        },
        {"id": "b", "text": "", "entities": [], "ward": None, "list": None},
    ]


@needs_datasets
@pytest.mark.parametrize(
    "rows",
    [
        ["B-x", "I-x", "O", "B-y", "B-y"],
        ["I-x", "I-x", "O", "I-y", "B-y"],  # IOB1
        ["B-x", "E-x", "O", "S-y", "S-y"],
        ["B-x", "L-x", "O", "U-y", "U-y"],
    ],
)
def test_schemes_are_told_from_the_whole_table(rows: list[str], tmp_path: Path) -> None:
    Dataset.from_dict({"tokens": [list("abcde")], "ner_tags": [rows]}).save_to_disk(tmp_path / "x")
    (document,) = formats.read(tmp_path / "x").documents
    assert document.entities == (Entity(0, 3, "x"), Entity(6, 7, "y"), Entity(8, 9, "y"))


@needs_datasets
def test_a_table_of_characters_is_joined_by_nothing(tmp_path: Path) -> None:
    Dataset.from_dict({"tokens": [list("mg12片")], "ner_tags": [["O"] * 5]}).save_to_disk(tmp_path / "x")
    assert formats.read(tmp_path / "x").documents[0].text == "mg12片"


@needs_datasets
def test_a_broken_transition_is_refused_and_carried_for_mending(tmp_path: Path) -> None:
    rows = [["B-x", "O"], ["O", "I-x"]]
    Dataset.from_dict({"tokens": [["a", "b"]] * 2, "ner_tags": rows}).save_to_disk(tmp_path / "x")
    with pytest.raises(
        DataError, match=r"x:2, field ner_tags\[1\]: I-x begins an entity after O.*data check FILE --fix"
    ):
        formats.read(tmp_path / "x")
    item = list(formats.items(tmp_path / "x", None, Counter()))[1]
    assert isinstance(item, RawDocument)
    assert [(e.start, e.end, e.label, e.defect and e.defect.rule) for e in item.entities] == [
        (2, 3, "x", "broken-transition")
    ]


@needs_datasets
def test_a_column_names_the_shape_and_json_is_read(tmp_path: Path) -> None:
    columns = {"text": ["ab"], "gold": ['[[0, 1, "x"]]'], "tokens": [["a", "b"]], "tags": [["O", "B-y"]]}
    Dataset.from_dict(columns).save_to_disk(tmp_path / "x")
    as_text = formats.read(tmp_path / "x", None, Options(column="gold")).documents[0]
    assert (as_text.text, as_text.entities) == ("ab", (Entity(0, 1, "x"),))
    for column in ("tags", -1):
        as_tokens = formats.read(tmp_path / "x", None, Options(column=column)).documents[0]
        assert (as_tokens.text, as_tokens.entities) == ("a b", (Entity(2, 3, "y"),))
        assert as_tokens.meta == {"text": "ab", "gold": '[[0, 1, "x"]]'}


ENTITY = {"start": 0, "end": 4, "label": "x"}


def _texts(entities: Any, text: Any = "lung") -> dict[str, list[Any]]:
    """Return two rows, of which the second has these values."""
    good: Any = "[]" if isinstance(entities, str) else []
    return {"text": ["ok", text], "entities": [good, entities]}


def _tagged(tokens: Any, tags: Any) -> dict[str, list[Any]]:
    return {"tokens": [["ok"], tokens], "ner_tags": [["O"], tags]}


BAD: dict[str, tuple[dict[str, list[Any]], list[str]]] = {
    "no text": ({"body": ["a"], "entities": ["[]"]}, ["bad: ", "'text'", "'body', 'entities'", "rename"]),
    "no entities": ({"text": ["a"], "label": ["x"]}, ["bad: ", "'entities'", "'text', 'label'", "--column NAME"]),
    "no tags": ({"tokens": [["a"]], "pos": [["N"]]}, ["'ner_tags' beside tokens", "'tokens', 'pos'", "--column NAME"]),
    "text is null": (_texts("[]", None), ["bad:2, field text", "found null", "expected a string"]),
    "entities are null": (_texts(None), ["bad:2, field entities", "the cell is empty", "[] for a text without"]),
    "not json": (_texts("[[0, 1"), ["bad:2, field entities", "not JSON", "mend it there"]),
    "a pair": (_texts("[[0, 1]]"), ["bad:2, field entities[0]", "a list of 2", "[start, end, label]"]),
    "no end": (_texts([ENTITY | {"end": None}]), ["bad:2, field entities[0].end", "missing", "a whole number"]),
    "label is a number": (_texts([ENTITY | {"label": 3}]), ["bad:2, field entities[0].label", "number 3", "a string"]),
    "outside": (_texts([ENTITY], "pus"), ["bad:2, field entities[0].end", "[0, 4)", "3 characters", "mend"]),
    "wrong text": (_texts([ENTITY | {"text": "pus!"}]), ["entities[0].text", "'pus!'", "holds 'lung'", "mend"]),
    "id twice": (_texts("[]") | {"id": ["a", "a"]}, ["bad:2, field id", "'a' is repeated", "make ids unique"]),
    "fewer tags": (_tagged(["a", "b"], ["O"]), ["bad:2, field ner_tags", "found 2 and 1", "mend the row"]),
    "tokens are null": (_tagged(None, ["O"]), ["bad:2, field ner_tags", "found None and 1", "mend the row"]),
    "empty token": (_tagged(["a", ""], ["O", "B-x"]), ["bad:2, field token 1 of tokens", "is empty", "mend or remove"]),
    "no tag": (_tagged(["a"], ["person"]), ["bad:2, field ner_tags[0]", "'person'", "B-dis", "map the tags"]),
    "tags are text": (
        {"tokens": [["a"]], "ner_tags": ["O"]},
        ["bad: ", "no column of tags 'ner_tags'", "'tokens', 'ner_tags'", "--column NAME"],
    ),
    "null tag": (_tagged(["a"], [None]), ["bad:2, field ner_tags[0]", "None", "a string", "map the tags"]),
    "numbers without names": (
        {"tokens": [["a"]], "ner_tags": [[3]]},
        ["bad:1, field ner_tags[0]", "found 3", "expected a string", "map the tags"],
    ),
}


@needs_datasets
@pytest.mark.parametrize(("columns", "fragments"), BAD.values(), ids=BAD)
def test_bad_rows_are_refused_by_place_and_leave_nothing(
    columns: dict[str, list[Any]], fragments: list[str], tmp_path: Path
) -> None:
    Dataset.from_dict(columns).save_to_disk(tmp_path / "bad")
    assert_refused(tmp_path / "bad", "datasets", fragments, "out")


@needs_datasets
def test_a_class_label_without_name_is_refused(tmp_path: Path) -> None:
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O", "B-x"]))})
    Dataset.from_dict({"tokens": [["a"]], "ner_tags": [[-1]]}, features=features).save_to_disk(tmp_path / "bad")
    fragments = ["bad:1, field ner_tags[0]", "found -1", "a number below 2", "map the tags"]
    assert_refused(tmp_path / "bad", "datasets", fragments, "out")


@needs_datasets
def test_splits_are_listed_and_one_is_asked_for(tmp_path: Path) -> None:
    path = FIXTURES / "datasets/splits"
    with pytest.raises(DataError, match=r"holds splits: train, dev; expected one of them: name .*splits/train"):
        formats.read(path)
    DatasetDict({}).save_to_disk(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds splits: none"):
        formats.read(tmp_path / "none")
    (tmp_path / "none/dataset_dict.json").write_text("{", encoding="utf-8")
    (tmp_path / "none/test").mkdir()
    with pytest.raises(DataError, match=r"holds splits: test; .*none/test"):
        formats.read(tmp_path / "none")


DAMAGE = {
    "no rows file": ("data-00000-of-00001.arrow", None, "not readable as a saved dataset"),
    "rows cut short": ("data-00000-of-00001.arrow", 300, "not readable as a saved dataset"),
    "rows of another kind": ("data-00000-of-00001.arrow", b"PAR1", "not readable as a saved dataset"),
    "state is not json": ("state.json", b"{", "not readable as a saved dataset"),
    "state is empty": ("state.json", b"{}", "not readable as a saved dataset"),
    "no state": ("state.json", None, r"there is no state\.json; expected what save_to_disk makes: check the path"),
    "no information": ("dataset_info.json", None, r"there is no dataset_info\.json"),
    "features of another table": ("dataset_info.json", b'{"features": {"a": {"_type": "No"}}}', "not readable as a"),
}


@needs_datasets
@pytest.mark.parametrize(("name", "content", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_folder_is_refused(name: str, content: bytes | int | None, message: str, tmp_path: Path) -> None:
    path = shutil.copytree(TAGGED, tmp_path / "bad")
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes((path / name).read_bytes()[:content] if isinstance(content, int) else content)
    with pytest.raises(DataError, match=rf"bad: .*{message}"):
        formats.read(path, "datasets")


@needs_datasets
def test_a_file_or_nothing_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for name in ("file", "absent"):
        with pytest.raises(DataError, match=rf"{name}: no folder that `datasets` saved.*check the path"):
            formats.read(tmp_path / name, "datasets")


@needs_datasets
def test_what_cannot_be_written_leaves_no_folder(tmp_path: Path) -> None:
    good = Document("a", "b")
    for document, message in (
        (Document("d", "a", meta={"id": "b"}), "'d'.*meta key 'id'; rename it"),
        (Document("d", "a\ud83d"), r"U\+D83D.*mend the document"),
    ):
        with pytest.raises(DataError, match=message):
            formats.write(tmp_path / "x", [good, document], "datasets")
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="there is no folder"):
        formats.write(tmp_path / "no/x", [good], "datasets")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/note.txt").write_text("old", encoding="utf-8")
    with pytest.raises(DataError, match="exists and is not empty"):
        formats.write(tmp_path / "taken", [good], "datasets")
    assert [entry.name for entry in tmp_path.rglob("*")] == ["taken", "note.txt"]


def test_without_the_library_the_extra_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"needs \w+, .*pip install .*\[datasets\]'"):
        formats.read(TAGGED)
    with pytest.raises(ConfigError, match=r"pip install .*\[datasets\]'"):
        formats.write(tmp_path / "x", [Document("a", "b")], "datasets")
    assert list(tmp_path.iterdir()) == []


@needs_datasets
def test_progress_bars_are_left_as_they_were(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    datasets.enable_progress_bars()
    formats.write(tmp_path / "x", [Document("a", "b")], "datasets")
    formats.read(tmp_path / "x")
    assert not datasets.are_progress_bars_disabled()
    assert capfd.readouterr().err == ""


@needs_datasets
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
def test_real_documents_come_back(tmp_path: Path) -> None:
    documents = formats.read(SHARED / "cmeee_v1/dev.jsonl").documents
    formats.write(tmp_path / "dev", documents, "datasets")
    corpus = formats.read(tmp_path / "dev")
    assert corpus.documents == documents
    assert (len(documents), sum(len(d.entities) for d in corpus.documents)) == (2500, 10263)


@needs_datasets
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
def test_real_tags_are_decoded(tmp_path: Path) -> None:
    """WNUT-17's tokens and tags as `datasets` would hold them; there are as many entities as B- tags."""
    file = next((SHARED / "wnut17").glob("*train*"))
    lines = file.read_text("utf-8").splitlines()
    blocks = [list(block) for filled, block in groupby(lines, lambda line: bool(line.strip())) if filled]
    pairs = [[line.split("\t") for line in block] for block in blocks]
    tags = [[pair[-1] for pair in rows] for rows in pairs]
    Dataset.from_dict({"tokens": [[pair[0] for pair in rows] for rows in pairs], "ner_tags": tags}).save_to_disk(
        tmp_path / "wnut"
    )
    corpus = formats.read(tmp_path / "wnut")
    assert len(corpus.documents) == len(pairs) == 3394
    entities = sum(len(document.entities) for document in corpus.documents)
    assert entities == sum(tag.startswith("B-") for row in tags for tag in row)
