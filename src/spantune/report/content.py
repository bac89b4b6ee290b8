"""The content of a report, and its figures as JSON for programs (`scores.json`) and as Markdown (`report.md`).

Both files have the figures of the HTML page, but not the documents. Names from the data are escaped in Markdown, so
that they neither break a table nor act as markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from spantune.core import Document, Prediction
from spantune.metrics import NONE, TOO_FEW, Confusion, Figure, Outcome, Scores
from spantune.report.charts import EvaluationPoint
from spantune.report.html import interval, number, points

Row = Sequence[str]


@dataclass(frozen=True)
class CalibrationView:
    """What a report shows of a calibration. All scores, errors and figures are in [0, 1].

    Args:
        bins: (lowest score, highest score, count, mean score, precision) of calibrated scores.
        ece: the expected calibration error of the uncalibrated scores.
        ece_after: the expected calibration error of the calibrated scores.
        temperature: the fitted temperature.
        curve: (threshold, precision, recall, F1) of calibrated scores.
        threshold: the threshold for all labels; None if there is none.
        label_thresholds: label code to threshold, for labels that have their own.
        data: the name of the corpus to which the calibration was fitted.
        stored: whether the run stores the calibration, so that it is applied when the run extracts.
        notes: what was not done, and why.
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
        """The calibration in words."""
        labels = ", ".join(f"{label} {value:.3f}" for label, value in self.label_thresholds.items())
        overall = [] if self.threshold is None else [f"threshold {self.threshold:.3f}"]
        by_label = [f"{'' if overall else 'thresholds '}by label {labels}"] if labels else []
        threshold = ", ".join(overall + by_label) or "no threshold"
        fitted = f"Fitted to {self.data}: " if self.data else ""
        state = "The run stores it." if self.stored else "The run does not store it; spantune calibrate does."
        text = (
            f"{fitted}expected calibration error {points(self.ece)} points, {points(self.ece_after)} after "
            f"temperature {self.temperature:.3g}; {threshold}. {state}"
        )
        return " ".join([text[0].upper() + text[1:], *(f"{note[0].upper()}{note[1:]}." for note in self.notes)])


@dataclass(frozen=True)
class Report:
    """The content of a report: scores, documents with predictions, curves by training step, and provenance.

    Args:
        title: the title of the page.
        after: the scores of the predictions.
        labels: label code to name; the order determines the colours.
        gold: the annotated documents.
        predicted: the predictions for these documents. An Extraction also has the problems of its answer.
        before: the scores before training; None if they are not known.
        curve: (step, training loss).
        evaluations: the evaluations on dev during training.
        facts: key figures as text, by name.
        rates: shares of documents in [0, 1], by name.
        written: whether the model wrote answers, which may have problems. False if the run reads spans.
        calibration: the calibration; None if there is none.
        notes: what the report lacks, and why.
        config: the recipe as text.
        environment: the environment of the run, by name.
        head: the facts at the top of the page, by name: model, data, how it was split, date, version, time and device.
        train: the training documents, which are used to explain errors.
        f1_on: the split of the figures, `test` or `dev`; "" if it is not a split of a run.
        run: the name of the run.
        data: the name of the corpus.
        date: the date as text.
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
    written: bool = True
    calibration: CalibrationView | None = None
    notes: Sequence[str] = ()
    config: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    head: Mapping[str, str] = field(default_factory=dict)
    train: Sequence[Document] = ()
    f1_on: str = ""
    run: str = ""
    data: str = ""
    date: str = ""

    @property
    def bias(self) -> str:
        """A warning that the figures are biased, since their documents also chose the adapter; "" if they are not."""
        if not self.f1_on.startswith("dev"):
            return ""
        chosen = "adapter" if self.written else "adapter and the thresholds"
        return (
            f"Measured on the dev documents, which also chose the {chosen}: expect less on new texts. For a figure "
            "without this bias, set data.test to documents of its own."
        )

    @property
    def origin(self) -> dict[str, str]:
        """The facts at the top of the page, by name. `data` is left out if `head` has the documents of each split."""
        data = {} if "test" in self.head else {"data": self.data}
        named = {"run": self.run, **data, "date": self.date, **self.head}
        return {name: value for name, value in named.items() if value}

    @property
    def all_notes(self) -> list[str]:
        """The notes of the report, followed by the notes of the scores with their counts."""
        return [*self.notes, *(f"{count} × {note}" for note, count in self.after.notes.items())]


def as_dict(report: Report, outcome: Outcome) -> dict[str, object]:
    """Return the figures of a report as a JSON object; shares are in [0, 1].

    Args:
        report: the content of the report.
        outcome: the sorted errors of its predictions.
    """
    provenance = {"run": report.run, "data": report.data, "date": report.date}
    provenance |= {"f1_on": report.f1_on} if report.f1_on else {}
    before = {"before": report.before.as_dict()} if report.before else {}
    view = report.calibration
    calibration = (
        {"calibration": {key: value for key, value in asdict(view).items() if key not in _DRAWN}} if view else {}
    )
    figures = {**report.after.as_dict(), **before, "rates": dict(report.rates), **outcome.as_dict(), **calibration}
    return {**provenance, **figures, "report_notes": list(report.notes)}


def as_markdown(report: Report, outcome: Outcome) -> str:
    """Return the figures of a report as Markdown text with tables; shares are in percentage points.

    Args:
        report: the content of the report.
        outcome: the sorted errors of its predictions.
    """
    parts = [f"# {cell(report.title)}", _origin(report), _headline(report), _labels(report)]
    parts += [measures_table(report.after), slices_table(report.after)]
    kinds = [(kind, number(count)) for kind, count in outcome.kinds.items()]
    answers = [(kind, number(count)) for kind, count in outcome.answers.items()]
    parts += ["## Errors", table(("entities", "count"), kinds)]
    parts += [table(("answers: documents", "count"), answers)] if report.written else []
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
    """Return a Markdown table of cells that are escaped already. All columns but the first are aligned to the right."""
    lines = [" | ".join(row) for row in (head, ["---", *["---:"] * (len(head) - 1)], *rows)]
    return "\n".join(f"| {line} |" for line in lines)


def cell(text: str) -> str:
    """Return `text` in one line and escaped for Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&])", r"\\\1", " ".join(text.split()))


