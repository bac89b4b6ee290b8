"""A forest plot: the difference in F1 between two systems, for all entities and for each type, with 95 % intervals.

It is SVG text that takes its colours from the page, like the charts of the module `charts`. A difference without an
interval is drawn as an open square. The page also has the same figures as a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from spantune.metrics import Difference, Gap
from spantune.report.charts import WIDTH, Chart

LEFT, RIGHT, TOP, ROW = 96, 12, 8, 22
"""The margins left, right and above the plot, and the height of a row, in SVG units."""
FOOT = 46
"""The height below the rows, for the ticks and the names of the systems, in SVG units."""
STEPS = (1, 2, 5, 10, 20, 50)
"""The possible distances between ticks, in percentage points."""
MOST_TICKS = 11
"""The maximum number of ticks."""
LONGEST = 14
"""The maximum number of characters of a name; longer names are cut."""


def forest_chart(difference: Difference, colors: Mapping[str, int]) -> Chart:
    """Draw F1 of the second system minus F1 of the first system, for all entities and for each label.

    Args:
        difference: the differences between the two systems.
        colors: label code to index in `core.LABEL_COLORS`; the rows have the order of its keys.
    """
    by_label = [(code, difference.labels[code]) for code in colors if code in difference.labels]
    gaps = [("all", difference.micro), *by_label]  # a list and not a dict, since a label may be named "all" too
    limit, step = _scale(gaps)
    height = TOP + ROW * len(gaps) + FOOT
    summary = _summary(difference, gaps)
    title = f"{difference.second} compared with {difference.first}"
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(f"{title}: {summary}")}">']
    bottom = TOP + ROW * len(gaps)
    for tick in range(-limit, limit + 1, step):
        x = _x(tick, limit)
        kind = "zero" if tick == 0 else "guide"
        parts.append(f'<line class="{kind}" x1="{x}" y1="{TOP}" x2="{x}" y2="{bottom}"/>')
        parts.append(f'<text class="middle" x="{x}" y="{bottom + 14}">{_signed(tick)}</text>')
    parts += _sides(difference, bottom)
    for place, (name, gap) in enumerate(gaps):
        color = f"var(--entity-{colors[name]})" if place else "var(--ink)"
        parts.append(_row(name, gap, TOP + ROW * place + ROW // 2, limit, color))
    return Chart(title, "".join([*parts, "</svg>"]), summary)


def _scale(gaps: Sequence[tuple[str, Gap]]) -> tuple[int, int]:
    """Return the end of the symmetric axis and the distance between its ticks, in percentage points."""
    values = [value for _, gap in gaps for value in (gap.f1, gap.f1_low, gap.f1_high) if value is not None]
    largest = max(1.0, *(100 * abs(value) for value in values))
    step = next((step for step in STEPS if 2 * -(-largest // step) + 1 <= MOST_TICKS), STEPS[-1])
    return int(-(-largest // step)) * step, step


def _x(value: float, limit: int) -> float:
    return round(LEFT + (value + limit) / (2 * limit) * (WIDTH - LEFT - RIGHT), 1)


def _row(name: str, gap: Gap, y: int, limit: int, color: str) -> str:
    """Draw a difference: its name, its interval as a line, and its value as a square.

    Args:
        name: the label code, or "all".
        gap: the difference.
        y: the place of the row, in SVG units.
        limit: the end of the axis, in percentage points.
        color: a CSS colour.
    """
    x = _x(100 * gap.f1, limit)
    values = _signed(round(100 * gap.f1, 1))
    line, filled = "", "none"
    if gap.f1_low is not None and gap.f1_high is not None:
        low, high = 100 * gap.f1_low, 100 * gap.f1_high
        values += f" ({_signed(round(low, 1))} to {_signed(round(high, 1))})"
        filled = color
        line = f'<line class="range" x1="{_x(low, limit)}" y1="{y}" x2="{_x(high, limit)}" y2="{y}" stroke="{color}"/>'
    square = f'<rect x="{x - 4:.1f}" y="{y - 4}" width="8" height="8" fill="{filled}" stroke="{color}"/>'
    label = f'<text class="end" x="{LEFT - 8}" y="{y + 4}">{escape(_short(name))}</text>'
    return f"<g><title>{escape(f'{name}: {values}')}</title>{label}{line}{square}</g>"


def _sides(difference: Difference, bottom: int) -> list[str]:
    """Draw the names of the systems under the sides of the axis on which they are better."""
    first, second = escape(_short(difference.first)), escape(_short(difference.second))
    return [
        f'<text x="{LEFT}" y="{bottom + 34}">\u2190 {first} better</text>',
        f'<text class="end" x="{WIDTH - RIGHT}" y="{bottom + 34}">{second} better \u2192</text>',
    ]


def _summary(difference: Difference, gaps: Sequence[tuple[str, Gap]]) -> str:
    """Describe the plot in words."""
    real = [f"{name} {_signed(round(100 * gap.f1, 1))}" for name, gap in gaps if gap.real]
    found = f"Real differences: {', '.join(real)}." if real else "No difference is real."
    return f"F1 of {difference.second} minus F1 of {difference.first}, in points, with 95 % intervals. {found}"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}\u2026"


def _signed(value: float) -> str:
    return f"{value:+g}".replace("-", "\u2212") if value else "0"
