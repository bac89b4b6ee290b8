"""The report page: well formed, self-contained, escaped, complete, and not broken by odd runs."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from spantune.document import Document, Entity
from spantune.errors import DataError
from spantune.metrics import score
from spantune.report import SHOWN, Report, write_report

LABELS = {"dis": "disease", "bod": "body", "sym": "symptom"}
VOID = {"meta", "link", "img", "br", "hr", "input"}
EVIL = "<script>alert(1)</script> see https://example.org/x.js & \u80ba\u764c\n\U0001f600 e\u0301"


class Page(HTMLParser):
    """Reads a page: balanced elements, attributes, the text, and the text of each drawn document."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[tuple[str, str]] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.drawn: list[str] = []
        self.feed(markup)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.elements.append((tag, values))
        if values.get("class") == "drawn":
            self.drawn.append("")
        if tag not in VOID:
            self.stack.append((tag, values.get("class", "")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack.pop()[0] == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if any(tag == "style" for tag, _ in self.stack):
            return
        self.text += data
        if any(name == "drawn" for _, name in self.stack):
            self.drawn[-1] += data

    def names(self) -> list[str]:
        return [tag for tag, _ in self.elements]

    def tags(self) -> list[str]:
        return [values["data-tag"] for _, values in self.elements if "data-tag" in values]


def report_of(gold: list[Document], predicted: list[Document]) -> Report:
    scores = score(gold, predicted, list(LABELS), resamples=100)
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
    )


def corpus() -> tuple[list[Document], list[Document]]:
    gold = [
        Document("evil", EVIL, (Entity(0, 8, "dis"), Entity(4, 25, "sym"), Entity(5, 7, "bod"))),
        Document("good", "abc", (Entity(0, 1, "bod"),)),
    ]
    return gold, [gold[0].with_entities([Entity(0, 8, "bod"), Entity(4, 24, "sym")]), gold[1]]


def write(tmp_path: Path, report: Report) -> tuple[str, Page]:
    path = tmp_path / "report.html"
    write_report(path, report)
    markup = path.read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    return markup, Page(markup)


def test_page_has_language_title_and_headings(tmp_path: Path):
    markup, page = write(tmp_path, report_of(*corpus()))
    assert markup.lstrip().startswith("<!DOCTYPE html>")
    assert ("html", {"lang": "en"}) in page.elements
    assert page.names().count("title") == page.names().count("h1") == page.names().count("main") == 1
    levels = [int(tag[1]) for tag in page.names() if re.fullmatch(r"h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in zip([0, *levels], levels, strict=False))
    ids = [values["id"] for _, values in page.elements if "id" in values]
    assert len(ids) == len(set(ids))
    assert {values["aria-labelledby"] for _, values in page.elements if "aria-labelledby" in values} == set(ids)


def test_page_loads_nothing(tmp_path: Path):
    markup, page = write(tmp_path, report_of(*corpus()))
    loading = {"src", "href", "srcset", "data", "action", "poster", "xlink:href"}
    assert not [values for _, values in page.elements if loading & values.keys()]
    assert not {"script", "link", "iframe", "object", "embed", "img", "base"} & set(page.names())
    assert "url(" not in markup and "@import" not in markup
    policy = next(values["content"] for tag, values in page.elements if tag == "meta" and "http-equiv" in values)
    assert policy.startswith("default-src 'none'")


def test_everything_that_is_given_is_escaped_and_shown(tmp_path: Path):
    markup, page = write(tmp_path, report_of(*corpus()))
    assert "<script" not in markup and "&lt;script&gt;" in markup and "<b>title" not in markup
    for text in ("run & <b>title</b>", "name: <x>", "CPU & more", "12 examples/s", "disease"):
        assert text in page.text


def test_drawn_texts_are_the_documents_and_show_every_entity_with_its_error(tmp_path: Path):
    gold, predicted = corpus()
    _, page = write(tmp_path, report_of(gold, predicted))
    assert page.drawn == [EVIL, EVIL, "abc", "abc"]
    assert page.tags() == [
        "bod \u2212 missed",
        "dis \u2260 type",
        "sym \u2194 boundary",
        "bod \u2260 type",
        "sym \u2194 boundary",
        "bod",
        "bod",
    ]


def test_headline_names_f1_interval_precision_and_change(tmp_path: Path):
    gold, predicted = corpus()
    report = report_of(gold, predicted)
    before = score(gold, [one.with_entities([]) for one in gold], list(LABELS), resamples=0)
    after = replace(report.after, micro=replace(report.after.micro, f1_low=0.123, f1_high=0.456))
    _, page = write(tmp_path, replace(report, before=before, after=after))
    for text in ("28.6", "95 % interval 12.3\u201345.6", "0.0 \u2192 28.6", "+28.6 points; before no interval"):
        assert text in page.text
    assert "1 of 3 predicted" in page.text and "1 of 4 gold" in page.text


def test_documents_with_errors_come_first_and_twenty_are_shown(tmp_path: Path):
    gold = [Document(f"d{index:02}", f"text {index:02}", (Entity(0, 4, "dis"),)) for index in range(30)]
    predicted = [one.with_entities([]) if index in (7, 25) else one for index, one in enumerate(gold)]
    _, page = write(tmp_path, report_of(gold, predicted))
    first = [gold[index].text for index in (7, 25, *(place for place in range(30) if place not in (7, 25)))]
    assert page.drawn[::2] == page.drawn[1::2] == first[:SHOWN]


def test_page_is_the_same_each_time(tmp_path: Path):
    assert write(tmp_path, report_of(*corpus()))[0] == write(tmp_path, report_of(*corpus()))[0]


@pytest.mark.parametrize("case", ["no documents", "no predictions", "no gold", "no before", "no curves", "no facts"])
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
    elif case == "no curves":
        report = replace(report, curve=[], evaluations=[])
    elif case == "no facts":
        report = replace(report, facts={}, environment={}, config="")
    _, page = write(tmp_path, report)
    assert page.drawn == [one.text for one in gold for _ in range(2)]
    assert ("Before \u2192 after" in page.text) == (case != "no before")
    assert page.names().count("svg") == (0 if case == "no curves" else 2)
    assert ("No documents were predicted" in page.text) == (case == "no documents")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_that_is_not_finite_breaks_the_line_and_is_counted(tmp_path: Path, bad: float):
    curve = [(1, 2.0), (2, 1.5), (3, bad), (4, 1.0), (5, 0.5)]
    markup, page = write(tmp_path, replace(report_of(*corpus()), curve=curve, evaluations=[]))
    assert page.names().count("polyline") == 2
    assert "5 points; loss 2 at step 1, 0.5 at step 5; 1 not a finite number" in page.text
    svg = markup[markup.index("<svg") : markup.index("</svg>")]
    assert not re.search(r"nan|inf", re.sub(r'aria-label="[^"]*"|finite', "", svg), re.IGNORECASE)


def test_run_without_any_finite_loss_says_so(tmp_path: Path):
    _, page = write(tmp_path, replace(report_of(*corpus()), curve=[(1, math.nan), (2, math.nan)], evaluations=[]))
    assert page.names().count("svg") == 1 and page.names().count("polyline") == 0
    assert "2 points; 2 not a finite number" in page.text


@pytest.mark.parametrize("curve", [[(7, 0.0)], [(1, math.nan)], [(1, 1e-9), (2, 2e-9)], [(1, 3.0), (10**6, 1e5)]])
def test_extreme_curves_stay_inside_the_chart(tmp_path: Path, curve: list[tuple[int, float]]):
    _, page = write(tmp_path, replace(report_of(*corpus()), curve=curve, evaluations=[(0, 0.0, 0.0, 1.0)]))
    points = " ".join(values["points"] for tag, values in page.elements if tag == "polyline").split()
    assert points
    for point in points:
        x, y = (float(part) for part in point.split(","))
        assert 0 <= x <= 400 and 0 <= y <= 240


def test_documents_that_do_not_pair_are_refused(tmp_path: Path):
    gold, predicted = corpus()
    with pytest.raises(DataError, match="document 'good' is gold only"):
        write_report(tmp_path / "report.html", replace(report_of(gold, predicted), predicted=predicted[:1]))
    assert not list(tmp_path.iterdir())
