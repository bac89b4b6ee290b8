"""The command line: each command parses its arguments, calls the library, prints the result and sets the exit code.

It has no other logic, and it does not import torch for --help. Tables and JSON go to stdout, messages to stderr. Exit
codes: 0 for success, 1 if a check failed, 2 for wrong use or a file that cannot be used, 70 for a bug of spantune.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, cast

import typer

from spantune import __version__
from spantune.cli import calibrate, compare, data, evaluate, export, extract, init, names, runs, serve, tables, watch
from spantune.cli.help import App
from spantune.cli.libraries import quiet
from spantune.cli.options import Json, Overrides, Recipe
from spantune.core import (
    ConfigError,
    Interrupted,
    RankLost,
    SpantuneError,
    complain,
    first_line,
    global_rank,
    guard_terminal,
    log_crash,
    missing_train,
    os_error,
    put,
    put_json,
    require_system,
    say,
    set_verbosity,
)
from spantune.runs import RunFolder

if TYPE_CHECKING:
    from spantune.core import Config
    from spantune.training import Result


BUG = 70
"""The exit code for a bug of spantune: EX_SOFTWARE of sysexits.h."""
_WrongUse = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[2])
"""The error that typer raises for wrong use of the command line: ClickException, which typer does not export."""

VERBOSITY = ("-q", "--quiet", "-v", "--verbose")
NAME = "spantune"
"""The name of the program in help and errors, however it was started."""

app = App(name=NAME, help="Fine-tune open LLMs into entity extractors whose every entity is in the text.")
app.add_typer(data.app, name="data")

# Commands have many parameters, and so many lines, since typer reads the options from the signature.


def main() -> NoReturn:
    """Run the command line and exit.

    An error is printed as one sentence on stderr, and the exit code is 2, or 70 for a bug of spantune.
    """
    guard_terminal()
    try:
        require_system()
        code = app(args=_with_verbosity_first(sys.argv[1:]), prog_name=NAME, standalone_mode=False)
    except _WrongUse as error:
        code = _wrong_use(error)
    except SpantuneError as error:
        code = _fail(str(error), is_lost=isinstance(error, RankLost))
    except OSError as error:
        code = _fail(os_error(error))
    except MemoryError:
        code = _fail("the memory of this machine is not enough; take less at a time, such as a smaller batch or file")
    except KeyboardInterrupt:
        code = 130
    except ModuleNotFoundError as error:
        missing = missing_train(error)
        code = _fail(str(missing)) if missing else _report_bug(error)
    except Exception as error:  # a bug of spantune: its traceback goes into a log file, for a bug report
        code = _report_bug(error)
    sys.exit(code or 0)


def _with_verbosity_first(arguments: list[str]) -> list[str]:
    """Return the arguments with `-q` and `-v` moved before the command, so that users may also give them after it."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    flags = [argument for argument in arguments[:end] if argument in VERBOSITY]
    return [*flags, *(argument for argument in arguments[:end] if argument not in VERBOSITY), *arguments[end:]]


def _fail(sentence: str, *, is_lost: bool = False) -> int:
    return _tell(f"error: {sentence}", 2, is_lost=is_lost)


def _tell(sentence: str, code: int, *, is_lost: bool = False) -> int:
    """Print an error, unless this is one of several training processes and another process failed first.

    Args:
        sentence: the error message.
        code: the exit code for it.
        is_lost: whether the error only says that another process has ended.

    Returns:
        the exit code of the process that failed first.
    """
    if len(sys.argv) > 1 and sys.argv[1] == "train" and os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        from spantune.training import first_failure

        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # otherwise the launcher ends it before it has printed
        code_of_first = first_failure(code, is_lost=is_lost)
        if code_of_first is not None:
            return code_of_first
        sentence = f"rank {os.environ.get('RANK', '?')}: {sentence}"
    complain(sentence)
    return code


def _wrong_use(error: typer.BadParameter) -> int:
    """Print in one line what is wrong with the arguments and which help explains them, and return the exit code.

    For a group of commands without a command, the help of the group is printed.
    """
    context = error.ctx
    message = error.format_message().rstrip(".")
    if "\n" in message and context is not None and message == context.get_help().rstrip("."):
        complain(message)
        return 2
    if unreadable := re.search(r"(?i:path|file|directory) '(.*)' is not readable$", message):
        return _fail(os_error(PermissionError(errno.EACCES, os.strerror(errno.EACCES), unreadable[1])))
    message = re.sub(r"\bValue error, |\.(?= Did you mean)", "", message).replace(" Did you mean", "; did you mean")
    message = re.sub(r"\(Possible options: (.*)\)", r"(did you mean \1?)", message)
    where = f"; see {context.command_path} --help" if context is not None else ""
    return _fail(f"{message[:1].lower()}{message[1:]}{where}".replace("\n", " ").replace("\t", ""))


