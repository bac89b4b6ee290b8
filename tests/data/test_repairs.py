"""`data check --fix`: what is repaired, what is left out, the log of changes, and that no input is changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.real import SHARED
from helpers.strategies import annotated
from spantune.core import ConfigError, DataError, Document, Entity
from spantune.data import formats, read_source, repair_all
from spantune.data.checks import Source
from spantune.data.raw.document import Defect, RawDocument, RawEntity
from spantune.data.repairs import repair
from spantune.data.rules import Rule

Command = Callable[..., Any]
HEAD = {"start": 0, "end": 2, "label": "sym", "text": "头痛"}


def write(path: Path, *records: object) -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    path.write_bytes(("\n".join(lines) + "\n").encode())
    return path


def native(text: str, *rows: tuple[Any, ...]) -> dict[str, Any]:
    names = ("start", "end", "label", "text")
    return {"id": text, "text": text, "entities": [dict(zip(names, row, strict=False)) for row in rows]}


def mend(path: Path) -> tuple[list[tuple[str, list[tuple[int, int, str]]]], list[dict[str, Any]]]:
    """Repair the file; return its documents as read back, and the log."""
    out = path.with_name("mended.jsonl")
    repaired = repair(read_source(path), out)
    documents = formats.read(out, read_source(path).format).documents
    log = [json.loads(line) for line in repaired.log.read_text("utf-8").splitlines()]
    assert repaired.log == path.with_name("mended.jsonl.changes.jsonl")
    assert log == [asdict(change) for change in repaired.changes]
    return [(one.text, [(e.start, e.end, e.label) for e in one.entities]) for one in documents], log


def test_one_based_offsets_are_mended_where_the_surface_stands_twice(tmp_path: Path) -> None:
    rows = [native(f"{sign}痛又{sign}痛", (1, 3, "sym", f"{sign}痛"), (4, 6, "sym", f"{sign}痛")) for sign in "头腹胸"]
    path = write(tmp_path / "one.jsonl", *rows)
    documents, log = mend(path)
    assert [entities for _, entities in documents] == [[(0, 2, "sym"), (3, 5, "sym")]] * 3
    assert len(log) == 6
    assert log[0] == {
        "file": str(path),
        "line": 1,
        "document": "头痛又头痛",
        "what": "surface-mismatch",
        "before": {"start": 1, "end": 3, "label": "sym", "text": "头痛", "field": "entities[0].text"},
        "after": HEAD,
    }


def test_utf16_offsets_are_mended(tmp_path: Path) -> None:
    rows = [native(f"😀{sign}痛😀{sign}痛", (2, 4, "sym", f"{sign}痛"), (6, 8, "sym", f"{sign}痛")) for sign in "头腹"]
    documents, _ = mend(write(tmp_path / "utf16.jsonl", *rows))
    assert [entities for _, entities in documents] == [[(1, 3, "sym"), (4, 6, "sym")]] * 2


def test_an_entity_that_fits_by_chance_follows_the_rule_of_its_file(tmp_path: Path) -> None:
    rows = [native(f"{number}头痛", (2, 4, "sym", "头痛")) for number in range(9)]
    documents, log = mend(write(tmp_path / "one.jsonl", *rows, native("痛痛", (1, 2, "sym", "痛"))))
    assert documents[-1] == ("痛痛", [(0, 1, "sym")])
    assert log[-1]["what"] == "surface-mismatch" and log[-1]["before"]["start"] == 1


def test_ends_are_mended(tmp_path: Path) -> None:
    documents, log = mend(write(tmp_path / "a.jsonl", native("头痛咳", (0, 1, "sym", "头痛"), (2, 2, "sym", "咳"))))
    assert documents[0][1] == [(0, 2, "sym"), (2, 3, "sym")]
    assert [change["what"] for change in log] == ["end-mismatch", "end-mismatch"]


def test_the_published_few_shot_file_is_mended(tmp_path: Path) -> None:
    row = {"start_idx": 1, "end_idx": 1, "entity_text": "头痛", "entity_label": "sym"}
    path = write(tmp_path / "a.jsonl", {"text": "伴头痛", "entities": [row], "source": "x"})
    documents, log = mend(path)
    assert documents == [("伴头痛", [(1, 3, "sym")])]
    assert json.loads((tmp_path / "mended.jsonl").read_text("utf-8")) == {
        "text": "伴头痛",
        "entities": [row | {"end_idx": 2}],
        "source": "x",
    }
    assert log[0]["what"] == "end-one-too-small"
    assert log[0]["before"]["stated"] == "end_idx one too small, mended"
    assert log[0]["after"] == {"start": 1, "end": 3, "label": "sym", "text": "头痛"}


def test_repetitions_are_dropped_and_a_score_is_kept(tmp_path: Path) -> None:
    record = {"text": "头痛", "entities": [HEAD | {"score": 0.5}, HEAD, HEAD | {"label": "dis"}, HEAD]}
    documents, log = mend(write(tmp_path / "a.jsonl", record))
    assert documents == [("头痛", [(0, 2, "dis"), (0, 2, "sym")])]
    assert [(change["what"], change["after"]) for change in log] == [("duplicate-annotation", None)] * 2
    assert repair(read_source(tmp_path / "a.jsonl"), tmp_path / "again.jsonl").dropped == []
    assert json.loads((tmp_path / "mended.jsonl").read_text("utf-8"))["entities"][1]["score"] == 0.5


def test_what_has_no_one_right_answer_is_left_out_and_logged(tmp_path: Path) -> None:
    rows = [
        (1, 3, "sym", "头痛"),  # occurs at 0 and at 3
        (0, 2, "sym", "腹痛"),  # occurs nowhere
        (2, 9, "sym"),  # there is no text to search for
        (2, 3, "mod", "又"),
    ]
    path = write(tmp_path / "a.jsonl", native("头痛又头痛", *rows), "{", '{"text": 3, "entities": []}')
    documents, log = mend(path)
    assert documents == [("头痛又头痛", [(2, 3, "mod")])]
    assert [(change["line"], change["what"], change["after"]) for change in log] == [
        (1, "surface-mismatch", None),
        (1, "surface-mismatch", None),
        (1, "out-of-range", None),
        (2, "unreadable", None),
        (3, "unreadable", None),
    ]
    assert "not JSON at column 2" in log[3]["before"]


def test_a_defect_that_plain_reading_refuses_is_mended(tmp_path: Path) -> None:
    """The defect is that of a format of tags: the entity is placed by the CoNLL rule."""
    defect = Defect(Rule.BROKEN_TRANSITION, "I-sym follows O", tolerated=False)
    entity = RawEntity(0, 2, "sym", field="column 2", line=4, defect=defect)
    source = Source(Path("a.txt"), "native", (RawDocument("a", "头痛", (entity,), Path("a.txt"), 3),), {})
    repaired = repair(source, tmp_path / "out.jsonl")
    assert formats.read(tmp_path / "out.jsonl").documents == (Document("a", "头痛", (Entity(0, 2, "sym"),)),)
    (change,) = repaired.changes
    assert (change.line, change.what, change.after) == (4, "broken-transition", HEAD)
    assert change.before["stated"] == "I-sym follows O"
    assert repaired.dropped == []


def test_a_file_of_a_format_that_is_only_read_is_mended_into_the_native_one(command: Command, tmp_path: Path) -> None:
    point = {"start": 0, "end": 4, "text": "Rome"}
    path = write(tmp_path / "a.json", {"content": "Rome!", "annotation": [{"label": ["LOC"], "points": [point]}]})
    outcome = command("data", "check", path, "--fix", tmp_path / "mended.jsonl", "--json")
    corpus = formats.read(tmp_path / "mended.jsonl")
    assert corpus.format == "native"
    assert [(d.text, d.entities) for d in corpus.documents] == [("Rome!", (Entity(0, 4, "LOC"),))]
    assert "file written as native, since dataturks can only be read" in outcome.err


def test_byte_order_mark_and_crlf_are_logged(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(native("a\u200b")).encode() + b"\r\n")
    documents, log = mend(path)
    assert [(change["what"], change["before"], change["after"]) for change in log] == [
        ("byte-order-mark", 1, 0),
        ("crlf", 1, 0),
    ]
    assert documents == [("a\u200b", [])]  # texts are never changed
    assert (tmp_path / "mended.jsonl").read_bytes()[:1] == b"{"


def is_unique(document: Document, entity: Entity) -> bool:
    surface = document.surface(entity)
    return document.text.find(surface) == document.text.rfind(surface)


@settings(max_examples=60, deadline=None)
@given(documents=st.lists(annotated(), min_size=1, max_size=4), by=st.sampled_from([-3, -1, 1, 2]))
def test_a_shifted_file_comes_back(
    documents: list[Document], by: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every entity of a file with shifted offsets is moved back, except those whose text is now nowhere."""
    folder = tmp_path_factory.mktemp("shifted")
    documents = [d.with_entities(e for e in d.entities if d.surface(e) == d.surface(e).strip()) for d in documents]
    items = tuple(
        RawDocument(
            f"{number}",
            document.text,
            tuple(RawEntity(e.start + by, e.end + by, e.label, document.surface(e)) for e in document.entities),
            Path("a"),
            number,
        )
        for number, document in enumerate(documents)
    )
    repaired = repair(Source(Path("a"), "native", items, {}), folder / "out.jsonl")
    back = formats.read(folder / "out.jsonl").documents
    lost = sum(change.what != "duplicate-annotation" for change in repaired.dropped)
    assert [document.text for document in back] == [document.text for document in documents]
    for document, its in zip(documents, back, strict=True):
        surfaces = {(document.surface(e), e.label) for e in document.entities}
        assert {(its.surface(e), e.label) for e in its.entities} <= surfaces
    if any(document.entities for document in documents) and all(
        is_unique(document, e) for document in documents for e in document.entities
    ):
        assert lost == 0
        assert [set(d.entities) for d in back] == [set(d.entities) for d in documents]


