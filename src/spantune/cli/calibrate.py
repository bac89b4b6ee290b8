"""The command `spantune calibrate`.

The table or JSON goes to stdout, messages to stderr.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from spantune.cli import names
from spantune.cli.libraries import quiet
from spantune.cli.options import (
    AcceptChanges,
    Column,
    Device,
    Encoding,
    Format,
    Joiner,
    Json,
    Label,
    Offsets,
    Run,
    describe_threshold,
    reading_options,
)
from spantune.core import (
    ConfigError,
    log_crashes_into,
    print_table,
    put,
    put_json,
)
from spantune.runs import RunFolder

if TYPE_CHECKING:
    from spantune.metrics import Calibration, Evidence, Figures


# Commands have many parameters, and so many lines, since typer reads the options from the signature.


def calibrate(
    run: Run,
    data: Annotated[
        str | None,
        typer.Option(
            help="An annotated corpus that the run was not trained on. The run's dev corpus if not given.",
            autocompletion=names.corpora,
        ),
    ] = None,
    format: Format = None,
    column: Column = None,
    joiner: Joiner = None,
    label: Label = None,
    encoding: Encoding = None,
    offsets: Offsets = None,
    objective: Annotated[
        str, typer.Option(help="What to choose the threshold for: f1, or a precision such as precision=0.9.")
    ] = "f1",
    per_label: Annotated[
        bool, typer.Option("--per-label", help="Also choose a threshold for each label that has enough predictions.")
    ] = False,
    store: Annotated[
        bool, typer.Option("--store/--no-store", help="Save the result as the run's default, or only print it.")
    ] = True,
    accept_changes: AcceptChanges = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Calibrate the scores of a run, and choose the threshold below which entities are dropped.

    A calibrated score of 0.8 means that about 80 % of the entities with that score are correct.

    Examples:

        spantune calibrate runs/demo

        spantune calibrate runs/demo --objective precision=0.9 --no-store
    """
    precision = _precision(objective)
    folder = RunFolder(run)
    folder.require_finished()
    log_crashes_into(run)
    quiet(folder.config().model.source)
    from spantune.data import formats
    from spantune.extraction import calibrate_run, load_bare

    options = reading_options(column, joiner, label, encoding, offsets)
    corpus = formats.read(data, format, options) if data else None
    extractor = load_bare(run, device, accept_changes=accept_changes)
    fitted = calibrate_run(extractor, corpus, precision=precision, per_label=per_label, store=store)
    stored = str(folder.calibration_file) if store else None
    if as_json:
        put_json({**fitted.model_dump(mode="json"), "stored": stored})
    else:
        _print(fitted, stored)


def _precision(objective: str) -> float | None:
    """Return the precision that the option --objective asks for; None if it asks for the best F1.

    Raises:
        ConfigError: the objective is neither `f1` nor `precision=NUMBER` with a number over 0 and up to 1.
    """
    if objective == "f1":
        return None
    name, _, value = objective.partition("=")
    try:
        precision = float(value)
    except ValueError:
        precision = -1.0
    if name != "precision" or not 0 < precision <= 1:
        raise ConfigError(f"--objective {objective}: expected f1, or a precision over 0 such as precision=0.9")
    return precision


def _print(calibration: Calibration, stored: str | None) -> None:
    evidence = calibration.evidence
    assert evidence is not None
    print_table(
        ["scores from", "to", "entities", "mean score", "precision"],
        [
            (f"{bin.low:.3f}", f"{bin.high:.3f}", str(bin.count), f"{bin.confidence:.3f}", f"{bin.precision:.3f}")
            for bin in evidence.bins
        ],
    )
    put("")
    print_table(["", "P", "R", "F1", "kept"], _rows(evidence))
    put("")
    held_out = "" if evidence.ece_held_out is None else f", {evidence.ece_held_out:.3f} on held-out documents"
    low, high = evidence.near_best
    figures = [
        ("documents", f"{evidence.documents} ({evidence.data})"),
        ("temperature", f"{calibration.temperature:.3f}"),
        ("calibration error", f"{evidence.ece_before:.3f} → {evidence.ece:.3f}{held_out}"),
        ("best F1", f"{evidence.best.f1:.3f} from a score of {evidence.best.threshold:.3f}"),
        ("nearly as good", f"thresholds from {low:.3f} to {high:.3f}"),
        ("threshold", describe_threshold(calibration)),
        *(("note", note) for note in evidence.notes),
        ("stored", stored or "no"),
    ]
    print_table(["", evidence.objective], figures)


def _rows(evidence: Evidence) -> list[tuple[str, ...]]:
    named: dict[str, Figures | None] = {
        "all entities": evidence.all,
        "with the threshold": evidence.chosen,
        "with one chosen on other documents": evidence.held_out,
    }
    return [
        (name, f"{figures.precision:.3f}", f"{figures.recall:.3f}", f"{figures.f1:.3f}", str(figures.kept))
        for name, figures in named.items()
        if figures
    ]
