"""The report of several runs on the same documents: figures side by side, differences, and where the runs disagree.

It writes the same three files as the report of one run, and computes no difference: intervals and p values are given,
each run against the first. Its page shows the documents on which at least two runs predicted different entities.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spantune import charts, viewer
from spantune.confusion import Outcome, judge
from spantune.document import Document
from spantune.drawing import SIGNS
from spantune.errors import ConfigError
from spantune.metrics import Scores
from spantune.page import colours, embed, interval, points, render
from spantune.report import write_files
from spantune.summary import cell, figure_cells, table


@dataclass(frozen=True)
class ComparedRun:
    """A run under the name it is shown by, with its scores and predictions."""

    name: str
    scores: Scores
    predicted: Sequence[Document]


@dataclass(frozen=True)
class Difference:
    """F1 of a run less that of the first, in fractions of 1, its 95 % interval and p value where there are any."""

    f1: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class RunDifference:
    """A run against the first: overall, by label code, and in a plain sentence."""

    name: str
    overall: Difference
    labels: Mapping[str, Difference] = field(default_factory=dict)
    sentence: str = ""


@dataclass(frozen=True)
class Comparison:
    """What a comparison shows; `differences` are of every run but the first, in the order of `runs`."""

    title: str
    labels: Mapping[str, str]
    gold: Sequence[Document]
    runs: Sequence[ComparedRun]
    differences: Sequence[RunDifference]
    data: str = ""
    date: str = ""


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write `scores.json`, `report.md` and, last, `report.html` into `folder`.

    Raises:
        ConfigError: fewer than two runs, two of one name, or the differences are not those of the further runs.
        DataError: the documents of a run do not pair with the gold ones, or the files cannot be written.
    """
    names = [run.name for run in comparison.runs]
    _require_comparable(names, [difference.name for difference in comparison.differences])
    outcomes = [judge(comparison.gold, run.predicted, list(comparison.labels)) for run in comparison.runs]
    seen = dict.fromkeys(label for outcome in outcomes for label in outcome.confusion.labels)
    labels = list(dict.fromkeys([*comparison.labels, *seen]))
    rows = viewer.differing(outcomes, labels)
    page = render(
        "compared.html.j2",
        "documents.js.j2",
        comparison=comparison,
        title=comparison.title,
        outcomes=outcomes,
        labels=labels,
        colours=colours(labels),
        signs=SIGNS,
        interval=interval,
        signed=_signed,
        bounds=_bounds,
        chart=charts.bars_chart("Strict F1", {run.name: run.scores.micro for run in comparison.runs}, {}),
        columns=("gold", *names),
        kinds=dict.fromkeys(viewer.VIEW_KINDS, 0),
        compared=True,
        size=viewer.PAGE,
        count=len(rows),
        data=embed({"columns": ("gold", *names), "labels": labels, "rows": rows}),
    )
    scores = json.dumps(_as_dict(comparison, outcomes), ensure_ascii=False, indent=2)
    write_files(folder, {"scores.json": f"{scores}\n", "report.md": _markdown(comparison)}, page)


def _require_comparable(runs: Sequence[str], differences: Sequence[str]) -> None:
    if len(runs) < 2 or len(set(runs)) < len(runs):
        raise ConfigError(f"a comparison needs two runs or more under different names, found {list(runs)}; name others")
    if list(differences) != list(runs[1:]):
        raise ConfigError(f"expected a difference for each of {list(runs[1:])}, found {list(differences)}")


def _as_dict(comparison: Comparison, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    runs = {
        run.name: {**run.scores.as_dict(), **outcome.as_dict()}
        for run, outcome in zip(comparison.runs, outcomes, strict=True)
    }
    differences = [asdict(difference) for difference in comparison.differences]
    return {"data": comparison.data, "date": comparison.date, "runs": runs, "differences": differences}


def _markdown(comparison: Comparison) -> str:
    head = ("F1", "95 %", "precision", "recall", "correct", "predicted", "gold")
    runs = [[cell(run.name), *figure_cells(run.scores.micro)] for run in comparison.runs]
    parts = [f"# {cell(comparison.title)}", " · ".join(map(cell, filter(None, (comparison.data, comparison.date))))]
    parts += [cell(one.sentence) for one in comparison.differences]
    parts += ["## Strict F1", table(("run", *head), runs)]
    overall = [[cell(one.name), *_difference_cells(one.overall)] for one in comparison.differences]
    first = cell(comparison.runs[0].name)
    parts += [f"## Differences from {first}", table(("run", "F1", "95 %", "p"), overall)]
    names = [cell(run.name) for run in comparison.runs]
    rows = []
    for code in comparison.labels:
        f1s = [points(run.scores.labels[code].f1) if code in run.scores.labels else "–" for run in comparison.runs]
        found = [one.labels.get(code) for one in comparison.differences]
        rows.append([cell(code), *f1s, *(text for one in found for text in _label_cells(one))])
    more = [text for name in names[1:] for text in (f"{name}: difference", "95 %", "p")]
    parts += ["## By type", table(("type", *names, *more), rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _label_cells(difference: Difference | None) -> list[str]:
    return _difference_cells(difference) if difference else ["–"] * 3


def _difference_cells(difference: Difference) -> list[str]:
    return [_signed(difference.f1), _bounds(difference), "–" if difference.p is None else f"{difference.p:.3g}"]


def _signed(value: float) -> str:
    """A difference in points with its sign."""
    return f"{100 * value:+.1f}".replace("-", "\u2212")


def _bounds(difference: Difference) -> str:
    if difference.low is None or difference.high is None:
        return "–"
    return f"{_signed(difference.low)} to {_signed(difference.high)}"
