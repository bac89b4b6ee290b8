"""The report of several runs: figures side by side, the given differences, and the documents where runs differ."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from chromium import BROWSER, driven
from spantune.compared import ComparedRun, Comparison, Difference, RunDifference, write_comparison
from spantune.document import Document, Entity
from spantune.errors import ConfigError, DataError
from spantune.metrics import score

LABELS = {"dis": "disease", "bod": "body"}
EVIL = "</script><script>document.title='run'</script><img src=x> \u80ba\u764c"


def comparison() -> Comparison:
    gold = [
        Document("evil", EVIL, (Entity(0, 8, "dis"),)),
        Document("same", "abc", (Entity(0, 1, "bod"),)),
        Document("other", "abcdef", (Entity(0, 1, "bod"), Entity(1, 3, "dis"))),
        Document("tie", "xyz"),
    ]
    first = [gold[0], gold[1].with_entities([]), gold[2].with_entities([Entity(0, 1, "bod")])]
    first.append(gold[3].with_entities([Entity(0, 1, "bod")]))
    second = [gold[0].with_entities([Entity(0, 7, "dis")]), gold[1].with_entities([]), gold[2]]
    second.append(gold[3].with_entities([Entity(0, 1, "dis")]))
    runs = [
        ComparedRun(name, score(gold, predicted, list(LABELS), resamples=50), predicted)
        for name, predicted in (("run <1>", first), ("run|2", second))
    ]
    difference = RunDifference(
        "run|2", Difference(0.123, -0.01, 0.25, 0.04), {"dis": Difference(-0.5)}, "It is <real>."
    )
    return Comparison("A & B", LABELS, gold, runs, [difference], "dev.jsonl", "2026-11-24")


def written(tmp_path: Path, given: Comparison) -> str:
    write_comparison(tmp_path, given)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "report.md", "scores.json"]
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_only_documents_on_which_runs_differ_are_in_the_page_with_a_drawing_a_run(tmp_path: Path) -> None:
    markup = written(tmp_path, comparison())
    data = re.search(r'<script type="application/json" id="documents">(.*?)</script>', markup, re.DOTALL)
    assert data
    found = json.loads(data[1])
    assert found["columns"] == ["gold", "run <1>", "run|2"]
    assert [(row[0], row[4]) for row in found["rows"]] == [("evil", [0, 1]), ("other", [1, 0]), ("tie", [1, 1])]
    drawings = found["rows"][0][2]
    assert drawings[1] == 0 and 'data-tag="dis \u2194 boundary"' in drawings[2] and "boundary" not in drawings[0]


def test_figures_differences_and_sentence_are_shown_escaped(tmp_path: Path) -> None:
    markup = written(tmp_path, comparison())
    for shown in (
        "It is &lt;real&gt;.",
        "run &lt;1&gt;",
        "+12.3",
        "\u22121.0 to +25.0",
        "0.04",
        "\u221250.0",
        "disease",
    ):
        assert shown in markup
    assert markup.count("<script") == markup.count("</script>") == 2 and "<img" not in markup


def test_markdown_and_json_hold_the_same_figures(tmp_path: Path) -> None:
    written(tmp_path, comparison())
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| run\\|2 | +12.3 | \u22121.0 to +25.0 | 0.04 |" in text and "It is \\<real\\>." in text
    assert re.search(r"\| dis \| [\d.]+ \| [\d.]+ \| \u221250.0 \| \u2013 \| \u2013 \|", text)
    found = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert found["differences"][0]["overall"] == {"f1": 0.123, "low": -0.01, "high": 0.25, "p": 0.04}
    assert found["runs"]["run|2"]["errors"]["boundary"] == 1 and found["data"] == "dev.jsonl"


def test_what_is_no_comparison_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    given = comparison()
    for runs, message in ((given.runs[:1], "two runs or more"), ([given.runs[0]] * 2, "under different names")):
        with pytest.raises(ConfigError, match=message):
            write_comparison(tmp_path, replace(given, runs=runs))
    with pytest.raises(ConfigError, match=r"expected a difference for each of \['run\|2'\], found \[\]"):
        write_comparison(tmp_path, replace(given, differences=[]))
    with pytest.raises(DataError, match="is predicted only"):
        write_comparison(tmp_path, replace(given, gold=given.gold[:1]))
    assert list(tmp_path.iterdir()) == []


DRIVE = """
const seen = [];
const note = () => seen.push([document.querySelector(".place").textContent,
  list.querySelector("h3")?.textContent ?? ""]);
note(); form.elements.which.value = "0"; filter(); note(); form.elements.which.value = "1"; filter(); note();
form.reset(); form.elements.words.value = "abc"; filter(); note();
form.elements.words.value = ""; filter();
seen.push([list.querySelectorAll("article:first-child h4").length,
  list.querySelector(".drawn").textContent === rows[0][TEXT],
  document.title, list.querySelectorAll("img,script").length, document.documentElement.scrollWidth <= innerWidth]);
const out = document.createElement("pre"); out.id = "seen"; out.textContent = JSON.stringify(seen);
document.body.append(out);
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_the_page_finds_where_a_run_has_the_fewest_errors(tmp_path: Path) -> None:
    written(tmp_path, comparison())
    assert driven(tmp_path / "report.html", DRIVE, 390) == [
        ["1–3 of 3", "evil"],
        ["1–1 of 1", "evil"],
        ["1–1 of 1", "other"],
        ["1–1 of 1", "other"],
        [3, True, "A & B – spantune report", 0, True],
    ]
