"""One self-contained HTML page about a run: scores with intervals, curves, drawn predictions, recipe.

Everything that came from data or a model is escaped, and the page loads nothing from anywhere, which its
content security policy enforces. It shows what it is given: it computes no score, and refuses documents
that do not pair.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from spantune.document import Document
from spantune.drawing import PALETTE, SIGNS, draw, style
from spantune.metrics import KINDS, Error, Figure, Kind, Scores, errors, pair
from spantune.page import engine

SHOWN = 20
"""Most predictions that are drawn."""
WIDTH, HEIGHT = 400, 240
"""Size of a chart, in its own units."""
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 12, 40
"""Margins of a chart's plot."""

EvaluationPoint = tuple[int, float, float | None, float | None]


@dataclass(frozen=True)
class Report:
    """What the page shows: scores, curves by training step, documents with predictions, and provenance.

    `labels` maps code to name and its order gives the colours; `curve` is (step, training loss) and
    `evaluations` (step, F1, low, high), F1 in [0, 1]; `facts` are key figures as they are to be read.
    """

    title: str
    before: Scores | None
    after: Scores
    labels: Mapping[str, str]
    curve: Sequence[tuple[int, float]]
    evaluations: Sequence[EvaluationPoint]
    gold: Sequence[Document]
    predicted: Sequence[Document]
    facts: Mapping[str, str]
    config: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its place in the chart and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A line chart, ready to draw: every number is a place in a WIDTH x HEIGHT view."""

    title: str
    y_name: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[Sequence[tuple[float, float]]]
    whiskers: Sequence[tuple[float, float, float]]
    broken: Sequence[float]
    summary: str


@dataclass(frozen=True)
class Drawn:
    """A document with its gold and predicted entities drawn, and how often each kind of error occurs."""

    id: str
    gold: str
    predicted: str
    found: Mapping[Kind, int]


def write_report(path: Path, report: Report) -> None:
    """Write `report` to `path` as one HTML file that needs nothing else.

    Raises:
        DataError: the gold and predicted documents do not pair.
    """
    from markupsafe import Markup

    pairs = [(gold, predicted, errors(gold, predicted)) for gold, predicted in pair(report.gold, report.predicted)]
    page = (
        engine(points=_points, interval=_interval)
        .get_template("report.html.j2")
        .render(
            report=report,
            style=Markup(style()),
            colours={code: index % len(PALETTE) for index, code in enumerate(report.labels)},
            signs=SIGNS,
            kinds=_kind_counts([error for _, _, found in pairs for error in found]),
            drawn=[_drawn(*item, list(report.labels)) for item in _select(pairs)],
            markup=Markup,
            charts=[chart for chart in (_loss_chart(report.curve), _f1_chart(report.evaluations)) if chart],
            plot={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
        )
    )
    part = path.with_name(f".{path.name}.part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, path)


def _points(value: float) -> str:
    """A share as percentage points: 0.7423 as 74.2."""
    return f"{100 * value:.1f}"


def _interval(figure: Figure) -> str:
    """The interval of a figure's F1 in points, or that it has none."""
    if figure.f1_low is None or figure.f1_high is None:
        return "no interval"
    return f"{_points(figure.f1_low)}\u2013{_points(figure.f1_high)}"


def _kind_counts(found: Sequence[Error]) -> dict[Kind, int]:
    counts = Counter(error.kind for error in found)
    return {kind: counts[kind] for kind in KINDS}


def _select(
    pairs: Sequence[tuple[Document, Document, list[Error]]],
) -> list[tuple[Document, Document, list[Error]]]:
    """The first SHOWN pairs, those with an error before the others, each group in the order of the corpus."""
    return sorted(pairs, key=lambda item: all(error.kind == "correct" for error in item[2]))[:SHOWN]


def _drawn(gold: Document, predicted: Document, found: Sequence[Error], labels: Sequence[str]) -> Drawn:
    true = {error.gold: error.kind for error in found if error.gold}
    guessed = {error.predicted: error.kind for error in found if error.predicted}
    counts = {kind: count for kind, count in _kind_counts(found).items() if count}
    return Drawn(gold.id, draw(gold, labels, true), draw(predicted, labels, guessed), counts)


def _loss_chart(curve: Sequence[tuple[int, float]]) -> Chart | None:
    """Training loss by step; a loss that is not finite breaks the line and is marked and counted."""
    if not curve:
        return None
    finite = [(step, loss) for step, loss in curve if math.isfinite(loss)]
    x_axis = _Axis.over([step for step, _ in curve], LEFT, WIDTH - RIGHT)
    y_axis = _Axis.over([0.0, *(loss for _, loss in finite)], HEIGHT - BOTTOM, TOP)
    runs = [list(run) for good, run in groupby(curve, key=lambda point: math.isfinite(point[1])) if good]
    broken = [x_axis.at(step) for step, loss in curve if not math.isfinite(loss)]
    summary = f"{len(curve)} points"
    if finite:
        (first, began), (last, ended) = finite[0], finite[-1]
        summary += f"; loss {began:.3g} at step {first}, {ended:.3g} at step {last}"
    if broken:
        summary += f"; {len(broken)} not a finite number (marked \u00d7)"
    return Chart(
        title="Training loss",
        y_name="loss",
        x_ticks=x_axis.ticks(whole=True),
        y_ticks=y_axis.ticks(),
        lines=[[(x_axis.at(step), y_axis.at(loss)) for step, loss in run] for run in runs],
        whiskers=[],
        broken=broken,
        summary=f"{summary}.",
    )


def _f1_chart(evaluations: Sequence[EvaluationPoint]) -> Chart | None:
    """Strict F1 in points by step, with the interval of every evaluation that has one."""
    if not evaluations:
        return None
    x_axis = _Axis.over([step for step, *_ in evaluations], LEFT, WIDTH - RIGHT)
    y_axis = _Axis.over([0.0, 100.0], HEIGHT - BOTTOM, TOP)
    best = max(evaluations, key=lambda point: point[1])
    return Chart(
        title="Strict F1 on the dev set",
        y_name="F1",
        x_ticks=x_axis.ticks(whole=True),
        y_ticks=y_axis.ticks(),
        lines=[[(x_axis.at(step), y_axis.at(100 * f1)) for step, f1, _, _ in evaluations]],
        whiskers=[
            (x_axis.at(step), y_axis.at(100 * low), y_axis.at(100 * high))
            for step, _, low, high in evaluations
            if low is not None and high is not None
        ],
        broken=[],
        summary=f"{len(evaluations)} evaluations; best {_points(best[1])} at step {best[0]}. Bars: 95 % intervals.",
    )


@dataclass(frozen=True)
class _Axis:
    """Values [low, high] laid linearly onto places [first, last]."""

    low: float
    high: float
    first: float
    last: float

    @classmethod
    def over(cls, values: Sequence[float], first: float, last: float) -> _Axis:
        """An axis that holds all `values`; a single value gets room of one on its right."""
        low, high = min(values), max(values)
        return cls(low, high if high > low else low + 1, first, last)

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.first + share * (self.last - self.first), 1)

    def ticks(self, whole: bool = False) -> list[Tick]:
        """About five ticks at 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough * 0.999)
        if whole:
            step = max(1.0, step)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [Tick(self.at(count * step), f"{count * step:.6g}") for count in range(first, last + 1)]
