"""A forest plot: the difference in F1 between two systems, of all entities and of each type, with 95 % intervals.

It is SVG text that takes its colours from the page, as the charts of `charts` do. A difference without an interval is
an open square. The page has the same figures as a table beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from spantune.metrics import Difference, Gap
from spantune.report.charts import WIDTH, Chart

LEFT, RIGHT, TOP, ROW = 96, 12, 8, 22
"""The width left and right of the plot, the height above it, and that of a row, in SVG units."""
FOOT = 46
"""The height under the rows, which has the ticks and the names of the systems."""
STEPS = (1, 2, 5, 10, 20, 50)
"""The distances between ticks that are tried, in points."""
MOST_TICKS = 11
LONGEST = 14
"""The number of characters of a name that are shown."""


def forest_chart(difference: Difference, colors: Mapping[str, int]) -> Chart:
    """Draw F1 of the second system minus F1 of the first, of all entities and by type.

    Args:
        difference: the gaps of the two systems.
        colors: the index of every label in LABEL_COLORS; the rows are in its order.
    """
    by_label = [(code, difference.labels[code]) for code in colors if code in difference.labels]
    gaps = [("all", difference.micro), *by_label]  # a label may be called "all" too
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
    """Return the largest value of the axis, which is symmetric, and the distance between ticks, in points."""
    values = [value for _, gap in gaps for value in (gap.f1, gap.f1_low, gap.f1_high) if value is not None]
    largest = max(1.0, *(100 * abs(value) for value in values))
    step = next((step for step in STEPS if 2 * -(-largest // step) + 1 <= MOST_TICKS), STEPS[-1])
    return int(-(-largest // step)) * step, step


def _x(value: float, limit: int) -> float:
    return round(LEFT + (value + limit) / (2 * limit) * (WIDTH - LEFT - RIGHT), 1)


def _row(name: str, gap: Gap, y: int, limit: int, color: str) -> str:
    """Draw a gap: its name, its interval as a line, and its value as a square."""
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
    """Say on which side of zero which system is better."""
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
