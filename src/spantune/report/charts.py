"""Charts of a page as SVG text: curves by step, bars with intervals, reliability, and figures by threshold.

The charts are drawn by pygal. Its style, scripts, comments and hover boxes are removed, so that a chart takes its
colours from the page (light or dark), and equal values give equal text. Figures such as F1 are given in [0, 1] and
drawn as percentage points. A curve of more than MOST points is divided into sections, and only the lowest and the
highest point of each section are drawn.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from spantune.report.html import points

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from spantune.metrics import Figure


WIDTH, HEIGHT = 400, 240
"""The size of a chart, in SVG units."""
MOST = 1000
"""The maximum number of points of a curve."""
FEW = 30
"""The maximum number of points of a curve whose points are drawn as dots."""

_HOVER = ("plot text-overlay", "plot tooltip-overlay")

EvaluationPoint = tuple[int, float, float | None, float | None]
"""An evaluation: (step, F1, lower bound, upper bound), F1 and its 95 % interval in [0, 1]; None for no interval."""


@dataclass(frozen=True)
class Chart:
    """A chart of a page.

    Args:
        title: the title.
        svg: the SVG element.
        summary: the content in words.
        lines: the names of the lines, in the order of their colours; empty if the chart needs no legend.
    """

    title: str
    svg: str
    summary: str
    lines: Sequence[str] = ()


class _Drawing(Protocol):
    """The methods and attributes of a pygal chart that are used here."""

    title: str | None
    x_title: str
    y_title: str | None
    x_labels: Sequence[object]
    x_value_formatter: Callable[[float], str]

    def add(self, title: str, values: Sequence[object], **options: bool) -> object:
        """Add a line or a row of bars."""

    def add_xml_filter(self, filter: Callable[[Element], Element]) -> None:
        """Add a function that changes the drawing before it is rendered."""

    def render(self, *, is_unicode: bool) -> str:
        """Return the SVG text."""


def loss_chart(curve: Sequence[tuple[int, float]]) -> Chart:
    """Draw the training loss by step.

    Args:
        curve: (step, loss). A loss that is not finite interrupts the line and is marked by a dot at the top.
    """
    finite = [(step, loss) for step, loss in curve if math.isfinite(loss)]
    not_finite = [step for step, loss in curve if not math.isfinite(loss)]
    top = max((loss for _, loss in finite), default=1.0)
    chart = _lines(
        "step", "loss", [step for step, _ in curve], (min(0.0, *(loss for _, loss in finite), 0.0), top or 1)
    )
    line = [(step, loss if math.isfinite(loss) else None) for step, loss in _thinned(curve)]
    chart.add("loss", line, allow_interruptions=True, show_dots=len(line) <= FEW)
    chart.add("not finite", [(step, top) for step in not_finite], stroke=False)
    summary = f"{len(curve)} points"
    if finite:
        (first_step, first_loss), (last_step, last_loss) = finite[0], finite[-1]
        summary += f"; loss {first_loss:.3g} at step {first_step}, {last_loss:.3g} at step {last_step}"
    if not_finite:
        summary += f"; {len(not_finite)} not a finite number (dots at the top)"
    if len(line) < len(curve):
        summary += "; drawn by the lowest and the highest of each stretch"
    return _chart("Training loss", chart, f"{summary}.")


def f1_chart(evaluations: Sequence[EvaluationPoint]) -> Chart:
    """Draw strict F1 on the dev set by step, with its 95 % intervals.

    Args:
        evaluations: the evaluations; there is at least one.
    """
    chart = _lines("step", "F1", [step for step, *_ in evaluations], (0, 100))
    chart.add("F1", [(step, 100 * f1) for step, f1, _, _ in evaluations])
    bounds = [(step, low, high) for step, _, low, high in evaluations if low is not None and high is not None]
    whiskers = [place for step, low, high in bounds for place in ((step, 100 * low), (step, 100 * high), (step, None))]
    chart.add("95 % interval", whiskers, allow_interruptions=True, show_dots=False)
    best = max(evaluations, key=lambda point: point[1])
    summary = f"{len(evaluations)} evaluations; best {points(best[1])} at step {best[0]}."
    summary += " Bars: 95 % intervals, where documents are enough."
    return _chart("Strict F1 on the dev set", chart, summary)


def progress_chart(title: str, curves: Mapping[str, Sequence[tuple[int, float]]], top: float | None = None) -> Chart:
    """Draw several curves by step in one chart.

    Args:
        title: the title.
        curves: name to (step, value).
        top: the upper end of the value axis; the largest value if None. The axis begins at 0 or a negative value.
    """
    values = [value for curve in curves.values() for _, value in curve if math.isfinite(value)]
    steps = [step for curve in curves.values() for step, _ in curve]
    chart = _lines("step", "", steps, (min(0.0, *values, 0.0), top or max(values, default=1.0) or 1.0))
    for name, curve in curves.items():
        line = [(step, value if math.isfinite(value) else None) for step, value in _thinned(curve)]
        chart.add(name, line, allow_interruptions=True, show_dots=len(line) <= FEW)
    last = [f"{name} {curve[-1][1]:.3g} at step {curve[-1][0]}" for name, curve in curves.items()]
    return _chart(title, chart, f"Last: {'; '.join(last)}.", tuple(curves) if len(curves) > 1 else ())


def bars_chart(title: str, figures: Mapping[str, Figure], colours: Mapping[str, int]) -> Chart:
    """Draw F1 of each figure as a bar with its 95 % interval.

    Args:
        title: the title.
        figures: name to figure; the first one is drawn at the top.
        colours: name to index in `core.LABEL_COLORS`. Bars without an index have the accent colour of the page.
    """
    chart: _Drawing = _pygal().HorizontalBar(**_settings(50 + 26 * len(figures), range=(0, 100)))
    rows = list(figures.items())[::-1]  # pygal draws the first row at the bottom
    chart.x_labels = [name if len(name) <= 14 else f"{name[:13]}\u2026" for name, _ in rows]
    bars: list[dict[str, object]] = []
    for name, figure in rows:
        colour = f"var(--entity-{colours[name]})" if name in colours else "var(--accent)"
        bar: dict[str, object] = {"value": 100 * figure.f1, "color": colour}
        if figure.f1_low is not None and figure.f1_high is not None:
            bar["ci"] = {"low": 100 * figure.f1_low, "high": 100 * figure.f1_high}
        bars.append(bar)
    chart.add("F1", bars)
    ranked = sorted(figures, key=lambda name: figures[name].f1)
    summary = f"Best {ranked[-1]} {points(figures[ranked[-1]].f1)}, worst {ranked[0]} {points(figures[ranked[0]].f1)}."
    return _chart(title, chart, f"{summary} Lines over the bars: 95 % intervals, where documents are enough.")


def reliability_chart(bins: Sequence[tuple[float, float, int, float, float]]) -> Chart:
    """Draw the precision of the predictions in each bin of scores by their mean score.

    Args:
        bins: (lowest score, highest score, count, mean score, precision). Empty bins are not drawn.
    """
    filled = [(mean, precision) for _, _, count, mean, precision in bins if count]
    chart = _lines("score", "precision", [0, 1], (0, 100))
    chart.x_value_formatter = lambda value: f"{value:.1f}"
    chart.add("predictions", [(mean, 100 * precision) for mean, precision in filled])
    chart.add("perfectly calibrated", [(0, 0), (1, 100)], show_dots=False)
    count = sum(bin_count for _, _, bin_count, _, _ in bins)
    summary = f"{count} predictions in {len(filled)} bins. Under the diagonal the scores promise too much."
    return _chart("Reliability", chart, summary, ("predictions", "perfectly calibrated"))


def threshold_chart(curve: Sequence[tuple[float, float, float, float]], chosen: float | None) -> Chart:
    """Draw precision, recall and F1 by threshold.

    Args:
        curve: (threshold, precision, recall, F1); there is at least one.
        chosen: the threshold for all labels, at which a vertical line is drawn; None for no line.
    """
    chart = _lines("threshold", "", [0, 1], (0, 100))
    chart.x_value_formatter = lambda value: f"{value:.1f}"
    names = ("F1", "precision", "recall")
    for name, column in zip(names, (3, 1, 2), strict=True):
        line = _thinned([(point[0], 100 * point[column]) for point in curve])
        chart.add(name, line, show_dots=False)
    if chosen is not None:
        chart.add("chosen threshold", [(chosen, 0), (chosen, 100)], show_dots=False)
    best = max(curve, key=lambda point: point[3])
    summary = f"Best F1 {points(best[3])} at {best[0]:.2f}; "
    summary += "no threshold for all labels is set." if chosen is None else f"the threshold is {chosen:.2f}."
    return _chart("F1 by threshold", chart, summary, names if chosen is None else (*names, "chosen threshold"))


def _lines(x_title: str, y_title: str, x_values: Sequence[float], bounds: tuple[float, float]) -> _Drawing:
    """Return an empty XY chart.

    Args:
        x_title: the name of the x axis. If it is `step`, the ticks of a short axis are whole numbers.
        y_title: the name of the y axis.
        x_values: the values whose range the x axis covers; there is at least one.
        bounds: the ends of the y axis.
    """
    low, high = min(x_values), max(x_values)
    chart: _Drawing = _pygal().XY(**_settings(HEIGHT, range=bounds, xrange=(low, high if high > low else low + 1)))
    chart.x_title, chart.y_title = x_title, y_title or None
    if x_title == "step" and high - low <= 6:
        chart.x_labels = list(range(int(low), int(high) + (1 if high > low else 2)))
    return chart


def _pygal() -> Any:
    """Return the module pygal, and remove its import hook for map plugins, about which Python 3.11 warns."""
    import pygal

    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "pygal"]
    return pygal


def _settings(height: int, **more: object) -> dict[str, object]:
    """Return pygal's settings of a chart, with further settings `more`."""
    from pygal.style import Style

    style = Style(label_font_size=11, major_label_font_size=11, title_font_size=11, value_font_size=11)
    formatter: Callable[[float], str] = lambda value: f"{value:.6g}"  # noqa: E731
    fixed: dict[str, object] = {"show_legend": False, "no_prefix": True, "disable_xml_declaration": True, "js": ()}
    sizes: dict[str, object] = {"width": WIDTH, "height": height, "margin": 4, "spacing": 6, "max_scale": 6}
    formats: dict[str, object] = {"value_formatter": formatter, "x_value_formatter": formatter, "show_x_guides": False}
    return {"style": style, **fixed, **sizes, **formats, "dots_size": 3, **more}


