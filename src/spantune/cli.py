"""The command line: parse, call, print, exit code. No logic lives here, and no torch is imported for --help.

Tables and JSON go to stdout, everything for people to stderr. Exit codes: 0 done, 1 found wanting, 2
wrong use.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from spantune import __version__, cli_calibrate, cli_data, cli_runs, cli_score, cli_track, tables
from spantune.cli_calibrate import MinScore, report_left_out
from spantune.cli_data import Device, Format, Json, quiet
from spantune.errors import ConfigError, SpantuneError
from spantune.signals import Interrupted

if TYPE_CHECKING:
    from spantune.document import Document
    from spantune.train import Result

app = typer.Typer(
    name="spantune",
    help="Fine-tune open LLMs into entity extractors whose every entity is in the text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cli_data.app, name="data")

# A command has as many parameters as options: typer reads them from the signature.
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value …", show_default=False)]


def main() -> NoReturn:
    """Run the command line; an error of the user's making is one sentence on stderr and exit code 2."""
    try:
        app()
    except SpantuneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.stderr.close()
        sys.exit(0)
    sys.exit(0)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Fine-tune open LLMs into entity extractors whose every entity is in the text."""
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def demo(
    overrides: Overrides = None,
    folder: Annotated[Path, typer.Option(help="Where the run is written.")] = Path("runs"),
) -> None:
    """Run the whole job on the embedded model and corpus: fine-tune, track, measure, extract.

    Takes about ten minutes on two CPU cores and ends with one JSON line.

    Example: spantune demo
    """
    from spantune.config import load_config
    from spantune.runs import free_name

    name = free_name(folder, "demo")
    recipe = load_config(_recipes() / "demo.yaml", [f"run.folder={folder}", f"run.name={name}", *(overrides or [])])
    _run(recipe, None)


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe.")], overrides: Overrides = None, as_json: Json = False
) -> None:
    """Audit a recipe and predict its memory and time before anything is spent; exit 1 on a failed audit.

    Example: spantune plan recipes/phi4-cmeee.yaml data.train=cmeee.jsonl
    """
    from spantune.config import load_config

    settings = load_config(recipe, overrides or [])
    quiet()
    from spantune.plan import make_plan
    from spantune.prepare import prepare

    found = make_plan(prepare(settings))
    if as_json:
        print(json.dumps(found.as_dict(), ensure_ascii=False))
    else:
        tables.print_plan(found)
    raise typer.Exit(1 if found.failed else 0)


@app.command()
def train(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe; not needed with --resume.")] = None,
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option(help="A run folder to go on with from its last checkpoint.")] = None,
) -> None:
    """Fine-tune by a recipe; ends with one JSON line of the run and its F1.

    Examples:

        spantune train recipes/cmeee-small.yaml data.train=cmeee.jsonl train.max_steps=24

        spantune train --resume runs/cmeee-small
    """
    if (recipe is None) == (resume is None):
        raise ConfigError("give either a recipe, or --resume with a run folder (whose recipe is kept)")
    if recipe is not None:
        from spantune.config import load_config

        settings = load_config(recipe, overrides or [])
    else:
        assert resume is not None
        from spantune.runs import resume_recipe

        settings = resume_recipe(resume)
    _run(settings, resume)


app.command()(cli_score.evaluate)
app.command()(cli_score.compare)
app.command()(cli_score.report)
app.command()(cli_runs.runs)


@app.command()
def extract(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    file: Annotated[str, typer.Argument(help="A text file (one document a line), a corpus file, or - for stdin.")],
    out: Annotated[Path | None, typer.Option(help="Write here instead of to stdout.")] = None,
    to: Annotated[str, typer.Option(help="Format of the output, with --out.")] = "native",
    format: Format = None,
    batch_size: Annotated[int | None, typer.Option(help="Documents decoded together.", min=1)] = None,
    min_score: MinScore = None,
    device: Device = "auto",
) -> None:
    """Extract entities: native JSONL to stdout, in order; exit 1 when an answer was cut, invalid or ungrounded.

    Examples:

        spantune extract runs/demo notes.txt > entities.jsonl

        echo 患者因急性阑尾炎行腹腔镜手术。 | spantune extract runs/demo -
    """
    from spantune import formats
    from spantune.document import to_record
    from spantune.runs import read_config

    if to != "native" and out is None:
        raise ConfigError(f"--to {to} needs --out FILE; only native JSONL is written to stdout")
    settings = read_config(run).extract
    if batch_size:
        settings = settings.model_copy(update={"batch_size": batch_size})
    documents = list(_documents(file, format))
    quiet()
    from spantune.evaluate import annotated
    from spantune.extract import load_run
    from spantune.progress import console, track

    extractor = load_run(run, device, settings, min_score)
    wanting = left_out = 0

    def results() -> Iterator[Document]:
        nonlocal wanting, left_out
        for extraction in track(extractor.stream(documents), "extract", len(documents)):
            document = annotated(extraction)
            wanting += document is not extraction.document
            left_out += len(extraction.left_out)
            yield document

    if out:
        formats.write(out, results(), to)
    else:
        for document in results():
            print(json.dumps(to_record(document), ensure_ascii=False), flush=True)
    report_left_out(extractor.calibration, left_out)
    if wanting:
        console().print(f"{wanting} of {len(documents)} answers were wanting; see meta.problems of each", markup=False)
    raise typer.Exit(1 if wanting else 0)


app.command()(cli_calibrate.calibrate)
app.command()(cli_track.sync)


def _run(recipe: Any, resume: Path | None) -> None:
    quiet()
    from spantune.tracker import hints
    from spantune.train import train as job

    try:
        result: Result = job(recipe, resume)
    except Interrupted as ended:
        raise typer.Exit(ended.exit_code) from None
    tables.print_scores(result.after.as_dict(), sys.stderr)
    lines = [f"report: {result.folder / 'report.html'}", *hints(result.folder)]
    lines.append(f"extract: spantune extract {result.folder} FILE")
    print("\n".join(lines), file=sys.stderr)
    print(json.dumps(result.as_dict(), ensure_ascii=False))


def _documents(file: str, format: str | None) -> Iterator[Document]:
    """The documents to extract from: a corpus file, or plain text, one document a line."""
    from collections import Counter

    from spantune import formats
    from spantune.document import Document
    from spantune.formats.files import read_lines

    if file != "-" and (format or not file.endswith(".txt")):
        yield from formats.stream(file, format, Counter(), formats.Options(unannotated=True))
        return
    for number, line in _stdin() if file == "-" else read_lines(Path(file), Counter()):
        if line.strip():
            yield Document(str(number), line)


def _stdin() -> Iterator[tuple[int, str]]:
    from spantune.errors import DataError

    try:
        for number, line in enumerate(sys.stdin, start=1):
            yield number, line.rstrip("\n")
    except UnicodeDecodeError as error:
        found = error.object[error.start]
        raise DataError(f"not UTF-8: byte 0x{found:02X}; convert it, for example with iconv", path="stdin") from None


def _recipes() -> Path:
    """The recipes of an installed package, else of the checkout."""
    installed = Path(__file__).parent / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "recipes"
