"""The report of a comparison of systems: their figures, the differences, and the documents on which they differ.

It consists of the same three files as the report of a run. The differences come from `metrics.compare`. The page shows
the documents for which at least two systems predicted different entities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from spantune.core import ERROR_SIGNS, ConfigError, label_colors, to_json
from spantune.metrics import TOO_FEW, Comparison, Gap, Outcome, System, judge
from spantune.report import charts, documents
from spantune.report.content import cell, figure_cells, table
from spantune.report.forest import forest_chart
from spantune.report.html import embed, interval, points, render
from spantune.report.write import write_files


def write_comparison(
    folder: Path, comparison: Comparison, systems: Sequence[System], labels: Mapping[str, str], data: str = ""
) -> None:
    """Write `scores.json`, `report.md` and, last, `report.html` into `folder`.

    Args:
        folder: an existing folder.
        comparison: the result of `metrics.compare`.
        systems: the systems that were compared, in the same order.
        labels: label code to name; the order determines the colours.
        data: the name of the corpus, which the report shows.

    Raises:
        ConfigError: `systems` are not those of `comparison`.
        DataError: the documents of a system do not pair with the gold documents, or the files cannot be written.
    """
    names = [system.name for system in systems]
    if names != list(comparison.systems):
        raise ConfigError(f"expected the systems that were compared, {list(comparison.systems)}, found {names}")
    gold = systems[0].gold
    outcomes = [judge(gold, system.predicted, list(labels)) for system in systems]
    codes = list(dict.fromkeys([*labels, *(label for outcome in outcomes for label in outcome.confusion.labels)]))
    rows = documents.differing(outcomes, codes)
    title, colors = " · ".join(names), label_colors(codes)
    page = render(
        "compared.html.j2",
        "documents.js.j2",
        comparison=comparison,
        title=title,
        data_name=data,
        first=comparison.systems[names[0]],
        outcomes=outcomes,
        names=labels,
        labels=codes,
        colours=colors,
        signs=ERROR_SIGNS,
        interval=interval,
        gap_cells=_gap_cells,
        chart=charts.bars_chart("Strict F1", {name: scores.micro for name, scores in comparison.systems.items()}, {}),
        forests=[forest_chart(difference, colors) for difference in comparison.differences],
        columns=("gold", *names),
        kinds={kind: sum(outcome.counts[kind] for outcome in outcomes) for kind in documents.VIEW_KINDS},
        compared=True,
        size=documents.PAGE,
        count=len(rows),
        data=embed({"columns": ("gold", *names), "labels": codes, "rows": rows}),
    )
    scores = to_json(_as_dict(comparison, outcomes, data), indent=2)
    text = _markdown(comparison, codes, title, data)
    write_files(folder, {"scores.json": f"{scores}\n", "report.md": text}, page)


def _as_dict(comparison: Comparison, outcomes: Sequence[Outcome], data: str) -> dict[str, object]:
    """Return the JSON object of the comparison, with the scores and counts of errors of every system."""
    systems = {
        name: {**scores.as_dict(), **outcome.as_dict()}
        for (name, scores), outcome in zip(comparison.systems.items(), outcomes, strict=True)
    }
    return {"data": data, **comparison.as_dict(), "systems": systems}


def _markdown(comparison: Comparison, codes: Sequence[str], title: str, data: str) -> str:
    head = ("F1", "95 %", "precision", "recall", "correct", "predicted", "gold")
    names = [cell(name) for name in comparison.systems]
    size = f"{comparison.documents} documents · protocol: {comparison.protocol}"
    parts = [f"# {cell(title)}", f"data: {cell(data)} · {size}" if data else size]
    parts += [cell(difference.sentence) for difference in comparison.differences]
    figures = [[cell(name), *figure_cells(scores.micro)] for name, scores in comparison.systems.items()]
    parts += ["## Strict F1", table(("", *head), figures)]
    overall = [[cell(difference.second), *_gap_cells(difference.micro)] for difference in comparison.differences]
    parts += [f"## Differences from {names[0]}", table(("", "F1", "95 %", "p (Holm)"), overall)]
    rows = []
    for code in codes:
        label_figures = [scores.labels.get(code) for scores in comparison.systems.values()]
        f1s = [points(figure.f1) if figure else "–" for figure in label_figures]
        gaps = [text for difference in comparison.differences for text in _gap_cells(difference.labels.get(code))]
        rows.append([cell(code), *f1s, *gaps])
    gap_head = [text for name in names[1:] for text in (f"{name}: difference", "95 %", "p (Holm)")]
    parts += ["## By type", table(("type", *names, *gap_head), rows)]
    return "\n\n".join(parts) + "\n"


def _gap_cells(gap: Gap | None) -> list[str]:
    """Return the difference, its interval and the corrected p-value as text; dashes for a label that never occurs."""
    if gap is None:
        return ["–"] * 3
    bounds = TOO_FEW
    if gap.f1_low is not None and gap.f1_high is not None:
        bounds = f"{_signed(gap.f1_low)} to {_signed(gap.f1_high)}"
    return [_signed(gap.f1), bounds, "< 0.001" if gap.p_holm < 0.001 else f"{gap.p_holm:.3f}"]


def _signed(value: float) -> str:
    """Format a difference of two shares in percentage points, with its sign, such as `+1.2`."""
    return f"{100 * value:+.1f}".replace("-", "\u2212")
