"""CHIP 2020's text format: fixture, round trips, bad lines, documents that it cannot hold, and the real file."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.real import SHARED
from helpers.refusal import assert_unwritable
from helpers.strategies import annotated
from spantune.core import DataError, Document, Entity
from spantune.data import formats
from spantune.data.offsets import DOUBTFUL

FIXTURE = Path(__file__).parents[2] / "fixtures" / "chip" / "clinic.txt"
UNVERIFIED = "entity without a copy of its text in the file: offsets cannot be verified"


def test_the_fixture_is_recognised_and_read() -> None:
    corpus = formats.read(FIXTURE)
    assert (corpus.format, corpus.notes) == ("chip", {UNVERIFIED: 6, DOUBTFUL.message: 2})
    assert [document.id for document in corpus.documents] == ["clinic-1", "clinic-2", "clinic-3"]
    assert [[(d.surface(e), e.start, e.label) for e in d.entities] for d in corpus.documents] == [
        [("右肩", 0, "bod"), ("右肩疼痛", 0, "sym"), ("血钾", 7, "ite")],
        [],
        [("Potassium", 0, "ite"), ("𠮷", 18, "per"), ("cafe\u0301", 22, "dep")],
    ]


def test_it_is_written_with_four_spaces_and_what_has_no_place_is_counted(tmp_path: Path) -> None:
    entities = (Entity(2, 4, "sym", 0.5), Entity(2, 3, "bod"))
    documents = [Document("a", "患者腹痛。", entities, {"ward": 3}), Document("b", "\ufeff")]
    notes = formats.write(tmp_path / "out.txt", documents, "chip")
    assert (tmp_path / "out.txt").read_text("utf-8") == "患者腹痛。|||2    2    bod|||2    3    sym|||\n\ufeff|||\n"
    assert notes == {"id left out": 2, "meta left out": 1, "score left out": 1}


def test_a_byte_order_mark_is_kept_as_text(tmp_path: Path) -> None:
    document = Document("d", "\ufeff肺", (Entity(0, 2, "x"),))
    formats.write(tmp_path / "x", [document], "chip")
    assert [(d.text, d.entities) for d in formats.read(tmp_path / "x").documents] == [("\ufeff肺", document.entities)]


@settings(deadline=None)
@given(st.lists(annotated(), min_size=1, max_size=4))
def test_round_trip_keeps_texts_and_entities(documents: list[Document]) -> None:
    """Documents that the format's docstring excludes must be refused, and all others must survive the round trip."""
    for document in documents:
        labels_stand = all(re.fullmatch(r"[^\s|](\S*[^\s|])?", e.label) for e in document.entities)
        bars = "|||" in document.text or any("|||" in entity.label for entity in document.entities)
        refused = not labels_stand or bars or "\n" in document.text or document.text.endswith("|")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "back.txt"
            if refused:
                with pytest.raises(DataError):
                    formats.write(path, [document], "chip")
                assert list(Path(folder).iterdir()) == []
                continue
            formats.write(path, [document], "chip")
            if document.entities:
                assert formats.detect(path) == "chip"
            back = formats.read(path, "chip").documents
        assert [(d.text, d.entities) for d in back] == [(document.text, document.entities)]


