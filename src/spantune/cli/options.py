"""Options that several commands share, and functions that evaluate them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spantune.cli import names

if TYPE_CHECKING:
    from spantune.core import Cluster
    from spantune.data import Options, Unit
    from spantune.metrics import Calibration


READING = "How the input is read"
"""The section of a help page for options about reading a file."""

# Commands have many parameters, and so many lines, since typer reads the options from the signature.
Run = Annotated[Path, typer.Argument(help="A run folder.", autocompletion=names.run_folders)]
Recipe = Annotated[Path, typer.Argument(help="A recipe file, or bundled:NAME.", autocompletion=names.recipes)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Settings of the recipe to change, such as train.max_steps=24.",
        metavar="SECTION.KEY=VALUE",
        show_default=False,
        autocompletion=names.settings,
    ),
]
Sets = Annotated[list[str] | None, typer.Option("--set", hidden=True)]
"""The old form of overrides, which are now arguments. It is still accepted in this release."""
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Force = Annotated[bool, typer.Option("--force", help="Replace output that exists already. Input is never replaced.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to run the model.")]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Format of the input. Detected from its content if not given.",
        autocompletion=names.read_formats,
        rich_help_panel=READING,
    ),
]
Column = Annotated[
    str | None,
    typer.Option(
        help="The column or field that holds the tags, the entities or the text: its name, or its number from 0.",
        rich_help_panel=READING,
    ),
]
Joiner = Annotated[
    str | None,
    typer.Option(
        help="Text between two tokens, such as a space. Chosen from the tokens if not given.", rich_help_panel=READING
    ),
]
AcceptChanges = Annotated[
    bool,
    typer.Option("--accept-changes", help="Use the adapter even if its files were changed after training; warns."),
]
Label = Annotated[
    str | None,
    typer.Option("--label", help="Label for tags that name none (B, I and O).", rich_help_panel=READING),
]
Encoding = Annotated[
    str | None,
    typer.Option(
        help="Encoding of text files, such as windows-1252. UTF-8, or what a byte-order mark says, if not given.",
        rich_help_panel=READING,
    ),
]
Offsets = Annotated[
    Literal["codepoints", "utf16", "bytes", "crlf"] | None,
    typer.Option(
        help="Unit of the offsets in the file. crlf: characters, with each CRLF as one. Code points if not given.",
        rich_help_panel=READING,
    ),
]
MANY = "Many processes"
"""The section of a help page for options about several processes and Ray."""
CorpusEngine = Annotated[
    Literal["local", "ray"],
    typer.Option(
        help="Read a large file here (local), or on one or more machines (ray), which all see it under the same path "
        "or URL.",
        rich_help_panel=MANY,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="A Ray cluster: HOST:PORT, ray://HOST:PORT, or auto. Ray on this machine alone if not given.",
        rich_help_panel=MANY,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="How many processes read. If not given, one for each CPU core, where the corpus has 32 MiB or more.",
        min=1,
        rich_help_panel=MANY,
    ),
]
MinScore = Annotated[
    float | None,
    typer.Option(
        help="Drop entities with a lower score; 0 keeps all, or, where spans are read, all from 0.047 on. The run's "
        "own threshold if not given.",
        min=0,
        max=1,
    ),
]
_OVERRIDE = re.compile(r"\w+\.\w[\w.]*=")


def split_overrides(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """Separate the arguments of a command that takes files and overrides, in any order.

    Returns:
        the files, and the overrides. An override has the form `section.key=value` and is not the path of a file.
    """
    files: list[str] = []
    overrides: list[str] = []
    for argument in arguments:
        is_override = _OVERRIDE.match(argument) and not Path(argument).exists()
        (overrides if is_override else files).append(argument)
    return files, overrides


def reading_options(
    column: str | None, joiner: str | None, label: str | None, encoding: str | None, offsets: Unit | None
) -> Options:
    """Return the data.Options for the options about reading. A column that is a whole number is taken as an index."""
    from spantune.data import Options

    number = column is not None and column.removeprefix("-").isdecimal()
    name_or_number = int(column) if column and number else column
    return Options(column=name_or_number, joiner=joiner, label=label, encoding=encoding, offsets=offsets)


def cluster_of(engine: str, address: str | None, workers: int | None) -> Cluster | None:
    """Return the Cluster of the options --engine, --address and --workers; None for the engine `local`.

    Raises:
        ConfigError: an address is given without `--engine ray`.
    """
    from spantune.core import Cluster, ConfigError

    if engine == "ray":
        return Cluster(address, workers)
    if address is not None:
        raise ConfigError("--address is of Ray; give --engine ray too")
    return None


def parts_read(inputs: Iterable[str | Path | None]) -> list[Path]:
    """Return the files and folders that a command reads, for the check that output does not replace them.

    For a run folder, these are the parts of the run, so that output may be written elsewhere in the run folder.

    Args:
        inputs: the inputs of the command; None values are left out.
    """
    from spantune.runs import RunFolder

    parts = []
    for source in inputs:
        run = RunFolder(Path(source or ""))
        parts += [] if source is None else run.parts if run.is_run else [run.path]
    return parts


def report_left_out(calibration: Calibration | None, count: int) -> None:
    """Print on stderr how many entities the calibrated thresholds dropped; nothing if there is no threshold."""
    from spantune.core import number, say

    if calibration and (calibration.threshold is not None or calibration.label_thresholds):
        left_out = number(count, "entity", "entities")
        say(f"{left_out} left out, {describe_threshold(calibration)}; --min-score 0 keeps all")


def describe_threshold(calibration: Calibration) -> str:
    """Return the thresholds of a calibration in words."""
    by_label = ", ".join(f"{label} {threshold:.3f}" for label, threshold in calibration.label_thresholds.items())
    if calibration.threshold is None:
        return f"score under that of the label: {by_label}" if by_label else "none"
    overall = f"score under {calibration.threshold:.3f}"
    return f"{overall}; by label: {by_label}" if by_label else overall
