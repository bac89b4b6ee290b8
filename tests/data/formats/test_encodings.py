"""Files that are not UTF-8 are read if their encoding is named or marked, else refused with a fitting hint."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
from pathlib import Path

import pytest

from spantune.core import ConfigError, DataError, config
from spantune.data import Options, formats, read_splits, read_text

TOKENS = "Melbourne\tB-LOC\nEspaña\tB-LOC\nniño\tO\n"
CHINESE = "三天前\tO\n出现\tO\n发热\tB-sym\n咳嗽\tB-sym\n"
RECORD = '{"id": "a", "text": "niño 肺炎", "entities": [{"start": 5, "end": 7, "label": "dis", "text": "肺炎"}]}\n'


def refusal(folder: Path, content: bytes, options: Options | None = None) -> str:
    path = folder / "file.conll"
    path.write_bytes(content)
    with pytest.raises((DataError, ConfigError)) as caught:
        formats.read(path, "conll", options or Options())
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "encoding"), [(TOKENS, "latin-1"), (TOKENS, "cp1252"), (CHINESE, "gb18030"), (CHINESE, "utf-16-be")]
)
def test_a_named_encoding_is_read_and_written_as_utf_8(text: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(text.encode(encoding))
    (tmp_path / "b").write_text(text, encoding="utf-8")
    corpus = formats.read(tmp_path / "a", options=Options(encoding=encoding))
    expected = formats.read(tmp_path / "b")
    assert [(d.text, d.entities) for d in corpus.documents] == [(d.text, d.entities) for d in expected.documents]
    formats.write(tmp_path / "out.jsonl", corpus.documents)
    assert (tmp_path / "out.jsonl").read_bytes().decode("utf-8")


@pytest.mark.parametrize("name", ["conll", "native", "cmeee", "marked", "table", "doccano", "label_studio", "chip"])
def test_every_text_format_takes_the_encoding_and_the_marks(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(RECORD, encoding="utf-8")
    documents = formats.read(tmp_path / "a.jsonl").documents
    path = tmp_path / {"cmeee": "b.json", "table": "b.csv"}.get(name, "b.txt")
    formats.write(path, documents, name)
    text = path.read_text("utf-8")
    expected = [(d.text, d.entities) for d in formats.read(path, name).documents]
    for encoding, options in (("utf-16", Options()), ("utf-32", Options()), ("gb18030", Options(encoding="gb18030"))):
        path.write_bytes(text.encode(encoding))
        corpus = formats.read(path, None if name not in ("doccano", "label_studio") else name, options)
        assert [(d.text, d.entities) for d in corpus.documents] == expected
        note = f"{encoding.upper()} read, as its byte-order mark says"
        assert (note in corpus.notes) is (encoding != "gb18030")


def test_a_brat_folder_takes_the_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Em Köln".encode("latin-1"))
    (tmp_path / "a.ann").write_bytes("T1\tLOC 3 7\tKöln\n".encode("latin-1"))
    corpus = formats.read(tmp_path, options=Options(encoding="latin-1"))
    assert corpus.documents[0].text == "Em Köln"


@pytest.mark.parametrize(
    ("text", "encoding", "hint"),
    [
        (TOKENS, "latin-1", "look like windows-1252 .*Western European"),
        ("He said “no” — d’accord\tO\nx\tO\n", "cp1252", "look like windows-1252"),
        (CHINESE, "gb18030", "it looks like gb18030, if the text is Chinese$"),
        ("肺\tB-x\na\tO\n", "gb18030", "has to be known: gb18030 if .*, windows-1252 if"),
        (CHINESE, "big5hkscs", "which has to be known, or convert it"),
        ("한국\tO\n안녕하세요\tO\n반갑습니다\tO\n", "euc-kr", "which has to be known, or convert it"),
        ("これは\tO\nりんごです\tO\n", "euc-jp", "which has to be known, or convert it"),
        ("これは\tO\nりんごです\tO\n", "shift-jis", "which has to be known, or convert it"),
        ("Москва\tO\nбыла\tO\nстолицей\tO\n", "cp1251", "which has to be known, or convert it"),
        ("Москва\tO\nбыла\tO\nстолицей\tO\n", "koi8-r", "which has to be known, or convert it"),
        ("Łódź\tO\nżółw\tO\nświęta\tO\n", "cp1250", "which has to be known, or convert it"),
    ],
)
def test_the_hint_fits_the_bytes(text: str, encoding: str, hint: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, text.encode(encoding, "replace"))
    assert "not UTF-8: byte 0x" in message
    assert re.search(hint, message)


def test_a_damaged_byte_among_utf_8_is_no_other_encoding(tmp_path: Path) -> None:
    message = refusal(tmp_path, CHINESE.encode() + b"\xe8\x82\tO\n" + CHINESE.encode())
    assert message.startswith(f"{tmp_path / 'file.conll'}:5: not UTF-8: byte 0xE8")
    assert "mend it there" in message


def test_utf_16_without_a_mark_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes("Rome\tB-LOC\nis\tO\n".encode("utf-16-le"))
    with pytest.raises(DataError, match="looks like UTF-16"):
        formats.read(tmp_path / "x")


@pytest.mark.parametrize("name", ["xyz", "base64", "", "a\0b", "undefined"])
def test_an_unknown_encoding_is_a_clear_error(name: str, tmp_path: Path) -> None:
    assert "unknown encoding" in refusal(tmp_path, TOKENS.encode(), Options(encoding=name))


def test_a_wrong_encoding_is_refused_at_its_place(tmp_path: Path) -> None:
    message = refusal(tmp_path, b"ok\tO\n" + CHINESE.encode(), Options(encoding="ascii"))
    assert "file.conll:1: not ascii: the bytes at offset 5" in message or "file.conll:2" in message
    assert "begins with the byte-order mark of UTF-8" in refusal(
        tmp_path, b"\xef\xbb\xbf" + TOKENS.encode(), Options(encoding="latin-1")
    )


def test_a_recipe_names_encoding_and_label(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("Köln\tB\nam\tO\n\nRhein\tB\nhier\tO\n".encode("latin-1"))
    data = config.Data(train=str(tmp_path / "a"), encoding="latin-1", label="LOC", holdout=0.5)
    splits = read_splits(data)
    assert [(d.text, d.entities[0].label) for d in (*splits.dev, *splits.train)] == [
        ("Köln am", "LOC"),
        ("Rhein hier", "LOC"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl.gz", gzip.compress(RECORD.encode()), "gunzip"),
        ("a.jsonl", bz2.compress(RECORD.encode()), "bunzip2"),
        ("a.xz", lzma.compress(RECORD.encode()), "unxz"),
        ("a.xlsx", b"PK\x03\x04\x14\0", "CSV"),
        ("a.txt", b"%PDF-1.7\n", "PDF"),
        ("a.db", b"SQLite format 3\0\x10\0", "export a table as CSV"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.jsonl", RECORD.replace("肺炎", "ab").encode("utf-16-le"), "utf-16-le"),
        ("a.conll", CHINESE.encode("utf-16-be"), "utf-16-be"),
    ],
    ids=["gzip", "bzip2", "xz", "zip", "pdf", "sqlite", "lfs", "little", "big"],
)
@pytest.mark.parametrize("format", [None, "native", "conll"])
def test_what_is_packed_or_utf_16_is_said(
    name: str, content: bytes, said: str, format: str | None, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        formats.read(tmp_path / name, format)


@pytest.mark.parametrize("text", ["a\0b\0c", "\0\0\0\0\0\0\0\0\0\0", "肺炎\0肺炎", "a\0b\0c\0d\0e\0f"[:7]])
def test_utf_8_with_nul_characters_is_utf_8(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert read_text(tmp_path / "a.txt") == text