GOOD = "肺炎。|||0    1    dis|||\n"
BAD = {
    "no bars": (GOOD + "肺炎。", ["bad.txt:2:", "no ||| in '肺炎。'", "expected sentence|||", "add it"]),
    "cut off": (GOOD + "肺炎。|||0    1    di", ["bad.txt:2:", "ends in", "    1    di'", "Add it"]),
    "bar missing": (GOOD + "肺炎。|||0    1    dis||", ["bad.txt:2:", "expected ||| after the last"]),
    "two of three": (GOOD + "肺炎。|||0    dis|||", ["bad.txt:2, field entity 1", "'0    dis'", "blanks between"]),
    "four of three": (GOOD + "肺炎。|||0 1 big dis|||", ["bad.txt:2, field entity 1", "'0 1 big dis'", "mend it"]),
    "empty entity": (GOOD + "肺炎。|||0 1 dis||||||", ["bad.txt:2, field entity 2", "found ''", "expected start"]),
    "bars in the text": (GOOD + "肺|||炎。|||0 1 dis|||", ["bad.txt:2, field entity 1", "'炎。'", "contains |||"]),
    "start is a word": (GOOD + "肺炎。|||a 1 dis|||", ["bad.txt:2, field entity 1", "'a 1 dis'", "expected start"]),
    "start is negative": (GOOD + "肺炎。|||-1 1 dis|||", ["bad.txt:2, field entity 1", "'-1 1 dis'", "mend"]),
    "full-width digits": (GOOD + "肺炎。|||０ 1 dis|||", ["bad.txt:2, field entity 1", "expected start"]),
    "endless number": (GOOD + f"肺炎。|||0 {'9' * 5000} dis|||", ["bad.txt:2, field entity 1", "mend it"]),
    "end first": (GOOD + "肺炎。|||1 0 dis|||", ["bad.txt:2, field entity 1", "end 0 before the start 1", "inclusive"]),
    "outside": (GOOD + "肺炎。|||0 3 dis|||", ["bad.txt:2, field entity 1", "[0, 4)", "3 characters", "mend them"]),
    "outside later": (GOOD + "肺|||0 0 a|||7 8 b|||", ["bad.txt:2, field entity 2", "[7, 9)", "expected half-open"]),
    "gb18030": (GOOD.encode() + "肺炎。|||".encode("gb18030"), ["bad.txt:2:", "not UTF-8", "--encoding"]),
    "nothing": (b"\n\n", ["bad.txt", "is empty", "check the path"]),
}


@pytest.mark.parametrize(("content", "fragments"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_by_name(content: str | bytes, fragments: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as caught:
        documents = formats.read(path, "chip").documents
        formats.write(tmp_path / "out.jsonl", documents)
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []
    assert list(tmp_path.iterdir()) == [path]


def test_a_bad_line_does_not_end_the_reading_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text(GOOD + "肺炎\n" + GOOD, encoding="utf-8")
    found = list(formats.items(tmp_path / "bad.txt", None, Counter()))
    assert [isinstance(item, DataError) for item in found] == [False, True, False]


@pytest.mark.parametrize(
    ("document", "fragments"),
    [
        (Document("d", "a|||b"), ["'d'", "field text", "with |||", "split it"]),
        (Document("d", "a|"), ["'d'", "| at its end"]),
        (Document("d", "a\nb"), ["'d'", "line break"]),
        (Document("d", "a", (Entity(0, 1, "big dis"),)), ["'d'", "'big dis'", "white space", "rename"]),
        (Document("d", "a", (Entity(0, 1, ""),)), ["'d'", "label ''", "rename"]),
        (Document("d", "a", (Entity(0, 1, "x|||y"),)), ["'d'", "'x|||y'", "rename"]),
        (Document("d", "a", (Entity(0, 1, "x|"),)), ["'d'", "'x|'", "at an edge"]),
        (Document("d", "a\ud83d"), ["U+D83D", "mend the document"]),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_the_old_file(
    document: Document, fragments: list[str], tmp_path: Path
) -> None:
    assert_unwritable(tmp_path, document, "chip", fragments)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
def test_the_real_file_is_recovered_whole(tmp_path: Path) -> None:
    source = SHARED / "cmeee_v1/chip_train_sample.txt"
    corpus = formats.read(source)
    assert (corpus.format, len(corpus.documents), corpus.notes) == ("chip", 500, {UNVERIFIED: 2258})
    lines = (SHARED / "cmeee_v1/train.jsonl").read_text("utf-8").splitlines()
    stated = {record["text"]: record["entities"] for record in map(json.loads, lines)}
    for document in corpus.documents:  # these are the same sentences, with surfaces
        expected = {(e["entity_text"], e["start_idx"], e["entity_label"]) for e in stated[document.text]}
        assert {(document.surface(e), e.start, e.label) for e in document.entities} == expected
    formats.write(tmp_path / "again.txt", corpus.documents, "chip")
    again = formats.read(tmp_path / "again.txt").documents
    assert [(d.text, d.entities) for d in again] == [(d.text, d.entities) for d in corpus.documents]