def _chart(title: str, chart: _Drawing, summary: str, lines: Sequence[str] = ()) -> Chart:
    chart.title = None
    chart.add_xml_filter(lambda root: _shapes_only(root, f"{title}: {summary}"))
    return Chart(title, chart.render(is_unicode=True), summary, lines)


def _shapes_only(root: Element, description: str) -> Element:
    """Remove everything but the shapes from a drawing, turn values into titles, and describe it for screen readers."""
    for parent in list(root.iter()):
        for child in list(parent):
            kind = child.get("class")
            if child.tag == "desc" and kind == "value":
                child.tag = "title"
                child.attrib.clear()
            elif not isinstance(child.tag, str) or child.tag in ("defs", "title", "desc") or kind in _HOVER:
                parent.remove(child)
    for name in ("id", "xmlns"):
        root.attrib.pop(name, None)
    root.attrib.update({"role": "img", "aria-label": description})
    return root


def _thinned(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return a curve with about MOST points: the lowest and the highest point of each of its sections, in order.

    A curve of at most MOST points is returned unchanged. The first and the last point, and points that are not finite,
    which interrupt the line, are always kept.
    """
    if len(curve) <= MOST:
        return list(curve)
    edges = [round(index * len(curve) / (MOST // 2)) for index in range(MOST // 2 + 1)]
    chosen: set[int] = {0, len(curve) - 1}
    for begin, end in pairwise(edges):
        finite = [index for index in range(begin, end) if math.isfinite(curve[index][1])]
        chosen.update(index for index in range(begin, end) if not math.isfinite(curve[index][1]))
        if finite:
            chosen.update((min(finite, key=lambda i: curve[i][1]), max(finite, key=lambda i: curve[i][1])))
    return [curve[index] for index in sorted(chosen)]
