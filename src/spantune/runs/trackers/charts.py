"""The predictions and charts of an evaluation that dashboards show: texts, F1 of each type, and the confusion matrix.

A chart holds data and a caption that says the same in words. Dashboards that can draw get ECharts options, and other
dashboards get a picture drawn by Pillow, which needs no browser and no special fonts. If no font of the machine has the
script of a label, the picture shows boxes in its place; the caption has the label too.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from spantune.core import Document, Entity
from spantune.metrics import NONE, Confusion, judge
from spantune.runs.trackers.interface import PredictionRow

WIDTH = 640
INK, FAINT, BAR, HOT = "#1f2328", "#d0d7de", "#4c8dd6", (35, 105, 190)
_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "wqy-zenhei.ttc",
    "msyh.ttc",
    "PingFang.ttc",
    "Arial Unicode.ttf",
    "DejaVuSans.ttf",
)


@dataclass(frozen=True)
class Bar:
    """The F1 of one entity type with its 95 % interval, all in [0, 1]; the bounds are None if there is no interval."""

    label: str
    f1: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        bounds = "" if self.low is None or self.high is None else f" [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        return f"{100 * self.f1:.1f}{bounds}"


@dataclass(frozen=True)
class F1Chart:
    """A bar chart with the F1 of each entity type and its 95 % interval."""

    name: str
    bars: tuple[Bar, ...]

    @property
    def caption(self) -> str:
        """All figures as text."""
        return "F1 with 95 % intervals: " + "; ".join(f"{bar.label} {bar}" for bar in self.bars)

    def image(self) -> Image.Image:
        """Return a picture with horizontal bars, the first one at the top."""
        row, left, right = 28, 120, 130
        picture = Image.new("RGB", (WIDTH, row * len(self.bars) + 24), "white")
        draw = ImageDraw.Draw(picture)
        scale = WIDTH - left - right
        for share in (0, 25, 50, 75, 100):
            place = left + scale * share // 100
            draw.line((place, 4, place, picture.height - 20), FAINT)
            _text(draw, (place, picture.height - 10), str(share), "mm", 11)
        for number, bar in enumerate(self.bars):
            middle = row * number + row // 2 + 4
            _text(draw, (left - 8, middle), _short(bar.label, 16), "rm", 13)
            draw.rectangle((left, middle - 8, left + scale * bar.f1, middle + 8), BAR)
            if bar.low is not None and bar.high is not None:
                low, high = left + scale * bar.low, left + scale * bar.high
                draw.line((low, middle, high, middle), INK, 2)
                for end in (low, high):
                    draw.line((end, middle - 4, end, middle + 4), INK, 2)
            _text(draw, (WIDTH - right + 10, middle), str(bar), "lm", 12)
        return picture

    def options(self) -> dict[str, object]:
        """Return ECharts options: bars, and boxes from the lower to the upper bound, with F1 as the median."""
        boxes = [
            [round(100 * value, 1) for value in (bar.low, bar.low, bar.f1, bar.high, bar.high)]
            if bar.low is not None and bar.high is not None
            else []
            for bar in self.bars
        ]
        return {
            "title": {"text": self.name},
            "tooltip": {"trigger": "axis"},
            "xAxis": {"type": "category", "data": [bar.label for bar in self.bars]},
            "yAxis": {"type": "value", "min": 0, "max": 100},
            "series": [
                {"type": "bar", "name": "F1", "data": [round(100 * bar.f1, 1) for bar in self.bars]},
                {"type": "boxplot", "name": "95 % interval", "boxWidth": [6, 12], "data": boxes},
            ],
        }


@dataclass(frozen=True)
class ConfusionChart:
    """The confusion matrix: counts of entities by gold label (rows) and predicted label (columns).

    The label `none` stands for an entity without a counterpart.
    """

    name: str
    confusion: Confusion

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of rows and columns, with `none` last."""
        return (*self.confusion.labels, NONE)

    @property
    def caption(self) -> str:
        """The cells outside the diagonal that are not zero, as text, sorted by falling count."""
        cells = [
            (count, gold, predicted)
            for gold, row in self._rows()
            for predicted, count in row
            if count and gold != predicted
        ]
        wrong = "; ".join(f"{gold} → {predicted} {count}" for count, gold, predicted in sorted(cells, reverse=True))
        return f"gold → predicted, what is wrong: {wrong or 'nothing'}"

    def image(self) -> Image.Image:
        """Return a picture in which each cell is shaded by its share of the row.

        The rows have little height, since dashboards scale pictures to a fixed height.
        """
        wide, high, left, top = (34 if len(self.labels) > 14 else 46), 24, 120, 74
        picture = Image.new("RGB", (left + wide * len(self.labels) + 12, top + high * len(self.labels) + 4), "white")
        draw = ImageDraw.Draw(picture)
        _text(draw, (8, top - 12), "gold \\ predicted", "ls", 11)
        for number, (label, row) in enumerate(self._rows()):
            above, middle = top + high * number, top + high * number + high // 2
            _text(draw, (left - 8, middle), _short(label, 16), "rm", 13)
            _upright(picture, (left + wide * number + wide // 2, top - 4), _short(label, 9))
            total = max(1, sum(count for _, count in row))
            for column, (_, count) in enumerate(row):
                share, place = count / total, left + wide * column
                shade = tuple(round(255 + (value - 255) * share) for value in HOT)
                draw.rectangle((place, above, place + wide, above + high), shade, FAINT)
                ink = "white" if share > 0.5 else INK if count else FAINT
                _text(draw, (place + wide // 2, middle), str(count), "mm", 13, ink)
        return picture

    def options(self) -> dict[str, object]:
        """Return ECharts options of a heat map."""
        cells = [
            [column, number, count]
            for number, (_, row) in enumerate(self._rows())
            for column, (_, count) in enumerate(row)
        ]
        return {
            "title": {"text": self.name},
            "tooltip": {},
            "grid": {"containLabel": True},
            "xAxis": {"type": "category", "name": "predicted", "data": list(self.labels)},
            "yAxis": {"type": "category", "name": "gold", "data": list(self.labels), "inverse": True},
            "visualMap": {"min": 0, "max": max(1, *(count for *_, count in cells)), "calculable": True},
            "series": [{"type": "heatmap", "data": cells, "label": {"show": True}}],
        }

    def _rows(self) -> list[tuple[str, list[tuple[str, int]]]]:
        return [
            (label, list(zip(self.labels, row, strict=True)))
            for label, row in zip(self.labels, self.confusion.counts, strict=True)
        ]


def charts(
    split: str,
    values: Mapping[str, float | None],
    gold: Sequence[Document],
    predicted: Sequence[Document],
    labels: Sequence[str],
) -> list[F1Chart | ConfusionChart]:
    """Return the charts of an evaluation: F1 of each type, if it has such figures, and the confusion matrix.

    Args:
        split: the split, which is part of the titles.
        values: the figures of the evaluation, such as `f1/dis`, `f1_low/dis` and `f1_high/dis` for the label `dis`.
        gold: the annotated documents.
        predicted: the same documents with predicted entities.
        labels: the codes of the label set.
    """
    bars = tuple(
        Bar(label, f1, values.get(f"f1_low/{label}"), values.get(f"f1_high/{label}"))
        for label in labels
        if (f1 := values.get(f"f1/{label}")) is not None
    )
    f1_charts: list[F1Chart | ConfusionChart] = [F1Chart(f"{split} F1 by type", bars)] if bars else []
    return [*f1_charts, ConfusionChart(f"{split} confusion", judge(gold, predicted, labels).confusion)]


def panel(gold: Sequence[Document], predicted: Sequence[Document]) -> list[PredictionRow]:
    """Return a PredictionRow for each pair of a gold and a predicted document."""
    return [_row(*pair) for pair in zip(gold, predicted, strict=True)]


def _row(gold: Document, predicted: Document) -> PredictionRow:
    gold_keys, predicted_keys = (list(dict.fromkeys(map(_key, document.entities))) for document in (gold, predicted))

    def in_words(keys: Sequence[tuple[int, int, str]], others: Sequence[tuple[int, int, str]], wrong: str) -> str:
        parts = (
            f"{'✓' if (start, end, label) in others else wrong} {gold.text[start:end]} [{label} {start}:{end}]"
            for start, end, label in keys
        )
        return "; ".join(parts) or "none"

    right = len(set(gold_keys) & set(predicted_keys))
    return PredictionRow(
        gold.id,
        gold.text,
        right,
        missed=len(gold_keys) - right,
        spurious=len(predicted_keys) - right,
        gold=in_words(gold_keys, predicted_keys, "−"),
        predicted=in_words(predicted_keys, gold_keys, "+"),
    )


def _key(entity: Entity) -> tuple[int, int, str]:
    return (entity.start, entity.end, entity.label)


def _text(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, anchor: str, size: int, ink: str = INK
) -> None:
    draw.text(place, text, ink, _font(size, text.isascii()), anchor)


def _short(label: str, most: int) -> str:
    """Return `label`, cut to the width of `most` ASCII letters. Other characters count as two letters wide."""
    wide = sum(2 - character.isascii() for character in label)
    return label if wide <= most else f"{label[: (most if label.isascii() else most // 2) - 1]}\u2026"


def _upright(picture: Image.Image, foot: tuple[int, int], text: str) -> None:
    """Draw `text` vertically, to be read upwards; its first letter is at the place `foot`."""
    strip = Image.new("RGB", (68, 18), "white")
    _text(ImageDraw.Draw(strip), (2, 9), text, "lm", 13)
    turned = strip.rotate(90, expand=True)
    picture.paste(turned, (foot[0] - turned.width // 2, foot[1] - turned.height))


@functools.cache
def _font(size: int, ascii_only: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return a font: Pillow's default font for ASCII text, or else the first of _FONTS that the machine has."""
    for name in () if ascii_only else _FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
