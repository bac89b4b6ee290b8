"""brat's standoff folders: parts of entities, lines that are kept, offsets, round trips, bad input and real folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.real import SHARED
from helpers.refusal import assert_unreadable
from helpers.strategies import annotated, texts
from spantune.core import DataError, Document, Entity
from spantune.data import formats, read_source
from spantune.data.formats import brat
from spantune.data.raw.document import RawDocument
from spantune.data.raw.text_files import CRLF_NOTE
from spantune.data.repairs import repair

WARD = Path(__file__).parents[2] / "fixtures" / "brat" / "ward"
BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
NO_ANN = "text without .ann file: no entities"


def pair(folder: Path, text: str | bytes, annotation: str | bytes | None, name: str = "a") -> Path:
    """Write the two files of a document with exactly these contents."""
    folder.mkdir(exist_ok=True)
    for suffix, content in ((".txt", text), (".ann", annotation)):
        if content is not None:
            (folder / (name + suffix)).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def found(document: Document) -> list[tuple[str, str]]:
    return [(document.surface(entity), entity.label) for entity in document.entities]


def lines(path: Path) -> Counter[str]:
    return Counter(path.read_text("utf-8").splitlines())


def test_folder_is_recognised_and_read_with_its_sub_folders() -> None:
    corpus = formats.read(WARD)
    assert corpus.format == "brat"
    assert {document.id: found(document) for document in corpus.documents} == {
        "pain": [
            ("Pain in the left hand and foot", "Sign"),
            ("left hand", "Site"),
            ("left hand and foot", "Site"),
            ("fever", "Sign"),
            ("cafe\u0301 au lait spots", "Sign"),
        ],
        "plain": [],
        "zh/note-1": [("右肩", "bod"), ("右肩疼痛", "sym"), ("血钾", "ite")],
    }
    assert corpus.notes == {"file that is no .txt or .ann not read": 1, brat.PARTS_NOTE: 1, NO_ANN: 1}
    assert formats.detect(WARD.parent) == "brat"
    assert formats.read(WARD.parent).documents[0].id == "ward/pain"


@pytest.mark.parametrize("suffix", [".txt", ".ann"])
def test_one_file_of_a_pair_may_be_named(suffix: str) -> None:
    corpus = formats.read(WARD / "zh" / f"note-1{suffix}")
    assert corpus.format == "brat"
    assert [(document.id, len(document.entities)) for document in corpus.documents] == [("note-1", 3)]


def test_all_lines_are_written_back(tmp_path: Path) -> None:
    documents = formats.read(WARD).documents
    assert formats.write(tmp_path / "back", documents, "brat") == {}
    assert formats.read(tmp_path / "back").documents == documents
    assert lines(tmp_path / "back" / "pain.ann") == lines(WARD / "pain.ann")
    assert (tmp_path / "back" / "plain.ann").read_bytes() == b""


def test_lines_that_hang_on_an_entity_now_gone_are_left_out_and_counted(tmp_path: Path) -> None:
    document = next(document for document in formats.read(WARD).documents if document.id == "pain")
    kept = [entity for entity in document.entities if document.surface(entity) != "left hand"]
    notes = formats.write(tmp_path / "back", [document.with_entities([*kept, Entity(0, 4, "Sign")])], "brat")
    # Four lines depend on T1: R1 names T1, M1 and #1 name R1, and the equivalence names T1.
    assert notes == {"line left out: its entity is gone": 4}
    gone = [
        line
        for line in (WARD / "pain.ann").read_text("utf-8").splitlines()
        if line[:2] in ("T1", "R1", "M1", "#1", "*\t")
    ]
    assert lines(tmp_path / "back" / "pain.ann") == lines(WARD / "pain.ann") - Counter(gone) + Counter(
        ["T6\tSign 0 4\tPain"]
    )


REPEATED = "T1\tL 0 1\ta\nT1\tL 1 2\tb\nT2\tL 2 3\tc\n"


def test_an_id_given_twice_costs_nothing_where_no_line_refers_to_it(tmp_path: Path) -> None:
    corpus = formats.read(pair(tmp_path / "in", "abc", REPEATED + "A1\tNegated T2\n"))
    assert found(corpus.documents[0]) == [("a", "L"), ("b", "L"), ("c", "L")]
    assert corpus.notes == {brat.REPEATED_ID.message: 1}
    formats.write(tmp_path / "out", corpus.documents, "brat")
    back = (tmp_path / "out" / "a.ann").read_text("utf-8")
    assert back == "T1\tL 0 1\ta\nT3\tL 1 2\tb\nT2\tL 2 3\tc\nA1\tNegated T2\n"


def test_the_same_entity_stated_twice_is_no_ambiguous_id(tmp_path: Path) -> None:
    annotation = "T1\tL 0 1\ta\nT1\tL 0 1\ta\nA1\tNegated T1\n"
    corpus = formats.read(pair(tmp_path / "in", "abc", annotation))
    meta = corpus.documents[0].meta["brat"]
    assert isinstance(meta, dict) and meta["lines"] == ["A1\tNegated T1"]


def test_only_what_refers_to_an_ambiguous_id_is_left_out_by_fix(tmp_path: Path) -> None:
    hanging = ["R1\tr Arg1:T1 Arg2:T2", "#1\tNote R1\tsure?", "*\tEquiv T2 T1", "E1\tL:T1"]
    folder = pair(tmp_path / "in", "abc", "\n".join([REPEATED + "A1\tNegated T2", *hanging]))
    repaired = repair(read_source(folder), tmp_path / "out")
    back = (tmp_path / "out" / "a.ann").read_text("utf-8")
    assert back == "T1\tL 0 1\ta\nT3\tL 1 2\tb\nT2\tL 2 3\tc\nA1\tNegated T2\n"
    log = repaired.log.read_text("utf-8")
    assert [line for line in hanging if line.replace("\t", " ") not in log] == []


def test_links_and_what_cannot_be_read_are_named(tmp_path: Path) -> None:
    folder = pair(tmp_path / "in", "abc", "T1\tL 0 1\ta\n")
    (folder / "sub").mkdir()
    (folder / "sub" / "loop").symlink_to("..")
    for suffix in (".txt", ".ann"):
        (folder / "sub" / f"b{suffix}").symlink_to(folder / f"a{suffix}")
    corpus = formats.read(folder)
    assert [(document.id, document.text) for document in corpus.documents] == [("a", "abc"), ("sub/b", "abc")]
    assert corpus.notes == {"link to a folder not followed: sub/loop": 1, "link to a file, read as the file": 2}
    (folder / "c.ann").symlink_to("nowhere")
    assert_unreadable(folder, None, ["in/c.ann", "leads to no file", "remove"])


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pair(tmp_path / "in", "abc", "T1\tL 0 1\ta\n")
    pair(folder / "locked", "abc", "", "b")

    def scandir(path: str) -> Any:  # file permissions do not stop tests that run as root
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", path)
        return real_scandir(path)

    real_scandir = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    first, second = formats.items(folder, "brat", Counter())
    assert str(first) == f"{folder / 'locked'}: cannot be read: Permission denied; check its permissions"
    assert isinstance(second, RawDocument)


def test_only_what_an_attribute_is_of_counts_not_its_value(tmp_path: Path) -> None:
    annotation = "T1\tL 0 1\ta\nT2\tL 1 2\tb\nA1\tLevel T2 T1\nA2\tLevel T1 T2\n"
    document = formats.read(pair(tmp_path / "in", "ab", annotation)).documents[0]
    formats.write(tmp_path / "out", [document.with_entities([Entity(1, 2, "L")])], "brat")
    assert (tmp_path / "out" / "a.ann").read_text("utf-8") == "T2\tL 1 2\tb\nA1\tLevel T2 T1\n"


def test_offsets_count_line_ends_and_byte_order_mark_as_they_are(tmp_path: Path) -> None:
    text = "\ufeffone\r\ntwo\rthree\n"
    annotation = "T1\tN 6 9\ttwo\r\nT2\tN 10 15\tthree\r\n"
    corpus = formats.read(pair(tmp_path / "in", text, annotation))
    assert corpus.documents == (Document("a", text, (Entity(6, 9, "N"), Entity(10, 15, "N"))),)
    assert corpus.notes == {"byte-order mark kept: offsets count it": 1, CRLF_NOTE: 2}
    formats.write(tmp_path / "out", corpus.documents, "brat")
    assert (tmp_path / "out" / "a.txt").read_bytes() == text.encode()


def test_an_entity_over_lines_is_written_in_parts_as_brat_does(tmp_path: Path) -> None:
    document = Document("a", "left\r\nhand\nside", (Entity(0, 15, "S"),))
    formats.write(tmp_path / "out", [document], "brat")
    assert (tmp_path / "out" / "a.ann").read_text("utf-8") == "T1\tS 0 4;6 10;11 15\tleft hand side\n"
    corpus = formats.read(tmp_path / "out")
    assert corpus.documents == (document,)
    assert corpus.notes == {}


def test_spaces_for_line_breaks_and_parts_joined_without_space_are_read(tmp_path: Path) -> None:
    annotation = "T1\tS 0 9\tleft hand\nT2\tS 0 4;10 14\tleftside\nT3\tS 5 9\n"
    corpus = formats.read(pair(tmp_path / "in", "left\nhand side", annotation))
    assert corpus.documents[0].entities == (Entity(0, 9, "S"), Entity(0, 14, "S"), Entity(5, 9, "S"))
    assert corpus.notes == {
        brat.SPACES.message: 1,
        brat.PARTS_NOTE: 1,
        "entity without a copy of its text in the file: offsets cannot be verified": 1,
    }


def test_empty_files_hidden_files_and_blank_lines_are_no_trouble(tmp_path: Path) -> None:
    folder = pair(tmp_path / "in", "", "")
    pair(folder, "x", "\n \nT1\tL 0 1\tx", "b")
    pair(folder, b"\xff", None, "._b")
    corpus = formats.read(folder)
    assert corpus.documents == (Document("a", ""), Document("b", "x", (Entity(0, 1, "L"),)))
    assert corpus.notes == {"file that is no .txt or .ann not read": 1}


def test_scores_and_foreign_meta_have_no_place(tmp_path: Path) -> None:
    notes = formats.write(tmp_path / "x", [Document("a", "肺炎", (Entity(0, 2, "dis", 0.5),), {"ward": 3})], "brat")
    assert notes == {"score left out": 1, "meta left out": 1}


ids = st.text(
    st.one_of(st.sampled_from('a%\\:*?"<>|.~ \n\x00肺😀/'), st.characters(exclude_categories=["Cs"])),
    min_size=1,
    max_size=8,
)


@st.composite
def for_brat(draw: st.DrawFn) -> Document:
    """Draw a document that brat can hold: no white space in labels, no line break at the ends of entities."""
    document = draw(annotated())
    entities = [
        replace(entity, label="".join(entity.label.split()) + "x")
        for entity in document.entities
        if not {document.text[entity.start], document.text[entity.end - 1]} & set(BREAKS)
    ]
    return document.with_entities(entities)


@settings(deadline=None)
@given(st.lists(for_brat(), min_size=1, max_size=4))
def test_round_trip_is_the_identity(tmp_path_factory: pytest.TempPathFactory, documents: list[Document]) -> None:
    named = tuple(replace(document, id=f"d/{number}") for number, document in enumerate(documents))
    path = tmp_path_factory.mktemp("trip") / "back"
    assert formats.write(path, named, "brat") == {}
    assert formats.detect(path) == "brat"
    assert formats.read(path).documents == named


@settings(deadline=None)
@given(ids, texts)
def test_an_id_becomes_a_file_name_and_comes_back(tmp_path_factory: pytest.TempPathFactory, id: str, text: str) -> None:
    path = tmp_path_factory.mktemp("trip") / "back"
    if not all(id.split("/")):
        with pytest.raises(DataError, match="an id names the file"):
            formats.write(path, [Document(id, text)], "brat")
        assert not path.exists()
        return
    formats.write(path, [Document(id, text)], "brat")
    assert formats.read(path).documents == (Document(id, text),)
    assert {file.name for file in path.rglob("*")}.isdisjoint({".", ".."})


def test_ids_cannot_leave_the_folder(tmp_path: Path) -> None:
    formats.write(tmp_path / "out", [Document("../../up", "x")], "brat")
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert formats.read(tmp_path / "out").documents[0].id == "../../up"


TEXT = "hand and foot pain"
BAD: dict[str, tuple[str | bytes, list[str]]] = {
    "no tab": ("T1 L 0 4 hand", ["a.ann:1", "found 'T1 L 0 4 hand'", "a tab", "mend"]),
    "unknown kind": ("T1\tL 0 4\thand\nX1\tL T1", ["a.ann:2", "'X1", "T, A, M, N, R, E, # or *"]),
    "end missing": ("T1\tL 0\thand", ["a.ann:1, field T1", "found 'L 0'", "label start end"]),
    "label missing": ("T1\t0 4\thand", ["field T1", "found '0 4'"]),
    "negative": ("T1\tL -1 4\thand", ["field T1", "found 'L -1 4'"]),
    "fraction": ("T1\tL 0 4.5\thand", ["field T1", "4.5"]),
    "endless number": ("T1\tL 0 " + "9" * 5000 + "\thand", ["a.ann:1, field T1", "found 'L 0 999"]),
    "surface": ("\nT1\tL 1 5\thand", ["a.ann:2, field T1", "'hand'", "'and '", "it occurs at 0", "mend"]),
    "surface absent": ("T1\tL 0 4\tHand", ["'Hand'", "does not occur in the text"]),
    "end": ("T1\tL 0 5\thand", ["ends 5 characters", "'hand' has 4", "mend the end"]),
    "outside": ("T1\tL 14 19\tpain", ["a.ann:1, field T1", "[14, 19)", "18 characters", "mend"]),
    "empty span": ("T1\tL 4 4\t", ["[4, 4)", "empty"]),
    "parts' surface": ("T1\tL 0 4;14 18\thand foot", ["a.ann:1, field T1", "'hand foot'", "does not occur"]),
    "part outside": ("T1\tL 0 4;14 90\thand pain", ["[14, 90)", "18 characters"]),
    "part backwards": ("T1\tL 0 4;18 14\thand pain", ["[18, 14)"]),
    "repeated T": (
        "T1\tL 0 4\thand\nT1\tL 9 13\tfoot\nR1\tr Arg1:T1 Arg2:T1\n#1\tNote R1\tx",
        ["a.ann:2, field T1", "id T1 is given to two entities", "R1 r Arg1:T1 Arg2:T1; #1 Note R1 x", "--fix"],
    ),
    "gb18030": (
        b"T1\tL 0 4\thand\nT2\tL 9 13\t" + "肺炎".encode("gb18030"),
        ["a.ann:2", "not UTF-8", "gb18030 if the text is Chinese"],
    ),
    "byte offsets": ("T1\tL 15 19\tpain", ["'pain'", "it occurs at 14", "code points"]),
}


@pytest.mark.parametrize(("annotation", "fragments"), BAD.values(), ids=BAD)
def test_bad_lines_are_refused_by_name(annotation: str | bytes, fragments: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        formats.read(pair(tmp_path / "in", TEXT, annotation))
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []


def test_bad_folders_and_files_are_refused_by_name(tmp_path: Path) -> None:
    pair(tmp_path / "lonely", "fine", "", "b")
    pair(tmp_path / "lonely", "", "T1\tL 0 4\thand").joinpath("a.txt").unlink()
    with pytest.raises(DataError, match=r"a\.ann: there is no a\.txt beside it.*add it, or remove"):
        formats.read(tmp_path / "lonely")
    with pytest.raises(DataError, match=r"a\.txt:2: not UTF-8: byte 0xB7 at offset 5"):
        formats.read(pair(tmp_path / "gb", b"hand\n" + "肺炎".encode("gb18030"), ""))
    with pytest.raises(DataError, match=r"found a file of another name; expected a folder, or a \.txt or \.ann"):
        formats.read(WARD / "annotation.conf", "brat")
    with pytest.raises(DataError, match="found nothing; expected a folder"):
        formats.read(tmp_path / "absent", "brat")
    with pytest.raises(DataError, match=r"there is no absent\.txt"):
        formats.read(tmp_path / "absent.ann", "brat")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no document was found"):
        formats.read(tmp_path / "empty", "brat")


def test_what_is_wrong_with_one_document_does_not_hide_the_others(tmp_path: Path) -> None:
    pair(tmp_path / "in", TEXT, "T1\tL 0", "a")
    pair(tmp_path / "in", TEXT, "T1\tL 0 4\thand", "b")
    first, second = formats.items(tmp_path / "in", None, Counter())
    assert isinstance(first, DataError)
    assert not isinstance(second, DataError)
    assert second.id == "b"


@pytest.mark.parametrize(
    ("document", "fragments"),
    [
        (Document("d", "ab", (Entity(0, 1, "two words"),)), ["'d'", "no white space", "rename 'two words'"]),
        (Document("d", "ab", (Entity(0, 1, ""),)), ["not empty"]),
        (Document("d", "a\nb", (Entity(0, 2, "L"),)), ["'d'", "[0, 2)", "line break", "mend the span"]),
        (Document("d", "a\u2028", (Entity(1, 2, "L"),)), ["line break"]),
        (Document("/d", "ab"), ["'/d'", "empty", "another id"]),
        (Document("x" * 252, "ab"), ["over 251 bytes", "another id"]),
        (Document("first", "again"), ["'first'", "first.txt cannot be made", "another id"]),
        (Document("first.txt/d", "ab"), ["'first.txt/d'", "cannot be made", "another id"]),
        (Document("d", "a\ud83d"), ["U+D83D"]),
        (Document("d", "ab", meta={"brat": []}), ["found []", "meta['brat']", "remove it"]),
        (Document("d", "ab", meta={"brat": {"entities": {}}}), ["found {} for entities"]),
        (Document("d", "ab", meta={"brat": {"lines": ["T1\tL 0 1\ta"]}}), ["for lines", "brat's lines"]),
        (
            Document(
                "d",
                "ab",
                (Entity(0, 1, "L"),),
                {"brat": {"entities": [{"start": 0, "end": 1, "label": "L", "id": "T1", "parts": [1]}]}},
            ),
            ["found [1] for parts"],
        ),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(
    document: Document, fragments: list[str], tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        formats.write(tmp_path / "out", [Document("first", "fine"), document], "brat")
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []
    assert list(tmp_path.iterdir()) == []


def test_write_takes_an_empty_folder_and_refuses_any_other(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    formats.write(tmp_path / "out", [Document("a", "x")], "brat")
    with pytest.raises(DataError, match="exists and is not empty; name another"):
        formats.write(tmp_path / "out", [Document("b", "x")], "brat")
    (tmp_path / "file").write_text("old", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be written"):
        formats.write(tmp_path / "file", [Document("b", "x")], "brat")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.ann", "a.txt", "file", "out"]


def test_a_full_disk_is_no_fault_of_an_id(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(16 << 10)
    with pytest.raises(DataError, match=r"out: cannot be written: No space left"):
        formats.write(disk / "out", [Document(str(number), "x" * 4000) for number in range(9)], "brat")
    assert list(disk.iterdir()) == []


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
@pytest.mark.parametrize(("name", "documents", "entities"), [("brat_zh", 5, 109), ("ncbi_disease/brat_sample", 10, 89)])
def test_real_folders_are_recovered_whole(name: str, documents: int, entities: int, tmp_path: Path) -> None:
    corpus = formats.read(SHARED / name)
    assert (corpus.format, corpus.notes, len(corpus.documents)) == ("brat", {}, documents)
    assert sum(len(document.entities) for document in corpus.documents) == entities
    formats.write(tmp_path / "back", corpus.documents, "brat")
    assert formats.read(tmp_path / "back").documents == corpus.documents
    for document in corpus.documents:
        stated = (SHARED / name / f"{document.id}.ann").read_text("utf-8").splitlines()
        rows = [line.split("\t") for line in stated if line.startswith("T")]
        spans = sorted((*map(int, row[1].split(" ")[1:]), row[1].split(" ")[0], row[2]) for row in rows)
        assert [(e.start, e.end, e.label, document.surface(e)) for e in document.entities] == spans
        kept = [line for line in stated if not line.startswith("T")]
        written = (tmp_path / "back" / f"{document.id}.ann").read_text("utf-8").splitlines()
        assert [line for line in written if not line.startswith("T")] == kept
        if kept:  # ids are kept only if another line names them
            assert sorted(written) == sorted(stated)
