"""The forest plot of a comparison: the place of every difference, the zero line, and what cannot be computed."""

from __future__ import annotations

import re

import pytest

from spantune.metrics import Difference, Gap
from spantune.report.forest import forest_chart

LABELS = {
    "b<d": Gap(-0.2, -0.3, -0.1, 0.001, 0.002),
    "dis": Gap(0.1, None, None, 0.4, 0.8),
}
DIFFERENCE = Difference("first & only", "a name of many letters", Gap(0.1, -0.1, 0.3, 0.2, 0.2), LABELS)


def places(row: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(f' {name}="([^"]*)"', row)]


def test_rows_are_all_and_then_the_types_in_the_order_and_the_colours_of_the_task() -> None:
    svg = forest_chart(DIFFERENCE, {"dis": 0, "never": 1, "b<d": 2}).svg
    rows = re.findall("<g>.*?</g>", svg)
    assert [re.findall("<title>(.*?)</title>", row)[0] for row in rows] == [
        "all: +10 (\u221210 to +30)",
        "dis: +10",
        "b&lt;d: \u221220 (\u221230 to \u221210)",
    ]
    assert "var(--ink)" in rows[0] and "var(--entity-0)" in rows[1] and "var(--entity-2)" in rows[2]
    assert 'fill="none"' in rows[1] and "<line" not in rows[1] and 'fill="none"' not in rows[2]


def test_a_label_that_is_called_all_has_a_row_of_its_own() -> None:
    difference = Difference("a", "b", DIFFERENCE.micro, {"all": LABELS["b<d"]})
    rows = re.findall("<title>(all: .*?)</title>", forest_chart(difference, {"all": 0}).svg)
    assert rows == ["all: +10 (\u221210 to +30)", "all: \u221220 (\u221230 to \u221210)"]


def test_values_stand_at_their_places_on_an_axis_around_zero() -> None:
    svg = forest_chart(DIFFERENCE, {"dis": 0, "b<d": 1}).svg
    (zero,) = places(re.findall('<line class="zero"[^>]*>', svg)[0], "x1")
    everything, _, body = re.findall("<g>.*?</g>", svg)
    low, high = places(everything, "x1")[0], places(everything, "x2")[0]
    assert low < zero < high and high - zero == pytest.approx(3 * (zero - low), abs=0.2)
    assert places(body, "x2")[0] == low and places(body, "x1")[0] == pytest.approx(2 * zero - high, abs=0.2)
    assert re.findall(r'class="middle"[^>]*>([^<]*)', svg) == [
        "\u221230",
        "\u221220",
        "\u221210",
        "0",
        "+10",
        "+20",
        "+30",
    ]


def test_it_is_told_in_words_and_escaped() -> None:
    chart = forest_chart(DIFFERENCE, {"dis": 0, "b<d": 1})
    assert chart.summary.endswith("Real differences: b<d \u221220.")
    assert 'aria-label="a name of many letters compared with first &amp; only: F1 of' in chart.svg
    assert "\u2190 first &amp; only better" in chart.svg and "a name of man\u2026 better \u2192" in chart.svg
    none = forest_chart(Difference("a", "b", Gap(0.0, None, None, 1.0, 1.0), {}), {})
    assert none.summary.endswith("No difference is real.") and none.svg.count("<g>") == 1
