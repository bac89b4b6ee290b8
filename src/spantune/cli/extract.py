"""The command `spantune extract`.

As in `cli`, there is no logic here: results go to stdout or a file, messages to stderr.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spantune.cli.options import AcceptChanges, Device, Force, MinScore, parts_read, quiet, report_left_out
from spantune.core import ConfigError, log_crashes_into, say
from spantune.runs import RunFolder

if TYPE_CHECKING:
    from spantune.core import Config, Extraction, Prediction
    from spantune.extraction import Engine, Tally, Target
    from spantune.metrics import Calibration


# A command has as many parameters as options: typer reads them from the signature, which is half of its lines.


def extract(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    files: Annotated[
        list[str], typer.Argument(help="Text files (one document a line), corpus files, or - for text on stdin.")
    ],
    out: Annotated[Path | None, typer.Option(help="Write here instead of to stdout.")] = None,
    to: Annotated[str, typer.Option(help="Format of the output, with --out.")] = "native",
    nested: Annotated[
        Literal["error", "outermost", "innermost"],
        typer.Option(help="What flat tags, with --to, keep of entities that overlap; error refuses them."),
    ] = "error",
    html: Annotated[Path | None, typer.Option(help="Write a page to look through the results too.")] = None,
    format: Annotated[
        str | None, typer.Option(help="Format of the input: text, or one of a corpus; recognised when absent.")
    ] = None,
    whole_file: Annotated[
        bool, typer.Option("--whole-file", help="Take each text file as one document, not its lines.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with --out where an interrupted run ended.")] = False,
    force: Force = False,
    min_score: MinScore = None,
    accept_changes: AcceptChanges = False,
    batch_size: Annotated[int | None, typer.Option(help="Documents decoded together.", min=1)] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="extract.key=value for the recipe.")] = None,
    device: Device = "auto",
    engine: Annotated[
        Literal["local", "openai"], typer.Option(help="Decode here, or by a server that speaks OpenAI's protocol.")
    ] = "local",
    url: Annotated[str | None, typer.Option(help="Where the server is, such as http://127.0.0.1:8000/v1.")] = None,
    model: Annotated[str | None, typer.Option(help="The server's model to ask; its only one when absent.")] = None,
    grammar: Annotated[
        Literal["auto", "vllm", "llamacpp", "none"],
        typer.Option(help="How the grammar is sent; auto: as the server says it can, none: not at all."),
    ] = "auto",
    concurrency: Annotated[int, typer.Option(help="Most requests to the server at a time.", min=1)] = 16,
    timeout: Annotated[float, typer.Option(help="Seconds that a whole answer of the server may take.", min=1)] = 180,
) -> None:
    """Extract entities: native JSONL to stdout, in order; exit 1 when an answer was cut, invalid or ungrounded.

    A document that cannot be read or taken becomes a line that says why, and the others go on.

    Examples:

        spantune extract runs/demo notes.txt > entities.jsonl

        echo 患者因急性阑尾炎行腹腔镜手术。 | spantune extract runs/demo -

        spantune extract runs/demo reports.jsonl --out entities.jsonl --html entities.html --resume

        spantune extract runs/demo notes.txt --engine openai --url http://127.0.0.1:8000/v1
    """
    from spantune.extraction import Tally, Target, Texts
    from spantune.report import ExtractionView

    if (engine == "openai") != (url is not None):
        raise ConfigError("--engine openai and --url belong together; give both, or neither to decode here")
    if url is None and (model is not None or grammar != "auto"):
        raise ConfigError("--model and --grammar are of a server; give --engine openai and --url too")
    if url is not None and (batch_size is not None or device != "auto"):
        raise ConfigError("--batch-size and --device are of decoding here; for a server there is --concurrency")
    recipe = _recipe(run, overrides or [], batch_size)
    view = ExtractionView.of_run(run, min_score) if html else None
    target = Target(out, to, html, resume, nested, force, view)
    target.check([*files, *parts_read([run])])
    texts = Texts.open(files, format, whole=whole_file)
    quiet()
    tally = Tally()

    def load() -> Engine:
        if url is None:
            from spantune.extraction import load_run

            return load_run(run, device, recipe.extract, min_score, accept_changes=accept_changes)
        from spantune.extraction import Server, load_remote

        server = Server(url, model, grammar, concurrency, timeout)
        return load_remote(run, server, recipe.extract, min_score, accept_changes=accept_changes)

    with target.held():
        documents = texts.read(tally.notes)
        done = target.begin(documents)
        if done.documents:
            tally.documents, tally.with_problem = done.documents, done.with_problem
            say(f"{done.documents} documents were done")
        total = texts.count() if sys.stderr.isatty() else None
        work = _Work(documents, load, None if total is None else total - done.documents)
        try:
            target.write(work.results(), tally)
        finally:
            _report(tally, work.calibration, target)
    raise typer.Exit(1 if tally.with_problem else 0)


@dataclass
class _Work:
    """The documents that are not done yet, and the engine for them, which is loaded only where there is one."""

    documents: Iterator[Prediction]
    load: Callable[[], Engine]
    total: int | None
    calibration: Calibration | None = None

    def results(self) -> Iterator[Extraction]:
        """Yield an Extraction for each document."""
        from spantune.core import track

        for first in self.documents:
            engine = self.load()
            self.calibration = engine.calibration
            stream = engine.stream(itertools.chain([first], self.documents), strict=False)
            yield from track(stream, "extract", self.total, unit="documents")


def _recipe(run: Path, overrides: list[str], batch_size: int | None) -> Config:
    """Return the recipe of a run with the settings of this call."""
    from spantune.core import load_config

    folder = RunFolder(run)
    recipe = folder.config()
    log_crashes_into(run)
    for override in overrides:
        if not override.startswith("extract."):
            raise ConfigError(f"--set {override}: expected extract.key=value; the rest of a finished run is as it is")
    if batch_size:
        overrides = [*overrides, f"extract.batch_size={batch_size}"]
    return load_config(folder.config_file, overrides) if overrides else recipe


def _report(tally: Tally, calibration: Calibration | None, target: Target) -> None:
    """Report on stderr what was counted, and whether there is a journal to resume."""
    from spantune.extraction import SHOWN, partial

    report_left_out(calibration, tally.below_threshold)
    for note, count in tally.notes.items():
        say(f"{count} × {note}")
    if tally.contradicted:
        say(f"{tally.contradicted} entities left out, which the next chunk of their text contradicts")
    for line in tally.failures:
        say(f"failed: {line}")
    if tally.failed > SHOWN:
        say(f"failed: {tally.failed - SHOWN} more")
    if tally.not_representable:
        say(
            f"{tally.not_representable} documents are not in {target.out}: {target.format} has no place for what failed"
        )
    if tally.with_problem:
        say(f"{tally.with_problem} of {tally.documents} answers were wanting; see meta.problems of each")
    if target.out and partial(target.out).exists():
        say(f"{partial(target.out)} holds what is done; go on with --resume")