def fenced(text: str) -> str:
    """Return `text` as a Markdown code block of YAML. Its fence is longer than any fence in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}yaml\n{text.rstrip()}\n{fence}"


def figure_cells(figure: Figure) -> list[str]:
    """Return the cells of a figure: F1, its interval, precision, recall, and the counts correct, predicted and gold."""
    bounds = interval(figure.f1_low, figure.f1_high) or (TOO_FEW if figure.gold or figure.predicted else "–")
    counts = [number(value) for value in (figure.correct, figure.predicted, figure.gold)]
    return [points(figure.f1), bounds, points(figure.precision), points(figure.recall), *counts]


def measures(scores: Scores) -> dict[str, Figure]:
    """Return name to figure for the lenient ways of counting."""
    return {
        "boundary: label ignored": scores.boundary,
        "relaxed: overlap, same label": scores.relaxed,
        "partial: overlap counts half": scores.partial,
    }


def measures_table(scores: Scores) -> str:
    """Return the lenient figures as a Markdown table, followed by the false alarms in documents without entities."""
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
    """Return the slices of the scores as one Markdown table; "" if there are none."""
    rows = [
        [f"{cell(family)}: {cell(name)}", *figure_cells(figure)]
        for family, figures in scores.slices.items()
        for name, figure in figures.items()
    ]
    return f"## Slices\n\n{table(('slice', *_FIGURE), rows)}" if rows else ""


def named(rates: Mapping[str, float]) -> dict[str, float]:
    """Return rates under readable names: `non_stop_rate` becomes `non stop rate`."""
    return {name.replace("_", " "): value for name, value in rates.items()}


_DRAWN = ("bins", "curve")
_FIGURE = ("F1", "95 %", "precision", "recall", "correct", "predicted", "gold")


def _origin(report: Report) -> str:
    origin = {**report.origin, "protocol": report.after.protocol}
    parts = [f"{name}: {cell(value)}" for name, value in origin.items()]
    return " · ".join([*parts, f"{number(report.after.documents)} documents"])


def _headline(report: Report) -> str:
    scores = report.after
    macro = interval(scores.macro.f1_low, scores.macro.f1_high)
    text = f"Strict F1 **{points(scores.micro.f1)}**"
    text += f" (95 % interval {interval(scores.micro.f1_low, scores.micro.f1_high) or f'none: {TOO_FEW}'})"
    text += f", macro F1 {points(scores.macro_f1)}" + (f" ({macro})" if macro else "")
    text += f"; before training {points(report.before.micro.f1)}." if report.before else "."
    return f"{text} {report.bias}".rstrip()


def _labels(report: Report) -> str:
    rows = [[cell(code), *figure_cells(figure)] for code, figure in report.after.labels.items()]
    return f"## By type\n\n{table(('type', *_FIGURE), [*rows, ['all (micro)', *figure_cells(report.after.micro)]])}"


def _confusion(confusion: Confusion) -> str:
    names = [*map(cell, confusion.labels), NONE]
    rows = [[name, *(number(count) for count in row)] for name, row in zip(names, confusion.counts, strict=True)]
    return table(("gold \\\\ predicted", *names), rows)


def _calibration(view: CalibrationView) -> str:
    rows = [
        [f"{low:.2f}\u2013{high:.2f}", number(count), f"{mean:.3f}", f"{precision:.3f}"]
        for low, high, count, mean, precision in view.bins
    ]
    return f"{cell(view.sentences)}\n\n{table(('scores', 'predictions', 'mean score', 'precision'), rows)}"


def _cells(values: Mapping[str, str]) -> list[Row]:
    return [(cell(name), cell(value)) for name, value in values.items()]
