"""Uncertain documents: which ones are chosen, and the file in which a person can correct them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from spantune.core import (
    ConfigError,
    DataError,
    Document,
    Entity,
    Extraction,
    Label,
    Problem,
    ProblemKind,
    Status,
    to_document,
)
from spantune.data import formats
from spantune.extraction import Tally, Target, partial
from spantune.extraction.uncertainty import LeastSure

LABELS = (Label(code="Person"), Label(code='A&"<B>', name="odd", description="a sign"))


def extraction(id: str, text: str, *scores: float | None, **how: object) -> Extraction:
    """Return an extraction with one entity for each score."""
    entities = tuple(Entity(index, index + 1, "Person", score) for index, score in enumerate(scores))
    return Extraction(Document(id, text, entities), **how)  # type: ignore[arg-type]


def pool() -> list[Extraction]:
    wrong = (Problem(ProblemKind.UNGROUNDED, "x"),)
    return [
        extraction("sure", "aaaa", 0.99, 0.98),
        extraction("none", "bbbb"),
        extraction("weak", "cccc", 0.99, 0.2),
        extraction("weak too", "dddd", 0.2),
        extraction("again", "cccc", 0.01),
        extraction("failed", "eeee", status=Status.FAILED, problems=(Problem(ProblemKind.SERVER, "gone"),)),
        extraction("wrong", "ffff", 0.9, problems=wrong),
        extraction("half", "gggg", 0.5),
    ]


def test_problems_come_first_then_the_lowest_score_and_equals_as_they_came() -> None:
    least_sure = LeastSure(5)
    chosen = least_sure.choose(map(to_document, pool()))
    assert [document.id for document in chosen] == ["wrong", "weak", "weak too", "half", "sure"]
    assert (least_sure.repeated, least_sure.unscored) == (1, 0)
    assert len(LeastSure(99).choose(map(to_document, pool()))) == 6
    unscored = LeastSure(2)
    assert [d.id for d in unscored.choose(to_document(extraction(i, i, None)) for i in "ab")] == ["a", "b"]
    assert unscored.unscored == 2


def test_label_studio_gets_them_as_predictions_with_its_interface(tmp_path: Path) -> None:
    out = tmp_path / "review.json"
    target = Target(out, "label_studio", tmp_path / "page.html", uncertain=3, labels=LABELS)
    target.check([])
    tally = Tally()
    target.write(iter(pool()), tally)
    tasks = json.loads(out.read_text(encoding="utf-8"))
    assert [task["meta"]["spantune"]["id"] for task in tasks] == ["wrong", "weak", "weak too"]
    assert all(set(task) == {"data", "meta", "predictions"} for task in tasks)
    assert "problems" not in json.dumps(tasks)
    assert (tally.chosen, tally.documents, tally.failed) == (3, 8, 1)
    assert tally.notes == {"document passed over: its text is that of an earlier one": 1}
    root = ET.fromstring((tmp_path / "review.xml").read_text(encoding="utf-8"))
    tags = root.findall("./Labels/Label")
    assert [tag.get("value") for tag in tags] == [label.code for label in LABELS]
    assert tags[1].get("hint") == "odd: a sign" and len({tag.get("background") for tag in tags}) == 2
    (region, *_) = tasks[0]["predictions"][0]["result"]
    labels, text = root.find("Labels"), root.find("Text")
    assert labels is not None and text is not None
    assert (labels.get("name"), labels.get("toName")) == (region["from_name"], region["to_name"])
    assert text.get("name") == region["to_name"] and text.get("value") == "$text"
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "3 documents" in page and not partial(out).exists()
    assert "<dt>with problems</dt><dd>1</dd>" in page
    with pytest.raises(ConfigError, match=r"review\.json exists"):
        target.check([])


def test_a_text_without_scores_is_a_prediction_all_the_same(tmp_path: Path) -> None:
    out = tmp_path / "review.json"
    Target(out, "label_studio", uncertain=2, labels=LABELS).write([extraction("a", "aa", None)], Tally())
    (task,) = json.loads(out.read_text(encoding="utf-8"))
    assert "annotations" not in task and len(task["predictions"]) == 1


def test_the_interface_shows_the_field_that_the_texts_are_in(tmp_path: Path) -> None:
    source = tmp_path / "in.json"
    source.write_text('[{"id": 1, "data": {"note": "lung"}, "annotations": [{"id": 2, "result": []}]}]')
    (document,) = formats.read(source).documents
    out, tally = tmp_path / "out.json", Tally()
    Target(out, "label_studio", labels=LABELS).write([Extraction(document), extraction("a", "aa", 0.5)], tally)
    assert 'value="$note"' in (tmp_path / "out.xml").read_text(encoding="utf-8")
    assert tally.notes["document whose text is not in the field that the labelling interface shows"] == 1


def test_native_keeps_the_problems_and_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    def broken() -> Iterator[Extraction]:
        yield from pool()[:3]
        raise DataError("the machine is gone")

    out = tmp_path / "review.jsonl"
    with pytest.raises(DataError):
        Target(out, uncertain=2).write(broken(), Tally())
    resumed = Target(out, uncertain=2, resume=True)
    resumed.check([])
    items = iter([item.document for item in pool()])
    assert resumed.begin(items).documents == 3
    tally = Tally()
    resumed.write(pool()[3:], tally)
    documents = formats.read(out, "native").documents
    assert [document.id for document in documents] == ["wrong", "weak"]
    assert documents[0].meta["status"] == "stopped" and not partial(out).exists()


def test_names_that_would_clash_and_labels_that_xml_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="labelling interface"):
        Target(tmp_path / "a.xml", "label_studio", labels=LABELS).check([])
    with pytest.raises(DataError, match="cannot hold"):
        Target(tmp_path / "a.json", "label_studio", labels=(Label(code="a\x1bb"),)).check([])
