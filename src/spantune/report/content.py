"""What a report says, and its figures without the page: `scores.json` for programs, `report.md` for a repository.

Both files hold the figures of the page and none of its documents. What came from data is escaped for Markdown, so that
no name of a label or a run breaks a table or becomes markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from spantune.core import Document, Prediction
from spantune.metrics import NONE, Confusion, Figure, Outcome, Scores
from spantune.report.charts import EvaluationPoint
from spantune.report.html import interval, number, points

Row = Sequence[str]


@dataclass(frozen=True)
class CalibrationView:
    """What is shown of a calibration, fitted to `data`: `ece` of bare scores, `ece_after` of calibrated ones.

    `bins` are (low, high, count, mean score, precision) and `curve` (threshold, precision, recall, F1), both of
    calibrated scores; all are shares of 1. What is `stored` applies when the run extracts, and else is what one would
    come to; without a threshold all entities are kept. `notes` say what was not done.
    """

    bins: Sequence[tuple[float, float, int, float, float]]
    ece: float
    ece_after: float
    temperature: float
    curve: Sequence[tuple[float, float, float, float]] = ()
    threshold: float | None = None
    label_thresholds: Mapping[str, float] = field(default_factory=dict)
    data: str = ""
    stored: bool = False
    notes: Sequence[str] = ()

    @property
    def sentences(self) -> str:
        """What it says, in words."""
        whole = "no threshold" if self.threshold is None else f"threshold {self.threshold:.3f}"
        own = ", ".join(f"{label} {threshold:.3f}" for label, threshold in self.label_thresholds.items())
        fitted = f"Fitted to {self.data}: " if self.data else ""
        state = "The run stores it." if self.stored else "The run does not store it; spantune calibrate does."
        said = (
            f"{fitted}expected calibration error {points(self.ece)} points, {points(self.ece_after)} after "
            f"temperature {self.temperature:.3g}; {whole}{f', by label {own}' if own else ''}. {state}"
        )
        return " ".join([said[0].upper() + said[1:], *(f"{note[0].upper()}{note[1:]}." for note in self.notes)])


@dataclass(frozen=True)
class Report:
    """What a report shows: scores, documents with predictions, curves by training step, and provenance.

    `labels` maps code to name and its order gives the colours; `curve` is (step, training loss) and `evaluations`
    (step, F1, low, high), F1 in [0, 1]; `rates` are shares of documents; `facts` are key figures as they are to be
    read. A predicted document says in `meta` what ailed its answer and what a threshold left out of it. `notes` say
    what the report lacks. `date` is written as it is given.
    """

    title: str
    after: Scores
    labels: Mapping[str, str]
    gold: Sequence[Document]
    predicted: Sequence[Prediction]
    before: Scores | None = None
    curve: Sequence[tuple[int, float]] = ()
    evaluations: Sequence[EvaluationPoint] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    calibration: CalibrationView | None = None
    notes: Sequence[str] = ()
    config: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    run: str = ""
    data: str = ""
    date: str = ""

    @property
    def all_notes(self) -> list[str]:
        """What the report lacks, and what the scores met that is no error, with how often."""
        return [*self.notes, *(f"{count} × {note}" for note, count in self.after.notes.items())]


def as_dict(report: Report, outcome: Outcome) -> dict[str, Any]:
    """The figures of a report as a JSON object, in fractions of 1."""
    provenance = {"run": report.run, "data": report.data, "date": report.date}
    before = {"before": report.before.as_dict()} if report.before else {}
    view = report.calibration
    calibration = (
        {"calibration": {key: value for key, value in asdict(view).items() if key not in _DRAWN}} if view else {}
    )
    figures = {**report.after.as_dict(), **before, "rates": dict(report.rates), **outcome.as_dict(), **calibration}
    return {**provenance, **figures, "report_notes": list(report.notes)}


def as_markdown(report: Report, outcome: Outcome) -> str:
    """The figures of a report as Markdown tables."""
    parts = [f"# {cell(report.title)}", _origin(report), _headline(report), _labels(report)]
    parts += [measures_table(report.after), slices_table(report.after)]
    kinds = [(kind, number(count)) for kind, count in outcome.kinds.items()]
    answers = [(kind, number(count)) for kind, count in outcome.answers.items()]
    parts += ["## Errors", table(("entities", "count"), kinds), table(("answers: documents", "count"), answers)]
    parts += ["## Confusion", "Rows are gold, columns predicted.", _confusion(outcome.confusion)]
    if report.calibration:
        parts += ["## Calibration", _calibration(report.calibration)]
    facts = [*((cell(name), f"{value:.1%}") for name, value in named(report.rates).items()), *_cells(report.facts)]
    parts += ["## Key figures", table(("what", "value"), facts)] if facts else []
    parts += ["## Notes", "\n".join(f"- {cell(note)}" for note in report.all_notes)] if report.all_notes else []
    if report.environment:
        parts += ["## Environment", table(("what", "value"), _cells(report.environment))]
    if report.config:
        parts += ["## Recipe", fenced(report.config)]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Row, rows: Iterable[Row]) -> str:
    """A Markdown table; every column but the first is set to the right."""
    lines = [" | ".join(row) for row in (head, ["---", *["---:"] * (len(head) - 1)], *rows)]
    return "\n".join(f"| {line} |" for line in lines)


def cell(text: str) -> str:
    """`text` as Markdown that shows it in one line."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&])", r"\\\1", " ".join(text.split()))


