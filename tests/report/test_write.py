"""The report page: well formed, self-contained, escaped and complete, also for unusual runs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from helpers.chromium import BROWSER, driven
from spantune.core import (
    DataError,
    Document,
    Entity,
    Extraction,
    Prediction,
    Problem,
    ProblemKind,
    Status,
    as_extraction,
)
from spantune.metrics import Figure, score
from spantune.metrics.figures import FalseAlarms
from spantune.report import CalibrationView, Report, write_report

LABELS = {"dis": "disease", "bod": "body", "sym": "symptom"}
VOID = {"meta", "link", "img", "br", "hr", "input"}
EVIL = "<script>alert(1)</script> see https://example.org/x.js & \u80ba\u764c\n\U0001f600 e\u0301"


class Page(HTMLParser):
    """Parses a page: balanced elements, attributes, the text, and the text of each annotated document."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[tuple[str, str]] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(markup)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.elements.append((tag, values))
        if tag not in VOID:
            self.stack.append((tag, values.get("class", "")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack.pop()[0] == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if not any(tag in ("style", "script") for tag, _ in self.stack):
            self.text += data

    def names(self) -> list[str]:
        return [tag for tag, _ in self.elements]


def report_of(gold: Sequence[Document], predicted: Sequence[Prediction]) -> Report:
    documents = [as_extraction(prediction).document for prediction in predicted]
    scores = score(gold, documents, list(LABELS), resamples=100)
    return Report(
        title="run & <b>title</b>",
        before=scores,
        after=scores,
        labels=LABELS,
        curve=[(1, 2.0), (2, 1.0), (3, 0.5)],
        evaluations=[(0, 0.1, 0.05, 0.2), (3, 0.6, None, None)],
        gold=gold,
        predicted=predicted,
        facts={"speed": "12 examples/s"},
        config="run:\n  name: <x>\n",
        environment={"device": "CPU & more"},
        rates={"non_stop_rate": 0.125},
        calibration=CalibrationView(
            bins=[(0.0, 0.5, 3, 0.4, 0.2), (0.5, 1.0, 7, 0.8, 0.75)],
            ece=0.067,
            ece_after=0.021,
            temperature=1.3,
            curve=[(0.0, 0.5, 0.9, 0.6), (0.4, 0.6, 0.8, 0.7)],
            threshold=0.4,
            label_thresholds={"dis": 0.5},
            data="dev <d>.jsonl",
            stored=True,
            notes=["some <note>"],
        ),
        notes=["nothing <else>"],
        run="run <r>",
        data="data.jsonl",
        date="2026-11-24",
    )


def corpus() -> tuple[list[Document], list[Document]]:
    gold = [
        Document("evil", EVIL, (Entity(0, 8, "dis"), Entity(4, 25, "sym"), Entity(5, 7, "bod"))),
        Document("good", "abc", (Entity(0, 1, "bod"),)),
    ]
    return gold, [gold[0].with_entities([Entity(0, 8, "bod"), Entity(4, 24, "sym")]), gold[1]]


def write(tmp_path: Path, report: Report) -> tuple[str, Page]:
    write_report(tmp_path, report)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "report.md", "scores.json"]
    markup = (tmp_path / "report.html").read_text(encoding="utf-8")
    return markup, Page(markup)


def rows(markup: str) -> list[Any]:
    found = re.search(r'<script type="application/json" id="documents">(.*?)</script>', markup, re.DOTALL)
    assert found
    return list(json.loads(found[1])["rows"])


def test_page_has_language_title_and_headings(tmp_path: Path):
    markup, page = write(tmp_path, report_of(*corpus()))
    assert markup.lstrip().startswith("<!DOCTYPE html>")
    assert ("html", {"lang": "en"}) in page.elements
    head = page.names()[: page.names().index("body")]
    assert head.count("title") == page.names().count("h1") == page.names().count("main") == 1
    levels = [int(tag[1]) for tag in page.names() if re.fullmatch(r"h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in zip([0, *levels], levels, strict=False))
    ids = [values["id"] for _, values in page.elements if "id" in values]
    assert len(ids) == len(set(ids))
    assert {values["aria-labelledby"] for _, values in page.elements if "aria-labelledby" in values} <= set(ids)


def test_page_loads_nothing_and_its_policy_knows_its_own_script_only(tmp_path: Path):
    markup, page = write(tmp_path, report_of(*corpus()))
    loading = {"src", "srcset", "data", "action", "poster", "xlink:href"}
    assert not [values for _, values in page.elements if loading & values.keys()]
    assert {values["href"][:1] for _, values in page.elements if "href" in values} == {"#"}
    assert not {"link", "iframe", "object", "embed", "img", "base"} & set(page.names())
    assert page.names().count("script") == 2 and "url(" not in markup and "@import" not in markup
    policy = next(values["content"] for tag, values in page.elements if tag == "meta" and "http-equiv" in values)
    script = re.search(r"<script>(.*?)</script>", markup, re.DOTALL)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_everything_that_is_given_is_escaped_and_shown(tmp_path: Path):
    gold, predicted = corpus()
    problem = Problem(ProblemKind.INVALID, "</script><b>")
    evil = Extraction(Document("evil", EVIL), "<i>raw</i></script>", problems=(problem,))
    markup, page = write(tmp_path, report_of(gold, [evil, predicted[1]]))
    assert markup.count("<script") == markup.count("</script>") == 2 and "<b>title" not in markup
    assert "&lt;script&gt;" in rows(markup)[0][2][0] and rows(markup)[0][5] == [[["invalid answer", ["</script><b>"]]]]
    assert [row[6] for row in rows(markup)] == [["<i>raw</i></script>"], [""]] and "<i>raw" not in markup
    for text in ("run & <b>title</b>", "run <r>", "name: <x>", "CPU & more", "12 examples/s", "disease", "12.5 %"):
        assert text in page.text


def test_documents_are_in_the_page_as_drawn_with_their_errors_those_with_errors_first(tmp_path: Path):
    gold, predicted = corpus()
    markup, _ = write(tmp_path, report_of(gold[::-1], predicted[::-1]))
    evil, good = rows(markup)
    assert (evil[0], evil[1], evil[4]) == ("evil", EVIL, [3]) and (good[0], good[2][1], good[4]) == ("good", 0, [0])
    tags = re.findall('data-tag="([^"]*)"', evil[2][0]), re.findall('data-tag="([^"]*)"', evil[2][1])
    assert tags == (
        ["bod \u2212 missed", "dis \u2260 type", "sym \u2194 boundary"],
        ["bod \u2260 type", "sym \u2194 boundary"],
    )
    labels, none, size = list(LABELS), 3, 4
    codes = [(code // size // size, code // size % size, code % size) for code in evil[3]]
    place = {label: index for index, label in enumerate(labels)}
    assert codes == [(1, place["dis"], place["bod"]), (2, place["sym"], place["sym"]), (4, place["bod"], none)]


def test_matrix_names_cells_by_place_and_counts_other_boundaries(tmp_path: Path):
    _, page = write(tmp_path, report_of(*corpus()))
    cells = [values["value"] for tag, values in page.elements if tag == "button" and "value" in values]
    assert cells == ["0,1", "1,1", "1,3", "2,2"]
    assert "1 \u2194" in page.text


def test_a_figure_on_the_documents_that_chose_the_adapter_says_so(tmp_path: Path) -> None:
    report = report_of(*corpus())
    sentence = "Measured on the dev documents, which also chose the adapter"
    for split in ("dev", "test"):
        _, page = write(tmp_path, replace(report, f1_on=split))
        assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["f1_on"] == split
        for text in (page.text, (tmp_path / "report.md").read_text(encoding="utf-8")):
            assert (sentence in text) is (split == "dev")
    _, page = write(tmp_path, replace(report, f1_on="dev", written=False))
    assert f"{sentence} and the thresholds: expect less" in page.text


def test_scores_file_has_scores_rates_kinds_confusion_and_origin(tmp_path: Path):
    gold, predicted = corpus()
    cut = Extraction(Document("good", "abc", predicted[1].entities), '{"raw</pre>', Status.LENGTH)
    report = report_of(gold, [predicted[0], cut])
    write_report(tmp_path, report)
    found = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert (found["run"], found["data"], found["date"]) == ("run <r>", "data.jsonl", "2026-11-24")
    assert found["strict"] == report.after.as_dict()["strict"] and found["rates"] == {"non_stop_rate": 0.125}
    kinds = {"correct": 1, "type": 1, "boundary": 1, "boundary+type": 0, "missed": 1, "spurious": 0}
    assert found["errors"] == kinds and found["answers"]["truncated by length"] == 1
    counts = [[0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert found["confusion"] == {"labels": [*LABELS, "none"], "counts": counts, "boundary": [0, 0, 1]}
    thresholds = {"threshold": 0.4, "label_thresholds": {"dis": 0.5}}
    origin = {"data": "dev <d>.jsonl", "stored": True, "notes": ["some <note>"]}
    assert found["calibration"] == {"ece": 0.067, "ece_after": 0.021, "temperature": 1.3, **thresholds, **origin}
    assert found["report_notes"] == ["nothing <else>"] and found["notes"] == report.after.notes


def test_markdown_has_the_figures_as_sound_tables(tmp_path: Path):
    write_report(tmp_path, report_of(*corpus()))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert (
        text.startswith("# run \\& \\<b\\>title\\</b\\>\n")
        and "**28.6**" in text
        and "error 6.7 points, 2.1 after" in text
    )
    widths = [[len(re.findall(r"(?<!\\)\|", line)) for line in part.splitlines()] for part in text.split("\n\n")]
    assert all(len(set(part)) == 1 for part, lines in zip(widths, text.split("\n\n"), strict=True) if lines[0] == "|")
    assert "Fitted to dev \\<d\\>.jsonl" in text and "- nothing \\<else\\>" in text
    assert "| dis | 0 | 1 | 0 | 0 |" in text and "| bod | 0 | 1 | 0 | 1 |" in text and "```yaml\nrun:" in text


def test_other_ways_of_counting_are_shown(tmp_path: Path):
    report = report_of(*corpus())
    more = replace(
        report.after,
        partial=Figure(1.5, 3, 4),
        slices={"entity length": {"2\u20133": Figure(1, 2, 3)}},
        alarms=FalseAlarms(2, 1000, 3),
    )
    _, page = write(tmp_path, replace(report, after=more))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for shown in ("partial: overlap counts half", "2\u20133", "3.00 per 1,000 characters"):
        assert shown in page.text and shown in text
    assert (
        "| entity length: 2\u20133 | 40.0 | too few to say | 50.0 | 33.3 | 1 | 2 | 3 |" in text
        and "| 1.5 | 3 | 4 |" in text
    )


def test_headline_names_f1_interval_precision_and_change(tmp_path: Path):
    gold, predicted = corpus()
    report = report_of(gold, predicted)
    before = score(gold, [one.with_entities([]) for one in gold], list(LABELS), resamples=0)
    after = replace(report.after, micro=replace(report.after.micro, f1_low=0.123, f1_high=0.456))
    _, page = write(tmp_path, replace(report, before=before, after=after))
    for text in ("28.6", "95 % interval 12.3\u201345.6", "0.0 \u2192 28.6", "+28.6 points; before no interval"):
        assert text in page.text
    assert "1 of 3 predicted" in page.text and "1 of 4 gold" in page.text


def test_page_is_the_same_each_time(tmp_path: Path):
    assert write(tmp_path, report_of(*corpus()))[0] == write(tmp_path, report_of(*corpus()))[0]


def test_calibration_says_what_it_was_fitted_to_and_whether_it_applies(tmp_path: Path):
    report = report_of(*corpus())
    _, page = write(tmp_path, report)
    for said in (
        "Fitted to dev <d>.jsonl: expected calibration error 6.7 points, 2.1 after temperature 1.3; "
        "threshold 0.400, by label dis 0.500. The run stores it. Some <note>.",
        "Note: nothing <else>",
        "chosen threshold",
    ):
        assert said in page.text
    assert report.calibration
    by_label = replace(report.calibration, threshold=None)
    assert "1.3; thresholds by label dis 0.500. The run" in by_label.sentences
    bare = replace(report.calibration, threshold=None, label_thresholds={}, stored=False, data="", notes=())
    _, page = write(tmp_path, replace(report, calibration=bare))
    assert "Expected calibration error 6.7 points" in page.text and "no threshold. The run does not store" in page.text


def test_what_the_scores_met_is_noted_on_the_page(tmp_path: Path):
    gold, predicted = corpus()
    predicted[1] = predicted[1].with_entities([Entity(0, 1, "bod"), Entity(0, 1, "bod")])
    _, page = write(tmp_path, report_of(gold, predicted))
    assert "Note: 1 × predicted entity repeated in its document, counted once" in page.text
    assert "- 1 × predicted entity repeated" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_what_a_threshold_left_out_is_beside_the_prediction_and_no_kind_of_error(tmp_path: Path):
    gold, predicted = corpus()
    dropped = (Entity(1, 2, "bod", 0.125),)
    markup, _ = write(tmp_path, report_of(gold, [predicted[0], Extraction(predicted[1], below_threshold=dropped)]))
    good = rows(markup)[1]
    assert good[0] == "good" and good[4] == [0] and good[5] == [[["left out by the threshold", ["b bod 0.125"]]]]


@pytest.mark.parametrize("case", ["no documents", "no predictions", "no gold", "no before", "no charts", "no facts"])
def test_lacking_parts_do_not_break_the_page(tmp_path: Path, case: str):
    gold, predicted = corpus()
    if case == "no documents":
        gold, predicted = [], []
    elif case == "no predictions":
        predicted = [one.with_entities([]) for one in gold]
    elif case == "no gold":
        gold = [one.with_entities([]) for one in gold]
    report = report_of(gold, predicted)
    if case == "no before":
        report = replace(report, before=None)
    elif case == "no charts":
        report = replace(report, curve=[], evaluations=[], calibration=None)
    elif case == "no facts":
        report = replace(report, facts={}, rates={}, environment={}, config="", run="", data="", date="", notes=[])
    markup, page = write(tmp_path, report)
    assert sorted(row[1] for row in rows(markup)) == sorted(one.text for one in gold)
    assert ("Before \u2192 after" in page.text) == (case != "no before")
    assert page.names().count("svg") == (1 if case == "no charts" else 5)
    assert ("Key figures" in page.text) == (case != "no facts")


def test_documents_that_do_not_pair_are_refused(tmp_path: Path):
    gold, predicted = corpus()
    with pytest.raises(DataError, match="document 'good' is gold only"):
        write_report(tmp_path, replace(report_of(gold, predicted), predicted=predicted[:1]))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path):
    odd = [Document("a", "x\ud800")]
    with pytest.raises(DataError, match="surrogate"):
        write_report(tmp_path, report_of(odd, odd))
    with pytest.raises(DataError, match="no folder"):
        write_report(tmp_path / "none", report_of(*corpus()))
    assert list(tmp_path.iterdir()) == []


# --- in a browser --------------------------------------------------------------------------------------------------

DRIVE = """
const seen = [];
const note = (name) => seen.push([name, document.querySelector(".place").textContent, list.children.length,
  list.querySelector("h3")?.textContent ?? ""]);
const chip = (group, name) => [...form.querySelectorAll(`.${group} .chip`)].find((one) =>
  one.querySelector("b").textContent === name).firstChild;
const clear = () => { form.reset(); choose(null, ""); filter(); };
const told = (name) => seen.push([name, location.hash]);
note("all"); document.querySelector(".pager .on").click(); note("second"); clear();
chip("kinds", "missed").click(); note("missed");
chip("types", "dis").click(); note("missed dis"); told("kind and type");
clear();
chip("types", "bod").click(); note("bod"); clear();
form.elements.words.value = "ASPIRIN 1"; filter(); note("words"); clear();
form.elements.which.value = "right"; filter(); note("right");
form.elements.which.value = "wrong"; filter(); note("wrong");
clear(); cells.find((cell) => cell.value === "2,0").click(); note("cell"); told("pair"); cells[0].click(); clear();
const asked = (hash) => { location.hash = hash; recall(); };
asked("#show?kind=missed&type=dis&words=aspirin+1&page=7"); note("link");
seen.push(["words", form.elements.words.value]);
asked("#show?gold=sym&predicted=dis"); note("linked pair"); asked("#types"); note("part of the page");
asked(document.querySelector(".highlights a").hash); note("one document"); told("its address");
asked("#show?which=odd&kind=odd&gold=odd"); note("odd"); clear();
chip("kinds", "truncated by length").click(); note("cut");
seen.push(["answer", list.querySelector(".answer").textContent, list.querySelectorAll("article .sides > div").length]);
seen.push(["raw", list.querySelector("details pre").textContent, list.querySelectorAll("b").length]);
clear();
const evil = list.querySelector(".drawn");
seen.push(["text", evil.textContent === rows[0][TEXT], document.title, list.querySelectorAll("script,img").length]);
seen.push(["width", document.documentElement.scrollWidth <= innerWidth]);
const out = document.createElement("pre"); out.id = "seen"; out.textContent = JSON.stringify(seen);
document.body.append(out);
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_filters_find_errors_by_kind_type_text_and_cell_and_stand_in_the_address(tmp_path: Path):
    gold, predicted = corpus()
    for number in range(60):
        gold.append(Document(f"m{number}", f"Aspirin {number} mg", (Entity(0, 7, "dis"), Entity(8, 9, "sym"))))
        renamed = Entity(8, 9, "dis" if number < 5 else "sym")
        predicted.append(Document(gold[-1].id, gold[-1].text, (renamed,)))
    extractions = [
        Extraction(document, "<b>{raw", Status.LENGTH if document.id == "m7" else Status.STOPPED)
        for document in predicted
    ]
    write_report(tmp_path, report_of(gold, extractions))
    assert driven(tmp_path / "report.html", DRIVE, 390) == [
        ["all", "1–50 of 62", 50, "evil"],
        ["second", "51–62 of 62", 12, "m49"],
        ["missed", "1–50 of 61", 50, "evil"],
        ["missed dis", "1–50 of 60", 50, "m0"],
        ["kind and type", "#show?kind=missed&type=dis"],
        ["bod", "1–2 of 2", 2, "evil"],
        ["words", "1–11 of 11", 11, "m1"],
        ["right", "1–1 of 1", 1, "good"],
        ["wrong", "1–50 of 61", 50, "evil"],
        ["cell", "1–5 of 5", 5, "m0"],
        ["pair", "#show?gold=sym&predicted=dis"],
        ["link", "1–11 of 11", 11, "m1"],
        ["words", "aspirin 1"],
        ["linked pair", "1–5 of 5", 5, "m0"],
        ["part of the page", "1–5 of 5", 5, "m0"],
        ["one document", "1–1 of 1", 1, "m0"],
        ["its address", "#show?document=m0"],
        ["odd", "1–50 of 62", 50, "evil"],
        ["cut", "1–1 of 1", 1, "m7"],
        ["answer", "truncated by length", 2],
        ["raw", "<b>{raw", 0],
        ["text", True, "run & <b>title</b> – spantune report", 0],
        ["width", True],
    ]