# --- the command -------------------------------------------------------------------------------------------------


def test_command_reports_what_was_written(command: Command, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", native("伴头痛", (0, 2, "sym", "头痛")), native("咳", (0, 1, "sym", "咳")))
    before = path.read_bytes()
    out = tmp_path / "out.jsonl"
    assert command("data", "check", path, "--json").code == 1
    done = command("data", "check", path, "--fix", out, "--json")
    assert done.code == 0
    assert (json.loads(done.out)["files"], json.loads(done.out)["errors"]) == ([str(out)], 0)
    assert done.err == f"{out}: 1 changes, logged in {out}.changes.jsonl\n"
    assert path.read_bytes() == before
    assert command("data", "check", out).code == 0


def test_command_fails_when_something_is_left_out(command: Command, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", native("咳", (0, 1, "sym", "嗽")), "nonsense", native("头痛"))
    done = command("data", "check", path, "--fix", tmp_path / "out.jsonl", "--json")
    (finding,) = [one for one in json.loads(done.out)["findings"] if one["severity"] == "error"]
    assert (finding["name"], finding["count"], finding["where"]) == ("left-out", 2, f"{path}:1")
    assert done.code == 1
    assert command("data", "check", tmp_path / "out.jsonl").code == 0


def test_command_mends_the_splits_of_a_corpus_into_a_folder(command: Command, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", native("伴头痛", (0, 2, "sym", "头痛")))
    test = write(tmp_path / "test.jsonl", native("咳嗽", (0, 2, "sym", "咳嗽")))
    done = command("data", "check", train, test, "--fix", tmp_path / "out", "--json")
    assert done.code == 0
    assert json.loads(done.out)["files"] == [str(tmp_path / "out" / name) for name in ("train.jsonl", "test.jsonl")]
    names = ["test.jsonl", "test.jsonl.changes.jsonl", "train.jsonl", "train.jsonl.changes.jsonl"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    again = command("data", "check", train, test, "--fix", tmp_path / "out")
    assert again.code == 2 and "not empty" in again.err


def test_command_says_what_the_format_has_no_place_for(command: Command, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", native("咳") | {"ward": 3})
    done = command("data", "check", path, "--fix", tmp_path / "out.jsonl")
    assert f"{path}: 1 × field 'ward' not read; put it under meta\n" in done.err


# --- what is refused, and that nothing is left behind ------------------------------------------------------------


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


@pytest.mark.parametrize("target", ["a.jsonl", "./sub/../a.jsonl", "link.jsonl"])
def test_an_input_is_never_written_to(tmp_path: Path, target: str) -> None:
    path = write(tmp_path / "a.jsonl", native("咳"))
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.jsonl").symlink_to(path)
    before = listing(tmp_path)
    with pytest.raises(ConfigError, match=r"would write over or into the input .*; name another place"):
        repair_all([read_source(path)], tmp_path / target)
    assert listing(tmp_path) == before


def test_the_log_is_no_input_either(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl.changes.jsonl", native("咳"))
    with pytest.raises(ConfigError, match="input"):
        repair_all([read_source(path)], tmp_path / "a.jsonl")


def test_two_inputs_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    paths = [write(tmp_path / "a.jsonl", native("咳")), write(tmp_path / "sub" / "a.jsonl", native("嗽"))]
    with pytest.raises(ConfigError, match="same name"):
        repair_all([read_source(path) for path in paths], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_several_inputs_is_refused(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.jsonl", native("咳")), write(tmp_path / "b.jsonl", native("嗽"))]
    with pytest.raises(ConfigError, match="input"):
        repair_all([read_source(path) for path in paths], tmp_path)


def test_nothing_is_left_behind_when_no_document_can_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "{", "[]")
    with pytest.raises(DataError, match="nothing is written; mend what is found first"):
        repair(read_source(path, "native"), tmp_path / "out.jsonl")
    assert listing(tmp_path) == ["a.jsonl"]


def test_nothing_is_left_behind_when_the_format_cannot_hold_a_document(tmp_path: Path) -> None:
    crossing = (RawEntity(0, 3, "a", "咳嗽痰"), RawEntity(1, 4, "b", "嗽痰喘"))
    items = (RawDocument("a", "咳嗽痰喘", crossing, Path("a.txt"), 1),)
    with pytest.raises(DataError, match="cross, which marks cannot show"):
        repair(Source(Path("a.txt"), "marked", items, {}), tmp_path / "out.txt")
    assert listing(tmp_path) == []
    good = Source(Path("b.txt"), "marked", (RawDocument("b", "咳", (), Path("b.txt"), 1),), {})
    with pytest.raises(DataError, match="cross"):
        repair_all([good, Source(Path("a.txt"), "marked", items, {})], tmp_path / "out")
    assert listing(tmp_path) == []


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        repair(read_source(write(tmp_path / "a.jsonl", native("咳"))), tmp_path / "none" / "out.jsonl")


def test_the_published_cmeee_file_is_mended_as_a_whole(tmp_path: Path) -> None:
    path = SHARED / "cmeee_v2_few_shot" / "cmeee.jsonl"
    if not path.exists():
        pytest.skip("the real data are not here")
    repaired = repair(read_source(path), tmp_path / "out.jsonl")
    assert len(repaired.changes) == 13086 and not repaired.dropped
    mended = formats.read(tmp_path / "out.jsonl")
    assert mended.notes == {}
    assert sum(len(document.entities) for document in mended.documents) == 13086


def test_the_log_names_the_field_of_what_cannot_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", native("头痛", (0, 2, "sym")), {"text": "头痛", "entities": [{"start": 0}]})
    changes = repair(read_source(path), tmp_path / "out.jsonl").changes
    assert [str(change.before).partition(";")[0] for change in changes] == [
        "field entities[0].end: the field is missing"
    ]


def test_labels_that_differ_in_blanks_only_are_found(command: Command, tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", *(native(f"头痛{n}", (0, 2, label)) for n, label in enumerate(["a b", "a b", "a  b "]))
    )
    found = json.loads(command("data", "check", path, "--json").out)["findings"]
    assert [f["example"] for f in found if f["name"] == "label-spelling"] == ["'a  b ' 1 times, 'a b' 2 times"]