def fenced(text: str) -> str:
    """`text` as a block of code, in a fence longer than any within."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}yaml\n{text.rstrip()}\n{fence}"


def figure_cells(figure: Figure) -> list[str]:
    """F1, its interval, precision, recall and the counts of a figure."""
    bounds = interval(figure.f1_low, figure.f1_high) or "–"
    counts = [number(value) for value in (figure.correct, figure.predicted, figure.gold)]
    return [points(figure.f1), bounds, points(figure.precision), points(figure.recall), *counts]


def measures(scores: Scores) -> dict[str, Figure]:
    """Figures beside the strict one, by what they are."""
    return {
        "boundary: label ignored": scores.boundary,
        "relaxed: overlap, same label": scores.relaxed,
        "partial: overlap counts half": scores.partial,
    }


def measures_table(scores: Scores) -> str:
    """Other ways of counting, and false alarms where there are documents without entities."""
    rows = [[name, *figure_cells(figure)] for name, figure in measures(scores).items()]
    parts = ["## Other ways of counting", table(("", *_FIGURE), rows)]
    if scores.alarms:
        alarms = scores.alarms
        parts.append(
            f"False alarms: {number(alarms.predicted)} entities predicted in the {number(alarms.documents)} documents "
            f"without any, {alarms.per_1000:.2f} per 1,000 characters."
        )
    return "\n\n".join(parts)


def slices_table(scores: Scores) -> str:
    """The slices that the scores hold, one table."""
    rows = [
        [f"{cell(family)}: {cell(name)}", *figure_cells(figure)]
        for family, figures in scores.slices.items()
        for name, figure in figures.items()
    ]
    return f"## Slices\n\n{table(('slice', *_FIGURE), rows)}" if rows else ""


def named(rates: Mapping[str, float]) -> dict[str, float]:
    """Rates under names for readers: `non_stop_rate` as `non stop rate`."""
    return {name.replace("_", " "): value for name, value in rates.items()}


_DRAWN = ("bins", "curve")
_FIGURE = ("F1", "95 %", "precision", "recall", "correct", "predicted", "gold")


def _origin(report: Report) -> str:
    known = {"run": report.run, "data": report.data, "date": report.date, "protocol": report.after.protocol}
    said = [f"{name}: {cell(value)}" for name, value in known.items() if value]
    return " · ".join([*said, f"{number(report.after.documents)} documents"])


def _headline(report: Report) -> str:
    scores = report.after
    macro = interval(scores.macro.f1_low, scores.macro.f1_high)
    said = f"Strict F1 **{points(scores.micro.f1)}**"
    said += f" (95 % interval {interval(scores.micro.f1_low, scores.micro.f1_high) or 'none'})"
    said += f", macro F1 {points(scores.macro_f1)}" + (f" ({macro})" if macro else "")
    return said + (f"; before training {points(report.before.micro.f1)}." if report.before else ".")


def _labels(report: Report) -> str:
    rows = [[cell(code), *figure_cells(figure)] for code, figure in report.after.labels.items()]
    return f"## By type\n\n{table(('type', *_FIGURE), [*rows, ['all (micro)', *figure_cells(report.after.micro)]])}"


def _confusion(found: Confusion) -> str:
    names = [*map(cell, found.labels), NONE]
    rows = [[name, *(number(count) for count in row)] for name, row in zip(names, found.counts, strict=True)]
    return table(("gold \\\\ predicted", *names), rows)


def _calibration(view: CalibrationView) -> str:
    rows = [
        [f"{low:.2f}\u2013{high:.2f}", number(count), f"{mean:.3f}", f"{precision:.3f}"]
        for low, high, count, mean, precision in view.bins
    ]
    return f"{cell(view.sentences)}\n\n{table(('scores', 'predictions', 'mean score', 'precision'), rows)}"


def _cells(values: Mapping[str, str]) -> list[Row]:
    return [(cell(name), cell(value)) for name, value in values.items()]
