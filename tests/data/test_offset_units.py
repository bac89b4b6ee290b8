"""Units of offsets, stated texts that differ in white space, and findings about borders, labels and folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spantune.core import DataError, Document, Entity
from spantune.data import Demands, Options, check, formats, read_source
from spantune.data.offsets import DOUBTFUL, SPACES
from spantune.data.raw.units import Unit, agree, code_point
from spantune.data.repairs import repair


def write(path: Path, *records: object) -> Path:
    path.write_bytes("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())
    return path


def found(path: Path, options: Options | None = None) -> list[tuple[int, int, str]]:
    corpus = formats.read(path, options=options or Options())
    return [(e.start, e.end, document.surface(e)) for document in corpus.documents for e in document.entities]


def findings(*paths: Path, options: Options | None = None) -> dict[str, int]:
    report = check([read_source(path, None, options) for path in paths], Demands())
    return {finding.name: finding.count for finding in report.findings}


def native(text: str, *rows: dict[str, Any]) -> dict[str, Any]:
    return {"id": text, "text": text, "entities": list(rows)}


def row(start: int, end: int, text: str | None = None, label: str = "x") -> dict[str, Any]:
    return {"start": start, "end": end, "label": label} | ({} if text is None else {"text": text})


@pytest.mark.parametrize("unit", ["utf16", "bytes", "crlf"])
def test_every_border_is_found_again(unit: Unit) -> None:
    text = "a😀é\r\n\n𠮷\r\nb"
    count = {
        "utf16": lambda part: len(part.encode("utf-16-le")) // 2,
        "bytes": lambda part: len(part.encode()),
        "crlf": lambda part: len(part.replace("\r\n", "\n")),
    }[unit]
    borders = [place for place in range(len(text) + 1) if unit != "crlf" or text[place - 1 : place + 1] != "\r\n"]
    assert [code_point(text, count(text[:place]), unit) for place in borders] == borders
    assert code_point(text, 99, unit) is None and code_point(text, -1, unit) is None


@pytest.mark.parametrize(("unit", "start"), [("utf16", 5), ("bytes", 9)])
def test_the_option_reads_offsets_without_texts(unit: Unit, start: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"id": 1, "text": "👨🏻 Acme", "label": [[start, start + 4, "ORG"]]})
    assert found(path, Options(offsets=unit)) == [(3, 7, "Acme")]
    assert "offset-unit" not in findings(path, options=Options(offsets=unit))


def test_a_doubt_about_the_unit_is_counted_and_a_choice_ends_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", native("😀 ab\r\ncd", row(2, 4), row(6, 8), row(0, 1, "😀")))
    assert formats.read(path).notes[DOUBTFUL.message] == 2
    assert findings(path)["offset-unit"] == 2
    assert DOUBTFUL.message not in formats.read(path, options=Options(offsets="codepoints")).notes


def test_texts_that_fit_as_code_points_outweigh_the_option(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", native("😀 lung pain", row(2, 6, "lung"), row(7, 11)))
    assert found(path, Options(offsets="utf16")) == [(2, 6, "lung"), (7, 11, "pain")]
    assert any("not applied" in note for note in formats.read(path, options=Options(offsets="utf16")).notes)


def test_an_offset_inside_a_character_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", native("😀 lung", row(1, 3)))
    with pytest.raises(DataError, match=r"a\.jsonl:1, field .*\[1, 3\) begins or ends inside a character"):
        formats.read(path, options=Options(offsets="utf16"))


@pytest.mark.parametrize(
    ("stated", "start", "end", "place"),
    [
        ("Green Hill", 2, 13, (2, 13)),
        ("Green\\nHill", 15, 25, (15, 25)),
        ("GreenHill", 15, 25, (15, 25)),
        ("Green  Hill ", 2, 13, (2, 13)),
        ("Green Hill", 1, 13, (2, 13)),
    ],
)
def test_a_text_that_differs_in_white_space_stays_at_its_offsets(
    stated: str, start: int, end: int, place: tuple[int, int], tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", native("a Green  Hill, Green\nHill; Green Hill", row(start, end, stated)))
    assert [span[:2] for span in found(path)] == [place]
    assert formats.read(path).notes == {SPACES.message: 1}
    repair(read_source(path), tmp_path / "out.jsonl")
    assert [span[:2] for span in found(tmp_path / "out.jsonl")] == [place]
    assert findings(path)["white-space-in-text"] == 1


def test_other_texts_do_not_agree() -> None:
    assert not agree("Green Hall", "Green Hill") and not agree(" ", "\n") and not agree("", "")


def test_crlf_counted_once_is_recognised_and_keeps_what_refers_to_the_entity(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_bytes(b"Bo ran.\r\nBo hid.\r\nBo sat.\r\n")
    (tmp_path / "in" / "a.ann").write_text("T1\tP 8 10\tBo\nT2\tP 16 18\tBo\nR1\tsame Arg1:T1 Arg2:T2\n", "utf-8")
    expected = "T1\tP 9 11\tBo\nT2\tP 18 20\tBo\nR1\tsame Arg1:T1 Arg2:T2\n"
    repair(read_source(tmp_path / "in"), tmp_path / "out")
    assert (tmp_path / "out" / "a.ann").read_text("utf-8") == expected
    documents = formats.read(tmp_path / "in", options=Options(offsets="crlf")).documents
    formats.write(tmp_path / "again", documents, "brat")
    assert (tmp_path / "again" / "a.ann").read_text("utf-8") == expected


def test_borders_are_judged_and_blanks_at_the_edges_trimmed(tmp_path: Path) -> None:
    rows = (row(0, 5, "lung "), row(1, 4, "ung"), row(5, 6, "患"), row(7, 10, "กขค"))
    path = write(tmp_path / "a.jsonl", native("lung 患者กขคง", *rows))
    assert {name: findings(path).get(name) for name in ("edge-space", "cut-word")} == {"edge-space": 1, "cut-word": 1}
    repair(read_source(path), tmp_path / "out.jsonl")
    assert found(tmp_path / "out.jsonl")[0] == (0, 4, "lung")


def test_spellings_and_files_of_labels_are_compared(tmp_path: Path) -> None:
    first = write(
        tmp_path / "a.jsonl", native("ab", row(0, 1, "a", "Sym"), row(1, 2, "b", "ｓｙｍ"), row(0, 2, "ab", "d"))
    )
    second = write(tmp_path / "b.jsonl", native("cd", row(0, 1, "c", "Sym"), row(1, 2, "d", "ｓｙｍ")))
    counts = findings(first, second)
    assert (counts["label-spelling"], counts["label-in-one-file"]) == (1, 1)
    assert "label-in-one-file" not in findings(first)


TASK = '{"id": 1, "data": {"text": %s}, "annotations": [{"id": 2, "result": [%s]}]%s}'
LABEL = '{"id": "a", "type": "labels", "value": {"start": 0, "end": 4, %s"labels": ["b"]}}'
CHOICE = '{"id": "c", "type": "choices", "value": {"choices": ["x"]}}'


def test_of_equal_spans_the_higher_score_is_written_flat(tmp_path: Path) -> None:
    scored = (Entity(0, 2, "a", 0.1), Entity(0, 2, "b", 0.9))
    crossing = (Entity(0, 2, "a", 0.1), Entity(1, 3, "b", 0.9))
    unscored = (Entity(0, 2, "a", 0.99), Entity(0, 2, "b"))
    for nested in ("outermost", "innermost"):
        for number, entities in enumerate((scored, crossing, unscored)):
            path = tmp_path / f"{nested}{number}.bio"
            formats.write(path, [Document("d", "肺部炎", entities)], "conll", Options(nested=nested))
            kept = [entity.label for entity in formats.read(path, "conll").documents[0].entities]
            assert kept == ["b"]


def test_an_entity_is_not_trimmed_where_it_is_in_doubt_what_its_offset_counts(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"id": 1, "text": "One.\r\nMary and Bo.", "label": [[5, 9, "PER"]]}) + "\n")
    assert {"offset-unit", "edge-space"} <= findings(path).keys()
    repair(read_source(path), tmp_path / "fixed.jsonl")
    (document,) = formats.read(tmp_path / "fixed.jsonl").documents
    assert (document.entities[0].start, document.entities[0].end) == (5, 9)
