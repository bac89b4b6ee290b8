"""The report of a run: one self-contained HTML page, the same figures as Markdown, and as JSON.

`report.html` has scores with intervals, curves, the confusion matrix, calibration and every document with its errors to
filter; `report.md` and `scores.json` have the figures. All that came from data or a model is escaped, and the page loads
nothing from anywhere, which its content security policy enforces. It shows what it is given: it computes no score, and
refuses documents that do not pair. Without JavaScript the figures are shown, and no documents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spantune import charts, summary, viewer
from spantune.charts import Chart, EvaluationPoint
from spantune.confusion import NONE, judge
from spantune.document import Document
from spantune.drawing import SIGNS
from spantune.formats.files import replacing
from spantune.metrics import Scores
from spantune.page import colours, embed, interval, render


@dataclass(frozen=True)
class CalibrationView:
    """What is drawn of a calibration; `ece` and `temperature` are those of the scores before it is applied.

    `bins` are (low, high, count, mean score, precision); `curve` is (threshold, precision, recall, F1); `threshold` is
    the one that is stored, if any. All are shares of 1.
    """

    bins: Sequence[tuple[float, float, int, float, float]]
    ece: float
    temperature: float | None = None
    curve: Sequence[tuple[float, float, float, float]] = ()
    threshold: float | None = None


@dataclass(frozen=True)
class Report:
    """What a report shows: scores, curves by training step, documents with predictions, and provenance.

    `labels` maps code to name and its order gives the colours; `curve` is (step, training loss) and `evaluations`
    (step, F1, low, high), F1 in [0, 1]; `rates` are shares of documents; `facts` are key figures as they are to be
    read. A predicted document says in `meta` what ailed its answer. `date` is written as it is given.
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
    rates: Mapping[str, float] = field(default_factory=dict)
    calibration: CalibrationView | None = None
    run: str = ""
    data: str = ""
    date: str = ""


def write_report(folder: Path, report: Report) -> None:
    """Write `scores.json`, `report.md` and, last, `report.html` into `folder`.

    Raises:
        DataError: the gold and predicted documents do not pair, or the files cannot be written.
    """
    outcome = judge(report.gold, report.predicted, list(report.labels))
    labels = list(outcome.confusion.labels)
    page = render(
        "report.html.j2",
        "documents.js.j2",
        report=report,
        title=report.title,
        outcome=outcome,
        labels=labels,
        none=NONE,
        colours=colours(labels),
        signs=SIGNS,
        measures=summary.measures(report.after),
        rates=summary.named(report.rates),
        interval=interval,
        curves=_curves(report),
        types=_types(report),
        calibration=_calibration(report.calibration),
        columns=("gold", "predicted"),
        kinds={**outcome.kinds, **outcome.answers},
        compared=False,
        size=viewer.PAGE,
        data=embed({"columns": ("gold", "predicted"), "labels": labels, "rows": viewer.rows(outcome, labels)}),
    )
    scores = json.dumps(summary.as_dict(report, outcome), ensure_ascii=False, indent=2)
    write_files(folder, {"scores.json": f"{scores}\n", "report.md": summary.as_markdown(report, outcome)}, page)


def write_files(folder: Path, files: Mapping[str, str], page: str) -> None:
    """Write `files`, by name, and last the page as `report.html`; none where a text cannot be encoded.

    Raises:
        DataError: a file cannot be written.
    """
    with replacing(folder / "report.html") as file:
        file.write(page)
        for name, text in files.items():
            with replacing(folder / name) as other:
                other.write(text)


def _curves(report: Report) -> list[Chart]:
    loss = [charts.loss_chart(report.curve)] if report.curve else []
    return loss + ([charts.f1_chart(report.evaluations)] if report.evaluations else [])


def _types(report: Report) -> Chart | None:
    figures = report.after.labels
    return charts.bars_chart("F1 by type", figures, colours(list(report.labels))) if figures else None


def _calibration(view: CalibrationView | None) -> list[Chart]:
    if view is None:
        return []
    reliability = [charts.reliability_chart(view.bins)] if view.bins else []
    return reliability + ([charts.threshold_chart(view.curve, view.threshold)] if view.curve else [])
