"""The command line: parse, call, print, exit code. No logic lives here, and no torch is imported for --help.

Tables and JSON go to stdout, messages to stderr. Exit codes: 0 success, 1 a check failed, 2 wrong use.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from spantune import __version__
from spantune.cli import calibrate, data, evaluate, extract, runs, tables
from spantune.cli.options import Json, quiet
from spantune.core import ConfigError, Interrupted, SpantuneError, to_json
from spantune.runs import RunFolder

if TYPE_CHECKING:
    from spantune.core import Config
    from spantune.training import Result


app = typer.Typer(
    name="spantune",
    help="Fine-tune open LLMs into entity extractors whose every entity is in the text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data.app, name="data")

# A command has as many parameters as options: typer reads them from the signature.
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value …", show_default=False)]


def main() -> NoReturn:
    """Run the command line; a SpantuneError is one sentence on stderr and exit code 2."""
    try:
        app()
    except SpantuneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
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
    from spantune.core import load_config
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
    from spantune.core import load_config

    settings = load_config(recipe, overrides or [])
    quiet()
    from spantune.training import make_plan, prepare

    audited = make_plan(prepare(settings))
    if as_json:
        print(to_json(audited.as_dict()))
    else:
        tables.print_plan(audited.as_dict())
    raise typer.Exit(1 if audited.failed else 0)


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
        from spantune.core import load_config

        settings = load_config(recipe, overrides or [])
    else:
        assert resume is not None
        settings = RunFolder(resume).resume_config()
    _run(settings, resume)


app.command()(evaluate.evaluate)
app.command()(evaluate.compare)
app.command()(evaluate.report)
app.command()(runs.runs)
app.command()(extract.extract)
app.command()(calibrate.calibrate)
app.command()(runs.sync)


def _run(recipe: Config, resume: Path | None) -> None:
    quiet()
    from spantune.runs import hints
    from spantune.training import train as run_job

    try:
        result: Result = run_job(recipe, resume)
    except Interrupted as interrupt:
        raise typer.Exit(interrupt.exit_code) from None
    tables.print_scores(result.after.as_dict(), sys.stderr)
    lines = [f"report: {RunFolder(result.folder).report_html}", *hints(result.folder)]
    lines.append(f"extract: spantune extract {result.folder} FILE")
    print("\n".join(lines), file=sys.stderr)
    print(to_json(result.as_dict()))


def _recipes() -> Path:
    """The recipes of an installed package, else of the checkout."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"
