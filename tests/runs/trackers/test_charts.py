"""Charts of trackers: as a picture, as ECharts options and as text; the panel marks what is correct."""

from __future__ import annotations

import json

import numpy as np

from spantune.core import Document, Entity
from spantune.runs.trackers.charts import BAR, Bar, ConfusionChart, F1Chart, charts, panel

GOLD = [Document("d1", "患者发热咳嗽", (Entity(2, 4, "sym"), Entity(4, 6, "sym"))), Document("d2", "阑尾炎", ())]
PREDICTED = [Document("d1", "患者发热咳嗽", (Entity(2, 4, "sym"), Entity(4, 6, "dis"))), Document("d2", "阑尾炎", ())]
VALUES = {"f1": 0.5, "f1/sym": 2 / 3, "f1_low/sym": 0.5, "f1_high/sym": 0.9, "f1/dis": 0.0, "f1/病": None}


def found() -> tuple[F1Chart, ConfusionChart]:
    first, second = charts("dev", VALUES, GOLD, PREDICTED, ("dis", "sym", "病", "bod"))
    assert isinstance(first, F1Chart) and isinstance(second, ConfusionChart)
    return first, second


def blue(chart: F1Chart, row: int) -> int:
    """Return the number of pixel columns that the bar of a row takes."""
    pixels = np.asarray(chart.image())[28 * row + 11]  # below the whisker
    return int((pixels == [int(BAR[at : at + 2], 16) for at in (1, 3, 5)]).all(axis=1).sum())


def test_f1_by_type() -> None:
    chart, _ = found()
    assert (chart.name, chart.caption) == (
        "dev F1 by type",
        "F1 with 95 % intervals: dis 0.0; sym 66.7 [50.0, 90.0]",  # no value, no bar
    )
    options = json.loads(json.dumps(chart.options()))
    bars, boxes = options["series"]
    assert options["xAxis"]["data"] == ["dis", "sym"] and bars["data"] == [0.0, 66.7]
    assert boxes["data"] == [[], [50.0, 50.0, 66.7, 90.0, 90.0]]
    assert blue(chart, 0) <= 1 and blue(chart, 1) > 250
    longer = F1Chart("x", (Bar("a", 0.3), Bar("b", 0.6)))
    assert 1.9 < blue(longer, 1) / blue(longer, 0) < 2.1


def test_confusion() -> None:
    _, chart = found()
    assert chart.caption == "gold → predicted, what is wrong: sym → dis 1"
    options = json.loads(json.dumps(chart.options()))
    assert options["xAxis"]["data"] == ["dis", "sym", "病", "bod", "none"] and options["visualMap"]["max"] == 1
    cells = {(column, row): count for column, row, count in options["series"][0]["data"]}
    assert cells[0, 1] == cells[1, 1] == 1 and sum(cells.values()) == 2 and len(cells) == 25
    picture = np.asarray(chart.image())

    def shade(column: int, row: int) -> int:
        return int(picture[74 + 24 * row + 4, 120 + 46 * column + 4, 0])

    assert shade(0, 1) == shade(1, 1) < 160 and shade(2, 1) == 255
    perfect = ConfusionChart("x", charts("dev", {}, GOLD, GOLD, ("sym",))[0].confusion)  # type: ignore[union-attr]
    assert perfect.caption == "gold → predicted, what is wrong: nothing"


def test_many_labels_of_any_script_are_drawn() -> None:
    labels = [f"一个很长的实体类型的名字{number}" for number in range(30)]
    for chart in charts("dev", {f"f1/{label}": 0.5 for label in labels}, GOLD, GOLD, labels):
        picture = chart.image()
        assert picture.width < 1400 and picture.height < 1400 and len(picture.getcolors(1_000_000) or []) > 4


def test_the_panel_marks_what_is_right_missed_and_spurious() -> None:
    first, second = panel(GOLD, PREDICTED)
    assert first.cells == (
        "d1", "患者发热咳嗽", 1, 1, 1,
        "✓ 发热 [sym 2:4]; − 咳嗽 [sym 4:6]", "✓ 发热 [sym 2:4]; + 咳嗽 [dis 4:6]",
    )  # fmt: skip
    assert len(first.cells) == len(first.COLUMNS)
    assert second.summary == "0 right, 0 missed, 0 spurious ▸ 阑尾炎\n\n▸ gold: none\n\n▸ predicted: none"
    assert panel([], []) == []
