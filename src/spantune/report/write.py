"""Writing a report: one self-contained HTML page, and the same figures as Markdown and as JSON.

`report.html` has the scores with intervals, the curves, the confusion matrix, the calibration, and all documents with
their errors and filters. `report.md` and `scores.json` have the figures. All data and answers are escaped. The content
security policy of the page forbids loading anything. Without JavaScript the page shows the figures, but no documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from spantune.core import ERROR_SIGNS, label_colors, masked, replacing, to_json
from spantune.metrics import NONE, judge
from spantune.report import charts, content, documents, highlights
from spantune.report.charts import Chart
from spantune.report.content import CalibrationView, Report
from spantune.report.html import embed, interval, render


def write_report(folder: Path, report: Report) -> None:
    """Write `scores.json`, `report.md` and, last, `report.html` into `folder`.

    Credentials in the title, the recipe, the environment and other facts are masked.

    Args:
        folder: an existing folder.
        report: the content of the report.

    Raises:
        DataError: the gold and predicted documents do not pair, or the files cannot be written.
    """
    report = replace(
        report,
        title=masked(report.title),
        config=masked(report.config),
        data=masked(report.data),
        facts={key: masked(value) for key, value in report.facts.items()},
        head={key: masked(value) for key, value in report.head.items()},
        environment={key: masked(value) for key, value in report.environment.items()},
    )
    outcome = judge(report.gold, report.predicted, list(report.labels))
    labels = list(outcome.confusion.labels)
    context = highlights.Context.of(outcome, labels, report.train)
    doubtful = highlights.doubts(outcome, context)
    page = render(
        "report.html.j2",
        "documents.js.j2",
        report=report,
        title=report.title,
        origin=report.origin,
        outcome=outcome,
        labels=labels,
        names=report.labels,
        instructive=highlights.instructive(outcome, context),
        doubts=doubtful[: highlights.MOST_DOUBTS],
        count_doubts=len(doubtful),
        confident=highlights.CONFIDENT,
        unsure=highlights.UNSURE,
        has_scores=any(
            entity.score is not None for judged in outcome.documents for entity in judged.predicted.entities
        ),
        alone=NONE,
        colours=label_colors(labels),
        signs=ERROR_SIGNS,
        measures=content.measures(report.after),
        rates=content.named(report.rates),
        interval=interval,
        curves=_curves(report),
        types=_types(report),
        calibration=_calibration(report.calibration),
        columns=("gold", "predicted"),
        kinds=outcome.counts if report.written else outcome.kinds,
        compared=False,
        size=documents.PAGE,
        data=embed({"columns": ("gold", "predicted"), "labels": labels, "rows": documents.rows(outcome, labels)}),
    )
    scores = to_json(content.as_dict(report, outcome), indent=2)
    write_files(folder, {"scores.json": f"{scores}\n", "report.md": content.as_markdown(report, outcome)}, page)


def write_files(folder: Path, files: Mapping[str, str], page: str) -> None:
    """Write files into a folder, and last the page as `report.html`.

    Args:
        folder: an existing folder.
        files: file name to text.
        page: the HTML page. If it cannot be encoded, no file is written.

    Raises:
        DataError: a text cannot be encoded, or a file cannot be written.
    """
    with replacing(folder / "report.html") as file:
        file.write(page)
        for name, text in files.items():
            with replacing(folder / name) as text_file:
                text_file.write(text)


def _curves(report: Report) -> list[Chart]:
    loss = [charts.loss_chart(report.curve)] if report.curve else []
    return loss + ([charts.f1_chart(report.evaluations)] if report.evaluations else [])


def _types(report: Report) -> Chart | None:
    figures = report.after.labels
    return charts.bars_chart("F1 by type", figures, label_colors(list(report.labels))) if figures else None


def _calibration(view: CalibrationView | None) -> list[Chart]:
    if view is None:
        return []
    reliability = [charts.reliability_chart(view.bins)] if view.bins else []
    return reliability + ([charts.threshold_chart(view.curve, view.threshold)] if view.curve else [])
