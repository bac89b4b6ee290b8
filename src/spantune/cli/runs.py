"""The commands `spantune runs`, which lists, filters, sorts and compares runs, and `spantune sync`.

Tables, CSV and JSON go to stdout, messages to stderr.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spantune.cli import names
from spantune.cli.options import Json
from spantune.cli.options import Run as RunFolderArgument
from spantune.core import ConfigError, print_table, put, put_json, say, to_json, visible

if TYPE_CHECKING:
    from spantune.runs import Run


def runs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Run folders, or folders that contain some. The folder runs if not given.",
            autocompletion=names.run_folders,
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Show only runs with KEY=PATTERN, KEY!=PATTERN, KEY>NUMBER or KEY<NUMBER. KEY is a column, or a "
            "section.key of the recipe."
        ),
    ] = None,
    sort: Annotated[str, typer.Option(help="Column or section.key to sort by; -KEY: largest first.")] = "started",
    compare: Annotated[
        bool, typer.Option("--compare", help="Show the runs side by side, with all settings in which they differ.")
    ] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV with all columns and all settings that differ.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List runs with their model, data, F1, time and state (running, finished, stopped, killed).

    F1 is measured on the test documents, or on the dev documents if there is no test set. For an unfinished run, it is
    the best F1 on dev so far. To test whether two runs differ by more than chance, use spantune compare.

    Examples:

        spantune runs --where state=finished --where 'model=*phi-4*' --sort -f1

        spantune runs runs/phi4-cmeee runs/phi4-cmeee-r32 --compare

        spantune runs --csv > runs.csv
    """
    if as_csv + as_json + compare > 1:
        raise ConfigError("give one of --compare, --csv and --json")
    from spantune.runs import listing

    all_runs = [listing.read(folder) for folder in listing.find(folders or [Path("runs")])]
    shown_runs = listing.in_order(listing.matching(all_runs, where or []), sort)
    for run in shown_runs:
        if run.problem:
            say(f"{run.name}: {run.problem}")
    if not shown_runs:
        say("no run matches --where" if all_runs else "there are no runs here; spantune train makes one")
    if as_json:
        put_json({"runs": [run.as_dict() for run in shown_runs]})
    elif as_csv:
        _write_csv(shown_runs, listing.differing(shown_runs))
    elif compare:
        _print_compared(shown_runs, listing.differing(shown_runs))
    else:
        _print_list(shown_runs)


def _write_csv(runs: Sequence[Run], settings: Sequence[str]) -> None:
    from spantune.runs import COLUMNS

    keys = [*COLUMNS, *settings]
    page = io.StringIO()
    writer = csv.writer(page, lineterminator="\n")
    writer.writerow(keys)
    writer.writerows([_plain(run.get(key)) for key in keys] for run in runs)
    put(page.getvalue().removesuffix("\n"))


def _print_list(runs: Sequence[Run]) -> None:
    from_ = {"warm_start": "from"} if any(run.warm_start for run in runs) else {}
    shown = {"name": "run", "state": "state", "model": "model", "data": "data", **from_}
    head = [*shown.values(), "F1", "95 %", "on", "steps", "time", "started"]
    rows = [(*(_shown(run.get(key)) for key in shown), *_figures(run)) for run in runs]
    if any(run.url for run in runs):
        head, rows = [*head, "url"], [(*row, _shown(run.url)) for row, run in zip(rows, runs, strict=True)]
    print_table(head, rows)


def _print_compared(runs: Sequence[Run], settings: Sequence[str]) -> None:
    rows = [(key, *(_shown(run.get(key)) for run in runs)) for key in ("state", "model", "data")]
    figures = zip(*(_figures(run) for run in runs), strict=True)
    names = ("F1", "95 %", "on", "steps", "time", "started")
    rows += [(name, *values) for name, values in zip(names, figures, strict=False)]
    if any(run.url for run in runs):
        rows.append(("url", *(_shown(run.url) for run in runs)))
    rows += [(key, *(_shown(run.get(key)) for run in runs)) for key in settings if key not in _SHOWN_ABOVE]
    print_table(["", *(_shown(run.name) for run in runs)], rows)


_SHOWN_ABOVE = ("model.source", "data.train")


def _figures(run: Run) -> tuple[str, ...]:
    low, high, seconds = run.f1_low, run.f1_high, run.seconds
    return (
        f"{run.f1:.3f}" if run.f1 is not None else "",
        f"{low:.3f}–{high:.3f}"
        if low is not None and high is not None
        else "too few to say"
        if run.f1 is not None
        else "",
        run.f1_on or "",
        _shown(run.step),
        f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}" if seconds is not None else "",
        run.started[:16].replace("T", " ") if run.started else "",
    )


def _shown(value: object) -> str:
    return visible(_plain(value))


def _plain(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else to_json(value)


def sync(
    run: RunFolderArgument,
    seconds: Annotated[float, typer.Option(help="Stop after this many seconds.", min=1)] = 600,
    as_json: Json = False,
) -> None:
    """Send the record of a run to SwanLab's cloud: a run that was tracked offline or locally, or was killed.

    A run is sent once. The API key is read from SWANLAB_API_KEY, or from what swanlab login has stored.

    Example: spantune sync runs/demo
    """
    from spantune.runs import sync as send

    sent = send(run, seconds)
    what = "was sent before" if sent.before else "is sent"
    say(f"{run} {what}: {sent.url or f'SwanLab run {sent.id}'}")
    if as_json:
        put_json({"id": sent.id, "url": sent.url, "before": sent.before})
