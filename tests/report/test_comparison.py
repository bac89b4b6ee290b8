"""The report of several systems: their figures, the differences, and the documents in which they differ."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.chromium import BROWSER, driven
from spantune.core import ConfigError, DataError, Document, Entity
from spantune.metrics import Comparison, Gap, System, compare
from spantune.report import write_comparison

LABELS = {"dis": "disease", "bod": "body"}
EVIL = "</script><script>document.title='run'</script><img src=x> \u80ba\u764c"


def systems() -> list[System]:
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
    return [System("run <1>", gold, first), System("run|2", gold, second)]


def comparison() -> Comparison:
    """The comparison of `systems`, with values of the difference that are easy to find."""
    found = compare(systems(), list(LABELS), resamples=50)
    gaps = {"dis": Gap(-0.5, -0.7, -0.3, 0.0001, 0.0002)}
    difference = replace(found.differences[0], micro=Gap(0.123, -0.01, 0.25, 0.02, 0.04), labels=gaps)
    return replace(found, differences=(difference,))


def written(tmp_path: Path) -> str:
    write_comparison(tmp_path, comparison(), systems(), LABELS, "dev <1>.jsonl")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "report.md", "scores.json"]
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_only_documents_on_which_systems_differ_are_in_the_page_with_a_drawing_each(tmp_path: Path) -> None:
    markup = written(tmp_path)
    data = re.search(r'<script type="application/json" id="documents">(.*?)</script>', markup, re.DOTALL)
    assert data
    found = json.loads(data[1])
    assert found["columns"] == ["gold", "run <1>", "run|2"]
    assert [(row[0], row[4]) for row in found["rows"]] == [("evil", [0, 1]), ("other", [1, 0]), ("tie", [1, 1])]
    drawings = found["rows"][0][2]
    assert drawings[1] == 0 and 'data-tag="dis \u2194 boundary"' in drawings[2] and "boundary" not in drawings[0]


def test_figures_differences_and_sentence_are_shown_escaped(tmp_path: Path) -> None:
    markup = written(tmp_path)
    for shown in (
        "The F1 of run|2 is 12.3 points higher than that of run &lt;1&gt;",
        "dev &lt;1&gt;.jsonl",
        "+12.3",
        "\u22121.0 to +25.0",
        "0.040",
        "\u221250.0",
        "&lt; 0.001",
        "disease",
        "<title>all: +12.3 (\u22121 to +25)</title>",
    ):
        assert shown in markup
    assert markup.count("✓</span>") == 1  # the difference of dis is significant, that of all labels is not
    chips = re.findall(r'data-place="(\d+)"><b>([^<]+)</b>', markup)
    assert [chip for chip in chips if chip[1] not in LABELS] == [
        ("0", "correct"), ("2", "boundary"), ("4", "missed"), ("5", "spurious"),
    ]  # fmt: skip
    assert markup.count("<script") == markup.count("</script>") == 2 and "<img" not in markup


def test_markdown_and_json_hold_the_same_figures(tmp_path: Path) -> None:
    written(tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# run \\<1\\> · run\\|2\n\ndata: dev \\<1\\>.jsonl · 4 documents · protocol: cblue\n")
    assert "| run\\|2 | +12.3 | \u22121.0 to +25.0 | 0.040 |" in text and "12.3 points higher" in text
    assert re.search(r"\| dis \| [\d.]+ \| [\d.]+ \| \u221250.0 \| \u221270.0 to \u221230.0 \| < 0.001 \|", text)
    found = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert found["differences"] == comparison().as_dict()["differences"] and found["data"] == "dev <1>.jsonl"
    assert found["systems"]["run|2"]["errors"]["boundary"] == 1
    assert found["systems"]["run|2"]["strict"] == comparison().systems["run|2"].as_dict()["strict"]


def test_systems_of_another_comparison_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    first, second = systems()
    for others in ([first], [second, first], [first, replace(second, name="third")]):
        with pytest.raises(ConfigError, match="expected the systems that were compared"):
            write_comparison(tmp_path, comparison(), others, LABELS)
    with pytest.raises(DataError, match="is predicted only"):
        write_comparison(tmp_path, comparison(), [replace(first, gold=first.gold[:1]), second], LABELS)
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
    written(tmp_path)
    assert driven(tmp_path / "report.html", DRIVE, 390) == [
        ["1–3 of 3", "evil"],
        ["1–1 of 1", "evil"],
        ["1–1 of 1", "other"],
        ["1–1 of 1", "other"],
        [3, True, "run <1> · run|2 – spantune report", 0, True],
    ]
