"""Charts: valid SVG without scripts or fixed colours, values at their places, and unusual runs."""

from __future__ import annotations

import math
import re
import sys
from xml.etree import ElementTree

import pytest

from spantune.metrics import Figure
from spantune.report.charts import MOST, Chart, bars_chart, f1_chart, loss_chart, reliability_chart, threshold_chart


def paths(chart: Chart, series: int) -> list[list[tuple[float, float]]]:
    """Return the points of each unbroken line of a series."""
    found = re.search(rf'class="series serie-{series} [^>]*?(?:/>|>(.*?)</g>)', chart.svg, re.DOTALL)
    assert found
    drawn = re.findall(r'd="M([^"v]*)"', found[1] or "")
    places = [re.findall(r"(-?[\d.]+) (-?[\d.]+)", one) for one in drawn]
    return [[(float(x), float(y)) for x, y in one] for one in places]


def sound(chart: Chart) -> ElementTree.Element:
    root = ElementTree.fromstring(chart.svg)
    tags = {element.tag for element in root.iter()}
    assert tags <= {"svg", "g", "rect", "path", "text", "title", "circle", "line"}
    assert "http" not in chart.svg and "#" not in re.sub(r"&#\d+;", "", chart.svg) and not root.get("id")
    assert root.get("aria-label") == f"{chart.title}: {chart.summary}"
    return root


def test_loss_that_is_not_finite_breaks_the_line_and_is_marked_and_counted() -> None:
    chart = loss_chart([(1, 2.0), (2, 1.5), (3, math.nan), (4, 1.0), (5, 0.5), (6, math.inf)])
    root = sound(chart)
    assert [len(line) for line in paths(chart, 0)] == [2, 2]
    assert len(list(root.iter("circle"))) == 6
    assert chart.summary == "6 points; loss 2 at step 1, 0.5 at step 5; 2 not a finite number (dots at the top)."
    assert not re.search(r"\b(nan|inf)\b", chart.svg)


@pytest.mark.parametrize(
    "curve",
    [[(7, 0.0)], [(1, math.nan)], [(1, math.inf), (2, -math.inf)], [(1, 1e-9), (2, 2e-9)], [(1, 3.0), (10**6, 1e5)],
     [(1, -1.0), (2, 1.0)], [(1, 3e38)]],
)  # fmt: skip
def test_extreme_curves_stay_inside_the_chart(curve: list[tuple[int, float]]) -> None:
    chart = loss_chart(curve)
    root = sound(chart)
    marks = [(float(one.get("cx", "")), float(one.get("cy", ""))) for one in root.iter("circle")]
    places = [*marks, *(place for line in paths(chart, 0) for place in line)]
    assert places and all(0 <= x <= 400 and 0 <= y <= 240 for x, y in places)


def test_a_long_curve_keeps_its_highest_and_lowest_and_says_so() -> None:
    curve = [(step, 1.0) for step in range(20_000)]
    curve[7777], curve[8888], curve[9999] = (7777, 5.0), (8888, 0.0), (9999, math.nan)
    chart = loss_chart(curve)
    lines = paths(chart, 0)
    assert len(lines) == 2 and sum(map(len, lines)) <= MOST + 2 and "lowest and the highest" in chart.summary
    heights = [y for line in lines for _, y in line]
    assert len(set(heights)) == 3  # 5, 1 and 0
    assert len(chart.svg) < 60_000


def test_each_evaluation_with_an_interval_has_a_bar() -> None:
    chart = f1_chart([(0, 0.1, 0.05, 0.2), (50, 0.6, None, None), (100, 0.5, 0.4, 0.55)])
    sound(chart)
    bars = paths(chart, 1)
    assert len(bars) == 2 and all(len(bar) == 2 and bar[0][0] == bar[1][0] and bar[0][1] > bar[1][1] for bar in bars)
    assert chart.summary.startswith("3 evaluations; best 60.0 at step 50.")


def test_bars_are_in_order_in_the_page_s_colours_with_intervals_and_escaped_names() -> None:
    figures = {
        "dis": Figure(5, 10, 10, f1_low=0.3, f1_high=0.7),
        "<b>": Figure(1, 10, 10),
        "a label that is long": Figure(0, 0, 0),
    }
    chart = bars_chart("F1", figures, {"dis": 0, "<b>": 13})
    root = sound(chart)
    assert [one.text for one in root.iter("text")][:3] == ["a label that \u2026", "<b>", "dis"]
    bars = [one for one in root.iter("g") if one.get("class") == "bar"]
    assert [re.findall(r"var\((.*?)\)", bar.get("style", ""))[0] for bar in bars] == [
        "--accent",
        "--entity-13",
        "--entity-0",
    ]
    (ci,) = [one for one in root.iter("g") if one.get("class") == "ci"]
    ends = [float(x) for x in re.findall(r"[ML]([\d.]+) ", ci[0].get("d", ""))]
    left, bar = (float(bars[2][0].get(name, "")) for name in ("x", "width"))  # the bar of dis, F1 50
    assert [(end - left) / bar for end in (min(ends), max(ends))] == pytest.approx([0.6, 1.4])
    widths = [float(rect.get("width", "0")) for bar in bars for rect in bar.iter("rect")]
    assert widths[2] == pytest.approx(5 * widths[1]) and widths[0] == 0
    assert chart.summary.startswith("Best dis 50.0, worst a label that is long 0.0.")


def test_reliability_leaves_empty_bins_out_and_has_a_diagonal() -> None:
    chart = reliability_chart([(0.0, 0.5, 3, 0.4, 0.2), (0.5, 0.9, 0, 0.0, 0.0), (0.9, 1.0, 7, 0.95, 0.9)])
    sound(chart)
    assert [len(line) for line in paths(chart, 0)] == [2] and len(paths(chart, 1)[0]) == 2
    assert chart.summary.startswith("10 predictions in 2 bins.")


@pytest.mark.parametrize("chosen", [None, 0.5])
def test_threshold_chart_draws_three_lines_and_the_choice(chosen: float | None) -> None:
    chart = threshold_chart([(0.0, 0.5, 0.9, 0.6), (0.5, 0.7, 0.8, 0.75), (1.0, 1.0, 0.0, 0.0)], chosen)
    sound(chart)
    assert [len(paths(chart, series)[0]) for series in range(3)] == [3, 3, 3]
    assert ("serie-3" in chart.svg) == (chosen is not None) == (len(chart.lines) == 4)
    assert "Best F1 75.0 at 0.50" in chart.summary


def test_drawing_leaves_python_s_imports_as_they_were() -> None:
    loss_chart([(1, 2.0)])
    assert not [finder for finder in sys.meta_path if type(finder).__module__ == "pygal"]


def test_a_chart_is_the_same_each_time() -> None:
    assert loss_chart([(1, 2.0), (2, 1.0)]) == loss_chart([(1, 2.0), (2, 1.0)])
