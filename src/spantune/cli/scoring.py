"""Options that `spantune evaluate` and `compare` share: how corpora are read and scored, and where the report goes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spantune.cli.options import parts_read
from spantune.core import ConfigError, require_new, say
from spantune.runs import RunFolder

if TYPE_CHECKING:
    from spantune.core import Document
    from spantune.data import Corpus, Options

ProtocolName = Annotated[
    Literal["cblue", "promptcblue"],
    typer.Option(
        "--protocol", help="What counts as correct. cblue: start, end and label. promptcblue: mention and label."
    ),
]
Labels = Annotated[
    str | None, typer.Option(help="The label set, separated by commas. The labels in the files if not given.")
]
ReportFolder = Annotated[
    Path | None,
    typer.Option("--report", help="Write report.html, report.md and scores.json to this folder.", show_default=False),
]


REPORT_FILES = ("report.html", "report.md", "scores.json")


@dataclass(frozen=True)
class Reading:
    """How corpora are read.

    Args:
        format: the corpus format; detected from the content of a file if None.
        options: the other options of reading, such as the encoding.
    """

    format: str | None
    options: Options

    def corpus(self, path: str) -> Corpus:
        """Read a corpus."""
        from spantune.data import formats

        return formats.read(path, self.format, self.options)

    def documents(self, path: str) -> Sequence[Document]:
        """Read the documents of a corpus, and print on stderr what the reader repaired."""
        corpus = self.corpus(path)
        for note, count in corpus.notes.items():
            say(f"{corpus.name}: {count} × {note}")
        return corpus.documents


def label_set(labels: str | None) -> list[str] | None:
    """Return the labels of the option --labels; None if it is not given.

    Raises:
        ConfigError: the option names no label.
    """
    if labels is None:
        return None
    codes = [code for code in (part.strip() for part in labels.split(",")) if code]
    if not codes:
        raise ConfigError(f"--labels {labels!r} names no label; expected codes such as dis,sym,bod")
    return codes


def require_report_folder(folder: Path | None, inputs: Iterable[str | Path | None], force: bool) -> None:
    """Check that a report can be written into a folder, before predictions are made and scored.

    Args:
        folder: the folder of the option --report; None if it is not given.
        inputs: the files and folders that the command reads.
        force: whether an existing report may be replaced.

    Raises:
        ConfigError: a report cannot be written there.
    """
    if folder is None:
        return
    if RunFolder(folder).is_run:
        raise ConfigError(
            f"--report {folder} is a run folder, which has a report of its own; give another, such as {folder / 'test'}"
        )
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--report {folder} is a file; expected a folder, which is made where it is not there")
    for name in REPORT_FILES:
        require_new(folder / name, parts_read(inputs), force=force)


def made_folder(folder: Path) -> Path:
    """Create a folder if it does not exist, and return it.

    Raises:
        ConfigError: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--report {folder} cannot be made: {error.strerror}; give another folder") from None
    return folder
