"""The command `spantune compare`: test whether systems differ by more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from spantune.cli import names, tables
from spantune.cli.options import Column, Encoding, Force, Format, Joiner, Json, Label, Offsets, reading_options
from spantune.cli.scoring import (
    Labels,
    ProtocolName,
    Reading,
    ReportFolder,
    label_set,
    made_folder,
    require_report_folder,
)
from spantune.core import put_json, say
from spantune.runs import RunFolder

# Commands have many parameters, and so many lines, since typer reads the options from the signature.


def compare(
    systems: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders, and with --gold also files with predictions. Each is compared with the first.",
            autocompletion=names.run_folders,
        ),
    ],
    gold: Annotated[
        str | None,
        typer.Option(
            help="The corpus with the correct entities. The test corpus of the runs' recipes if not given.",
            autocompletion=names.corpora,
        ),
    ] = None,
    protocol: ProtocolName = "cblue",
    labels: Labels = None,
    format: Format = None,
    column: Column = None,
    joiner: Joiner = None,
    label: Label = None,
    encoding: Encoding = None,
    offsets: Offsets = None,
    report: ReportFolder = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Test whether systems differ by more than chance on the same documents.

    Uses the paired bootstrap and approximate randomisation. Runs that were scored on different documents, or on a
    different annotation of the same texts, are refused. With --gold, a run's predictions for that corpus are used if
    spantune evaluate has made them, otherwise those for its own test corpus.

    Examples:

        spantune compare runs/phi4-cmeee runs/phi4-cmeee-r32 --report compared

        spantune compare --gold test.jsonl before.jsonl after.jsonl --json
    """
    from spantune.metrics import compare as compare_systems
    from spantune.runs import labels_of_systems, read_systems

    require_report_folder(report, (*systems, gold), force)
    reading = Reading(format, reading_options(column, joiner, label, encoding, offsets))
    read, notes = read_systems(systems, reading.corpus(gold) if gold else None, protocol, format)
    for note in notes:
        say(note)
    codes = label_set(labels) or labels_of_systems(read, systems)
    comparison = compare_systems(read, codes)
    for name, scores in comparison.systems.items():
        for note, count in scores.notes.items():
            say(f"{name}: {count} × {note}")
    if report:
        from spantune.report import write_comparison

        data = gold or f"the {RunFolder(systems[0]).config().data.f1_on} documents of {read[0].name}"
        write_comparison(made_folder(report), comparison, read, _label_names(systems, codes), data)
    if as_json:
        put_json(comparison.as_dict())
    else:
        tables.print_comparison(comparison)


def _label_names(paths: Sequence[Path], codes: Sequence[str]) -> dict[str, str]:
    """Return the name of each code: that of the first run among `paths`, or the code itself where there is none."""
    from spantune.core import TaskSpec

    run = next((path for path in paths if RunFolder(path).is_run), None)
    task_names = TaskSpec.load(run).names if run else {}
    return {code: task_names.get(code, code) for code in codes}
