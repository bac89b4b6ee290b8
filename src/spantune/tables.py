"""Tables for people: plans, scores and plain key-value lists, printed with rich.

What a script reads is printed as JSON by `cli`; these may change their looks at any time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def print_plan(found: Any) -> None:
    """Print the audits and the estimate of a Plan."""
    marks = {True: "ok", False: "FAILED"}
    rows = [
        (
            f"waived by {a.waived}" if a.waived and not a.ok else marks[a.ok],
            a.name,
            a.found if a.ok else f"{a.found} → {a.remedy}",
        )
        for a in found.audits
    ]
    table(["", "audit", "found"], rows)
    table(["predicted", ""], [(key.replace("_", " "), str(value)) for key, value in found.estimate.as_dict().items()])


def print_scores(scores: dict[str, Any], stream: Any = None) -> None:
    """Print strict scores, overall and by label, with their intervals."""
    strict = scores["strict"]

    def row(name: str, figure: dict[str, Any]) -> tuple[str, ...]:
        interval = f"{figure['f1_low']:.3f}–{figure['f1_high']:.3f}" if figure["f1_low"] is not None else ""
        values = [f"{figure[key]:.3f}" for key in ("precision", "recall", "f1")]
        return (name, *values, interval, str(figure["gold"]))

    rows = [row("all (micro)", strict["micro"]), *(row(label, figure) for label, figure in strict["labels"].items())]
    table(["strict", "P", "R", "F1", "95 %", "gold"], rows, stream)


def print_split(record: dict[str, Any]) -> None:
    """Print how many documents and entities, by label, each split has, and with which share."""

    def row(name: str, counts: dict[str, int]) -> tuple[str, ...]:
        total = sum(counts.values())
        return (name, str(total), *(f"{count} ({count / (total or 1):.1%})" for count in counts.values()))

    rows = [row("documents", record["documents"]), row("entities", record["entities"])]
    rows += [row(f"  {label}", counts) for label, counts in record["labels"].items()]
    table(["", "all", *record["documents"]], rows)
    held = f"{len(record['near_duplicates'])} duplicates and near-duplicates, {len(record['groups'])} groups, "
    table([f"{held}{record['left_out']} documents left out, seed {record['seed']}"], [])


def table(header: list[str], rows: Sequence[tuple[str, ...]], stream: Any = None) -> None:
    """Print rows under a header, to stdout unless `stream` is given."""
    from rich.console import Console
    from rich.table import Table

    drawn = Table(*header, box=None, pad_edge=False)
    for row in rows:
        drawn.add_row(*row)
    Console(file=stream or sys.stdout, highlight=False, markup=False).print(drawn)