def _report_bug(error: Exception) -> int:
    """Write the traceback of a bug into a log file, print in one line where it is, and return the exit code."""
    path = log_crash(error)
    where = f"the traceback is in {path}" if path else "its traceback could not be written"
    return _tell(
        f"error: this is a bug in spantune ({type(error).__name__}: {first_line(error)}); {where}; please report it",
        BUG,
    )


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only errors and results. May follow the command too.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print the whole log of spantune. May follow the command too.")
    ] = False,
) -> None:
    """Fine-tune open LLMs into entity extractors whose every entity is in the text."""
    if quiet and verbose:
        raise ConfigError("-q and -v contradict each other; give one of them")
    set_verbosity(quiet=quiet, verbose=verbose)
    if version:
        put(__version__)
        raise typer.Exit


@app.command()
def demo(
    overrides: Overrides = None,
    folder: Annotated[Path, typer.Option(help="The folder to put the run folder in.")] = Path("runs"),
) -> None:
    """Try everything on a small model and corpus that come with spantune: train, track, score.

    Takes about six minutes on two CPU cores and ends with one JSON line.

    Example: spantune demo
    """
    from spantune.core import load_config
    from spantune.runs import free_name

    name = free_name(folder, "demo")
    recipe = load_config("bundled:demo", [f"run.folder={folder}", f"run.name={name}", *(overrides or [])])
    _run(recipe, None)


app.command(listed=["Recipes that come with spantune", "Models that come in packages"])(init.init)


@app.command(listed=["Recipes that come with spantune"])
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    gpus: Annotated[
        int, typer.Option(help="Predict for so many GPUs like this one, with a training process on each.", min=1)
    ] = 1,
    as_json: Json = False,
) -> None:
    """Check a recipe before training, and predict how much memory and time it takes.

    The exit code is 1 if a check fails.

    A setting that is unlikely to work, such as too few optimizer steps, gives a warning and does not change the exit
    code.

    Examples:

        spantune plan recipe.yaml

        spantune plan bundled:phi4-cmeee data.train=cmeee.jsonl

        spantune plan recipe.yaml --gpus 4
    """
    from spantune.core import load_config

    settings = load_config(recipe, overrides or [])
    quiet(settings.model.source)
    from spantune.training import make_plan, prepare

    audited = make_plan(prepare(settings), ranks=gpus)
    if as_json:
        put_json(audited.as_dict())
    else:
        tables.print_plan(audited.as_dict())
    raise typer.Exit(1 if audited.failed else 0)


@app.command(listed=["Recipes that come with spantune", "Models that come in packages"])
def train(
    recipe: Annotated[
        Path | None,
        typer.Argument(help="A recipe file, or bundled:NAME; not needed with --resume.", autocompletion=names.recipes),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Continue this run from its last checkpoint.", autocompletion=names.run_folders),
    ] = None,
) -> None:
    """Fine-tune a model as a recipe says; ends with one JSON line with the run and its F1.

    Examples:

        spantune train recipe.yaml

        spantune train bundled:cmeee-small data.train=cmeee.jsonl train.max_steps=24

        spantune train --resume runs/cmeee-small

        torchrun --nproc-per-node 2 -m spantune train recipe.yaml

    Passwords and keys in the recipe are not saved with the run: give such a value again after --resume.
    """
    arguments = [*([str(recipe)] if recipe else []), *(overrides or [])]
    if resume is not None and all("=" in argument for argument in arguments):
        settings = RunFolder(resume).resume_config(arguments)
    elif resume is None and recipe is not None:
        from spantune.core import load_config

        settings = load_config(recipe, overrides or [])
    else:
        raise ConfigError("give either a recipe, or --resume with a run folder (whose recipe is kept)")
    _run(settings, resume)


app.command(listed=["Formats"])(evaluate.evaluate)
app.command()(compare.compare)
app.command()(evaluate.report)
app.command()(runs.runs)
app.command()(watch.watch)
app.command(listed=["Formats"])(extract.extract)
app.command()(calibrate.calibrate)
app.command()(serve.serve)
app.command()(export.export)
app.command()(runs.sync)


def _run(recipe: Config, resume: Path | None) -> None:
    quiet(recipe.model.source, whole=True)
    from spantune.runs import hints
    from spantune.training import train as run_job

    try:
        result: Result = run_job(recipe, resume=resume)
    except Interrupted as interrupt:
        raise typer.Exit(interrupt.exit_code) from None
    if global_rank() > 0:
        return
    on = {"test": "test", "dev": f"dev (these documents chose {result.chosen})"}[result.f1_on]
    tables.print_scores(result.after.as_dict(), sys.stderr, on)
    lines = [f"report: {RunFolder(result.folder).report_html}", *hints(result.folder)]
    folder, earlier = shlex.quote(str(result.folder)), recipe.train.from_
    if earlier is not None and RunFolder(Path(earlier)).is_run:
        lines.append(f"compare: spantune compare {shlex.quote(earlier)} {folder}")
    lines.append(f"extract: spantune extract {folder} FILE")
    say("\n".join(lines))
    put_json(result.as_dict())
