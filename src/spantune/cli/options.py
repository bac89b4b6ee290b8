"""Options and settings that several commands share."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from spantune.data import Options, Unit
    from spantune.metrics import Calibration


# A command has as many parameters as options: typer reads them from the signature.
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there already; never what is read.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to run.")]
Format = Annotated[str | None, typer.Option("--format", help="Format of the input; recognised when absent.")]
Column = Annotated[
    str | None, typer.Option(help="Name, or number from 0, of the column or field of tags, entities or text.")
]
Joiner = Annotated[str | None, typer.Option(help="What stands between tokens; told from them when absent.")]
AcceptChanges = Annotated[
    bool, typer.Option("--accept-changes", help="Use an adapter that was changed after training, with a warning.")
]
Label = Annotated[str | None, typer.Option("--label", help="The label of tags that have none: B, I and O.")]
Encoding = Annotated[
    str | None, typer.Option(help="Encoding of text files, such as windows-1252; UTF-8, or as marked, when absent.")
]
Offsets = Annotated[
    Literal["codepoints", "utf16", "bytes", "crlf"] | None,
    typer.Option(help="What the file's offsets count; crlf: each CRLF as one. Code points when absent."),
]
MinScore = Annotated[
    float | None,
    typer.Option(help="Leave out entities with a lower score; 0 keeps all. The run's own threshold when absent."),
]


def quiet() -> None:
    """Hide the banners and progress bars of libraries, and the messages that spantune's own replace."""
    import os
    import warnings

    if not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)  # libraries warn of each other's changes
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a shared machine, spinning threads are ten times slower
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of optional kernels when it is imported
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def reading_options(
    column: str | None, joiner: str | None, label: str | None, encoding: str | None, offsets: Unit | None
) -> Options:
    """How the options say that a corpus is read."""
    from spantune.data import Options

    number = column is not None and column.removeprefix("-").isdecimal()
    name_or_number = int(column) if column and number else column
    return Options(column=name_or_number, joiner=joiner, label=label, encoding=encoding, offsets=offsets)


def parts_read(inputs: Iterable[str | Path | None]) -> list[Path]:
    """The files and folders that a command reads: of a run folder its own parts, so that others may stand in it."""
    from spantune.runs import RunFolder

    parts = []
    for source in inputs:
        run = RunFolder(Path(source or ""))
        parts += [] if source is None else run.parts if run.is_run else [run.path]
    return parts


def report_left_out(calibration: Calibration | None, count: int) -> None:
    """Print to stderr how many entities the calibrated threshold dropped; nothing where there is none."""
    from spantune.core import say

    if calibration and (calibration.threshold is not None or calibration.label_thresholds):
        say(f"{count} entities left out, {describe_threshold(calibration)}; --min-score 0 keeps all")


def describe_threshold(calibration: Calibration) -> str:
    """The thresholds in words."""
    overall = "none" if calibration.threshold is None else f"score under {calibration.threshold:.3f}"
    by_label = ", ".join(f"{label} {threshold:.3f}" for label, threshold in calibration.label_thresholds.items())
    return f"{overall}; by label: {by_label}" if by_label else overall
