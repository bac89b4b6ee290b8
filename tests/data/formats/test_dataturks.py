"""DataTurks: inclusive end offsets, several labels, what is left out, and that the format is read-only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.corpora import file_of, spans
from helpers.refusal import assert_unreadable
from spantune.core import DataError, Document
from spantune.data import formats


def row(content: str, *annotation: tuple[list[str], int, int, str]) -> dict[str, object]:
    stated = [
        {"label": labels, "points": [{"start": start, "end": end, "text": text}]}
        for labels, start, end, text in annotation
    ]
    return {"content": content, "annotation": stated, "extras": None, "metadata": {"first_done_at": 1}}


def test_ends_are_inclusive_and_several_labels_are_one_entity_each(tmp_path: Path) -> None:
    rows = [
        row("Ada Roe, Rome", (["Name", "Author"], 0, 6, "Ada Roe"), ([], 9, 12, "Rome")),
        {"content": "Nobody.", "annotation": None, "extras": None},
    ]
    corpus = formats.read(file_of(tmp_path, "resumes.json", "".join(json.dumps(r) + "\n" for r in rows)))
    assert corpus.format == "dataturks"
    assert spans(corpus.documents) == [[("Ada Roe", 0, "Author"), ("Ada Roe", 0, "Name")], []]
    assert corpus.notes == {
        "annotation without a label left out": 1,
        "document without annotation: read as one without entities": 1,
        "id made from the document's number": 2,
    }


def test_a_text_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path, "bad.jsonl", [row("Ada Roe.", (["Name"], 0, 7, "Ada Roe"))])
    assert_unreadable(path, None, ["bad.jsonl:1, field annotation[0].points[0].text", "ends 8 characters", "has 7"])


def test_writing_is_refused_with_what_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dataturks can only be read; write one of native, "):
        formats.write(tmp_path / "x", [Document("d", "a")], "dataturks")
    assert list(tmp_path.iterdir()) == []
