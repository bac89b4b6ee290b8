"""Input files are found, divided into parts and read as one process reads them, without Ray."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from spantune.core import ConfigError, DataError, as_extraction
from spantune.extraction.inputs import Texts
from spantune.extraction.scale import shards as module
from spantune.extraction.scale.shards import Shard, part_size, read, require_unique, shards_of, survey
from spantune.extraction.scale.sources import Source, find_sources

HOSTILE = b"\xef\xbb\xbf\xe7\x96\xb9\r\n\n\xb7\xa2\n\xe3\x80\x80\n\xe7\x98\xa4\n\xe7\x97\xb0"
"""A byte-order mark, CRLF, a blank line, a line that is not UTF-8, a line of white space, and no final line end."""


def divided(sources: list[Source], size: int) -> list[Shard]:
    surveys = [survey(source, len(sources) > 1) for source in sources]
    require_unique(sources, surveys)
    return shards_of(sources, [found.marks for found in surveys], size)


def documents_of(inputs: list[str], size: int) -> list[tuple[str, str, str]]:
    sources = find_sources(inputs)
    found = []
    for shard in divided(sources, size):
        part = [as_extraction(d) for d in read(shard, Counter(), several=len(sources) > 1)]
        assert len(part) == shard.documents > 0
        found += part
    return [(e.document.id, e.document.text, "".join(p.found for p in e.problems)) for e in found]


def test_text_and_jsonl_are_read_as_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP", 1)
    text, jsonl = tmp_path / "a.txt", tmp_path / "b.jsonl"
    text.write_bytes(HOSTILE)
    lines = ['{"text": "疹"}', "", '{"id": "x", "text": "瘤", "meta": {"k": 1}}', "{broken", '{"id": 3, "text": "痰"}']
    jsonl.write_text("\n".join(lines), encoding="utf-8")
    for files in ([str(text)], [str(jsonl)]):
        expected = [
            as_extraction(d)
            for d in Texts.open(files, "text" if files[0].endswith("txt") else "native").read(Counter())
        ]
        rows = [(e.document.id, e.document.text) for e in expected]
        for size in (1, 2, 100):
            found = documents_of(files, size)
            assert [row[1] for row in found] == [row[1] for row in rows]
            assert [bool(row[2]) for row in found] == [bool(e.problems) for e in expected]
            readable = [(row[0], row[1]) for row in found if not row[2]]
            assert readable == [row for row, e in zip(rows, expected, strict=True) if not e.problems]
    assert f"{jsonl}:4" in documents_of([str(jsonl)], 1)[2][2]  # the line number in the file, not in the part


def test_parquet_rows_are_read_by_their_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP", 2)
    file = tmp_path / "a.parquet"
    texts = [f"疹{number}" for number in range(9)]
    table = pyarrow.table({"id": list(range(9)), "other": texts, "text": [*texts[:8], None]})
    pyarrow.parquet.write_table(table, file, row_group_size=4)
    for size in (2, 3, 100):
        found = documents_of([str(file)], size)
        assert [row[:2] for row in found] == [(str(n), text) for n, text in enumerate([*texts[:8], ""])]
        assert "found null" in found[8][2] and f"{file}:9" in found[8][2]
    pyarrow.parquet.write_table(table.drop_columns(["text"]), file)
    with pytest.raises(DataError, match="has the columns id, other; expected a column text"):
        divided(find_sources([str(file)]), 5)


def test_marks_are_thinned_out_and_parts_are_even(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP", 1)
    monkeypatch.setattr(module, "MOST_MARKS", 8)
    file = tmp_path / "a.txt"
    file.write_text("疹\n" * 1000, encoding="utf-8")
    (source,) = find_sources([str(file)])
    assert 8 <= len(survey(source, False).marks) <= 17
    shards = divided([source], 200)
    assert sum(shard.documents for shard in shards) == 1000 and max(shard.documents for shard in shards) <= 200
    assert [part_size(*case) for case in ((10, 2), (800, 2), (10**6, 64), (10**9, 64))] == [1, 50, 1953, 100_000]


@pytest.mark.parametrize("inputs", [["{}"], ["{}/*.jsonl", "{}/sub"], ["file://{}"], ["file://{}/sub/*", "{}/a.jsonl"]])
def test_folders_globs_and_urls_find_files(tmp_path: Path, inputs: list[str]) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.jsonl", "sub/b.jsonl", "_plan.json", "._c.jsonl", "sub/notes.md"):
        if not (name.endswith("md") and "*" in inputs[0]):
            (tmp_path / name).write_text('{"text": "疹"}\n', encoding="utf-8")
    sources = find_sources([name.format(tmp_path) for name in inputs])
    assert {Path(source.path).name for source in sources} == {"a.jsonl", "b.jsonl"}
    assert len({id for id, _, _ in documents_of([source.path for source in sources], 9)}) == 2


def test_bad_inputs_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\n")
    for path, error, match in (
        (str(tmp_path / "a.csv"), DataError, "ends? in .jsonl, .ndjson, .txt, .parquet"),
        (str(tmp_path / "none.jsonl"), DataError, "there is no file"),
        ("s3://key:secret@bucket/a", ConfigError, r"^s3://bucket/a: a URL holds no credentials"),
        ("-", ConfigError, "not stdin"),
        ("nope://x/a", DataError, "cannot be reached"),
    ):
        with pytest.raises(error, match=match):
            find_sources([path])
    with pytest.raises(ConfigError, match="convert the corpus first"):
        find_sources([str(tmp_path)], "brat")


def test_a_repeated_id_names_both_places(tmp_path: Path) -> None:
    one, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    one.write_text("".join(json.dumps({"id": str(n), "text": "疹"}) + "\n" for n in range(5)))
    other.write_text('{"text": "疹"}\n\n{"id": "3", "text": "疹"}\n')
    with pytest.raises(DataError, match=rf"{other}:3, field id: the id '3' is repeated; {one}:4 has it too"):
        divided(find_sources([str(one), str(other)]), 5)
