"""The page of an extraction: complete, escaped, in the task's colours, and with a threshold that hides entities."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.chromium import BROWSER, driven
from spantune.core import DataError, Document, Entity, Extraction, Problem, ProblemKind, Status, TaskSpec, parse_config
from spantune.metrics import Calibration
from spantune.report import ExtractionView, write_extractions

VIEW = ExtractionView(
    "found & <i>kept</i>", {"sym": "symptom", "dis": "disease"}, 0.5, {"dis": 0.7}, {"model": "a <b> model"}
)


def extractions() -> list[Extraction]:
    """60 documents with a `dis` of falling score, one that failed, and one with unusual label and text."""
    made = []
    for number in range(60):
        entity = Entity(0, 3, "dis", 0.99 - number / 100)
        text = f"flu {number}"
        kept = (entity.score or 0) >= 0.7
        document = Document(f"d{number}", text, (entity,) if kept else ())
        made.append(Extraction(document, below_threshold=() if kept else (entity,)))
    problem = Problem(ProblemKind.REFUSED, "the text is <b>too long</b>")
    made.append(Extraction(Document("failed", "x"), status=Status.REFUSED, problems=(problem,)))
    odd = (Entity(0, 8, "</b>odd"), Entity(0, 3, "sym", 0.6))
    made.append(Extraction(Document("odd", "</script><img src=x>", odd)))
    return made


def written(tmp_path: Path, made: list[Extraction], view: ExtractionView = VIEW) -> str:
    write_extractions(tmp_path / "page.html", made, view)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def rows(markup: str) -> list[Any]:
    found = re.search(r'<script type="application/json" id="documents">(.*?)</script>', markup, re.DOTALL)
    assert found
    return list(json.loads(found[1]))


def test_a_document_has_its_entities_scores_names_status_and_problems(tmp_path: Path) -> None:
    found = rows(written(tmp_path, extractions()))
    assert found[0][:6] == ["d0", "flu 0", [[1, 0.99, 0]], "", 0, []]
    assert 'data-tag="disease 0.99"' in found[0][6] and "under entity-1" in found[0][6]
    assert found[59][2] == [[1, 0.4, 1]] and "data-left-out" in found[59][6] and "data-left-out" not in found[0][6]
    assert found[60][3:6] == ["refused", 1, ["refused: the text is <b>too long</b>"]]
    assert found[61][2] == [[0, 0.6, 0], [2, None, 0]]


def test_figures_and_thresholds_are_told_and_everything_is_escaped(tmp_path: Path) -> None:
    markup = written(tmp_path, extractions())
    for name, value in {
        "documents": 62,
        "entities": 32,
        "without entities": 31,
        "with problems": 1,
        "failed": 1,
    }.items():
        assert f"<dt>{name}</dt><dd>{value}</dd>" in markup
    assert (
        "threshold 0.50, and by label disease 0.70." in markup
        and "Entities without a score are always shown: 1." in markup
    )
    assert 'min="0" max="1" step="0.01" value="0.5"' in markup
    assert markup.count("<script") == markup.count("</script>") == 2
    assert (
        not re.search(r"<img|<i>kept|</b>odd|<b>(?! ?model)too|a <b> model", markup) and "a &lt;b&gt; model" in markup
    )


def test_without_scores_there_is_no_slider(tmp_path: Path) -> None:
    bare = [Extraction(Document("a", "flu", (Entity(0, 3, "dis"),)))]
    markup = written(tmp_path, bare, ExtractionView("x"))
    assert 'type="range"' not in markup and "have no scores" in markup
    assert "There are no entities" in written(tmp_path, [Extraction(Document("a", "flu"))], ExtractionView("x"))
    with pytest.raises(DataError, match="no documents"):
        write_extractions(tmp_path / "none.html", [], VIEW)


def test_the_view_of_a_run_has_its_names_thresholds_and_facts(tmp_path: Path) -> None:
    task = {"labels": [{"code": "dis", "name": "disease"}, "bod"], "instruction": "Find entities."}
    recipe = {"model": {"source": "x"}, "task": task, "data": {"train": "t"}, "lora": {"rank": 16}}
    parse_config(recipe).save(tmp_path)
    TaskSpec.model_validate({**task, "labels": [{"code": "dis", "name": "disease"}, {"code": "bod"}]}).save(tmp_path)
    (tmp_path / "environment.json").write_text('{"device": "cpu", "spantune": "1.2"}', encoding="utf-8")
    Calibration(threshold=0.3, label_thresholds={"bod": 0.4}).save(tmp_path)
    view = ExtractionView.of_run(tmp_path)
    assert (dict(view.names), view.threshold, view.label_thresholds) == (
        {"dis": "disease", "bod": "bod"},
        0.3,
        {"bod": 0.4},
    )
    assert view.head["model"] == "x (auto), LoRA of rank 16" and view.head["spantune"] == "1.2"
    assert "device" not in view.head  # the run's device is that of training
    assert ExtractionView.of_run(tmp_path, 0.0).threshold is None
    assert replace(view, threshold=None, label_thresholds={}).sentence.endswith("so the slider begins at 0.")


DRIVE = """
const seen = [];
const isVisible = (tag) => getComputedStyle(tag).display !== "none";
const visible = () => [...list.querySelectorAll(".tag")].filter(isVisible).length;
const note = (name) => seen.push([name, document.querySelector(".place").textContent, visible(),
  lowestValue.textContent, location.hash]);
const move = (value) => { lowest.value = value; lowest.dispatchEvent(new Event("input", { bubbles: true })); };
const which = (value) => { form.elements.which.value = value; filter(); };
note("start"); move("0.95"); note("higher"); move("0.4"); note("lower"); which("with"); note("with");
form.reset(); filter(); note("again"); which("with"); note("kept"); which("problem"); note("problem");
seen.push(["why", list.querySelector(".answer").textContent]); which("");
location.hash = "#show?score=0.9&type=dis"; recall(); note("link");
seen.push(["width", document.documentElement.scrollWidth <= innerWidth, list.querySelectorAll("img").length]);
const out = document.createElement("pre"); out.id = "seen"; out.textContent = JSON.stringify(seen);
document.body.append(out);
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_the_slider_hides_what_is_under_it_and_begins_at_the_thresholds_of_the_run(tmp_path: Path) -> None:
    written(tmp_path, extractions())
    assert driven(tmp_path / "page.html", DRIVE, 390) == [
        ["start", "1–50 of 62", 30, "0.50 (32 of 62 entities)", ""],
        ["higher", "1–50 of 62", 5, "0.95 (6 of 62 entities)", "#show?score=0.95"],
        ["lower", "1–50 of 62", 50, "0.40 (62 of 62 entities)", "#show?score=0.4"],
        ["with", "1–50 of 61", 50, "0.40 (62 of 62 entities)", "#show?score=0.4"],
        ["again", "1–50 of 62", 30, "0.50 (32 of 62 entities)", "#show?score=0.4"],
        ["kept", "1–31 of 31", 32, "0.50 (32 of 62 entities)", "#show?score=0.4"],
        ["problem", "1–1 of 1", 0, "0.50 (32 of 62 entities)", "#show?score=0.4"],
        ["why", "refused; refused: the text is <b>too long</b>"],
        ["link", "1–10 of 10", 10, "0.90 (11 of 62 entities)", "#show?score=0.9&type=dis"],
        ["width", True, 0],
    ]
