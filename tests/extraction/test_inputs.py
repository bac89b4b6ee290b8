"""Input for extraction is read unchanged, and a text that cannot be read keeps its place."""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from spantune.core import (
    ConfigError,
    DataError,
    Document,
    Entity,
    Extraction,
    Problem,
    ProblemKind,
    Status,
    to_document,
    to_record,
)
from spantune.data import Options, formats
from spantune.extraction import Texts


def read(*files: Path | str, format: str | None = None, whole: bool = False) -> list[Document | Extraction]:
    return list(Texts.open([str(file) for file in files], format, whole=whole).read(Counter()))


def documents(*files: Path | str, **options: Any) -> list[Document]:
    found = [item for item in read(*files, **options) if isinstance(item, Document)]
    assert len(found) == len(read(*files, **options))
    return found


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))


def test_lines_are_documents_and_blank_ones_are_not(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_bytes("\ufeff肺炎\r\n\n  \n a\u2028b \n".encode())
    two.write_bytes(b"last")
    notes: Counter[str] = Counter()
    assert list(Texts.open([str(one)]).read(notes)) == [Document("1", "肺炎"), Document("4", " a\u2028b ")]
    assert notes == {"byte-order mark taken off": 1, "CRLF line end": 1}
    assert [document.id for document in documents(one, two)] == [f"{one}:1", f"{one}:4", f"{two}:1"]


def test_a_whole_file_is_one_document_exactly_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, empty = tmp_path / "report.md", tmp_path / "empty.md"
    path.write_bytes("# 肺炎\r\n\r\n患者。\n".encode())
    empty.write_bytes(b"")
    found = documents(path, empty, whole=True)
    assert found == [Document(str(path), "# 肺炎\r\n\r\n患者。\n"), Document(str(empty), "")]
    path.write_bytes(b"ok \xb7\xa2")
    (bad, good) = read(path, empty, whole=True)
    assert isinstance(bad, Extraction) and bad.document == Document(str(path) + ":1", "") and good == found[1]
    stdin(monkeypatch, "一\n二".encode())
    assert documents("-", whole=True) == [Document("stdin", "一\n二")]


def test_corpora_are_read_without_their_annotations(tmp_path: Path) -> None:
    gold = [Document("a", "肺炎患者", (Entity(0, 2, "dis"),), {"k": 1}), Document("b", "无")]
    formats.write(tmp_path / "gold.jsonl", gold)
    formats.write(tmp_path / "gold.json", gold, "cmeee")
    bare = [Document("a", "肺炎患者", (), {"k": 1}), Document("b", "无")]
    assert documents(tmp_path / "gold.jsonl") == bare
    assert [item.text for item in documents(tmp_path / "gold.json")] == ["肺炎患者", "无"]
    assert len(documents(tmp_path / "gold.jsonl", tmp_path / "gold.json")) == 4
    assert len(documents("bundled:clinical-zh-test")) == 120
    # wrong annotations do not prevent extraction
    (tmp_path / "wrong.jsonl").write_text(
        '{"id": "a", "text": "ab", "entities": [{"start": 5, "end": 9, "label": "x"}]}\n'
    )
    assert documents(tmp_path / "wrong.jsonl") == [Document("a", "ab")]


def test_lines_that_are_no_text_keep_their_place(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes("一\n".encode() + b"\xb7\xa2\n" + "三\n".encode() + b"\xff")
    first, second, third, fourth = read(path)
    assert (first, third) == (Document("1", "一"), Document("3", "三"))
    assert isinstance(second, Extraction) and isinstance(fourth, Extraction)
    assert (second.document, second.status) == (Document("2", ""), "unreadable")
    assert "in.txt:2: not UTF-8: byte 0xB7 at offset 4 of the file" in second.problems[0].found
    assert fourth.document.id == "4" and "in.txt:4" in fourth.problems[0].found


def test_records_that_are_no_documents_keep_their_place(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    good = json.dumps({"id": "x", "text": "一"}).encode()
    path.write_bytes(b"\n".join([good, b'{"text": "\xb7\xa2"}', b"{not json", b'{"text": 3}', good]))
    found = read(path)
    assert [item.document.id if isinstance(item, Extraction) else item.id for item in found] == [
        "x", "in-2", "in-3", "in-4", "x"
    ]  # fmt: skip
    said = [item.problems[0].found for item in found if isinstance(item, Extraction)]
    assert ["not UTF-8" in said[0], "not JSON" in said[1], "found the number 3" in said[2]] == [True, True, True]
    assert all(f"{path}:{line}" in one for line, one in zip((2, 3, 4), said, strict=True))


def test_what_an_earlier_extraction_wrote_is_dropped_and_an_unreadable_document_stays_so(tmp_path: Path) -> None:
    cut = Extraction(Document("a", "一", meta={"k": 1}), status=Status.LENGTH)
    lost = Extraction(
        Document("b", ""), status=Status.UNREADABLE, problems=(Problem(ProblemKind.UNREADABLE, "not UTF-8"),)
    )
    own = Document("c", "三", meta={"status": "length"})
    path = tmp_path / "in.jsonl"
    records = [to_record(document) for document in (to_document(cut), to_document(lost), own)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read(path) == [cut.document, lost, own]


def test_a_file_that_breaks_off_is_said_and_the_next_one_goes_on(tmp_path: Path) -> None:
    entity = '{"start_idx": 0, "end_idx": 0, "type": "x", "entity": "a"}'
    (tmp_path / "array.json").write_text(f'[{{"text": "a", "entities": [{entity}]}},\n{{"text": "b", ')
    (tmp_path / "next.txt").write_text("c\n")
    found = read(tmp_path / "array.json", tmp_path / "next.txt")
    assert isinstance(found[0], Document) and found[0].text == "a"
    assert isinstance(found[1], Extraction) and "array.json:2: not JSON" in found[1].problems[0].found
    assert isinstance(found[2], Document) and found[2].text == "c" and len(found) == 3


def test_stdin_is_text_or_what_it_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, "一\n\n".encode() + b"\xb7\n" + '{"text": "三"}\n'.encode())
    one, two, three = Texts.open(["-"]).read(Counter())
    assert (one, three) == (Document("1", "一"), Document("4", '{"text": "三"}'))
    assert isinstance(two, Extraction) and "stdin:3: not UTF-8" in two.problems[0].found
    stdin(monkeypatch, b"")
    assert list(Texts.open(["-"]).read(Counter())) == []
    stdin(monkeypatch, '{"id": "a", "text": "一"}\n{"text": "二"}\n{]\n'.encode())
    one, two, three = Texts.open(["-"], "native").read(Counter())
    assert (one, two) == (Document("a", "一"), Document("stdin-2", "二"))
    assert isinstance(three, Extraction) and three.problems[0].found.startswith("stdin:3: not JSON")
    stdin(monkeypatch, '[{"text": "一", "entities": []}]'.encode())
    assert [item.text for item in Texts.open(["-"], "cmeee").read(Counter()) if isinstance(item, Document)] == ["一"]
    stdin(monkeypatch, b"[nothing]")
    (lost,) = Texts.open(["-"], "cmeee").read(Counter())
    assert isinstance(lost, Extraction) and lost.problems[0].found.startswith("stdin:1: not JSON")


def test_they_are_counted_but_for_stdin(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"a\n\n\xff\nb\n")
    assert Texts.open([str(tmp_path / "in.txt"), "bundled:clinical-zh-test"]).count() == 123
    assert Texts.open(["-"]).count() is None


def test_what_is_not_there_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    (tmp_path / "odd.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "empty.txt").write_text("")
    for file, words in (
        (tmp_path / "none.txt", "no such file"),
        (tmp_path / "none.jsonl", "no such file"),
        (tmp_path, "folder with"),
        (tmp_path / "empty.txt", "is empty"),
        (tmp_path / "odd.jsonl", "of no known format"),
    ):
        with pytest.raises(DataError, match=words):
            Texts.open([str(tmp_path / "in.txt"), str(file)])
    with pytest.raises(DataError, match="no such file"):
        Texts.open([str(tmp_path / "none.md")], whole=True)
    with pytest.raises(ConfigError, match=r"unknown format 'nativ'; did you mean 'native'\? valid: .*text"):
        Texts.open([str(tmp_path / "in.txt")], "nativ")
    with pytest.raises(ConfigError, match="--whole-file takes plain text"):
        Texts.open([str(tmp_path / "in.txt")], "native", whole=True)
    with pytest.raises(ConfigError, match="stands alone"):
        Texts.open(["-", str(tmp_path / "in.txt")])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'id,text,ward\n7,"肺炎,\n重",3\n'),
        ("a.tsv", 'text\tward\tid\n"肺炎,\n重"\t3\t7\n'),
        ("a.jsonl", '{"title": "x", "text": "肺炎,\\n重", "id": 7}'),
        ("a.json", '[{"text": "肺炎,\\n重", "source": "x", "id": 7}]'),
    ],
)
def test_texts_may_have_other_fields_and_no_entities(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    (document,) = documents(tmp_path / name)
    assert (document.id, document.text) == ("7", "肺炎,\n重")
    with pytest.raises(DataError):
        formats.read(tmp_path / name)  # a corpus must have entities


def test_files_are_read_as_they_are_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_bytes("患者\n".encode("gb18030"))
    (tmp_path / "a.csv").write_bytes("id,text\n1,患者\n".encode("gb18030"))
    options = Options(encoding="gb18030")
    files = [str(tmp_path / "a.txt"), str(tmp_path / "a.csv")]
    assert [d.text for d in Texts.open(files, options=options).read(Counter()) if isinstance(d, Document)] == [
        "患者"
    ] * 2
    whole = Texts.open(files[:1], whole=True, options=options).read(Counter())
    assert [d.text for d in whole if isinstance(d, Document)] == ["患者\n"]
    stdin(monkeypatch, b"")
    with pytest.raises(ConfigError, match="iconv -f gb18030 -t UTF-8"):
        Texts.open(["-"], options=options)


def test_what_is_meant_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text('{"text": "肺炎"}\n无\n', encoding="utf-8")
    notes: Counter[str] = Counter()
    assert len(list(Texts.open([str(tmp_path / "a.txt")]).read(notes))) == 2
    assert +notes == {"line that looks like a JSON object, taken for text; --format native reads its text": 1}
    with pytest.raises(DataError, match=r"/\*\.txt, with --whole-file"):
        Texts.open([str(tmp_path)])
    (tmp_path / "b.json").write_text('{"version": 1, "documents": [{"text": "a", "entities": []}]}')
    with pytest.raises(DataError, match=r"jq -c '\.documents\[\]'"):
        formats.read(tmp_path / "b.json")
