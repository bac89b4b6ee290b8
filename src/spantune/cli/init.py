"""The command `spantune init`, which makes a recipe for a corpus, and lists and copies bundled recipes."""

from __future__ import annotations

import shlex
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spantune.cli import names
from spantune.cli.options import Column, Encoding, Force, Format, Joiner, Json, Label, Offsets, reading_options
from spantune.core import ConfigError, nearest, print_table, put_json, require_new, say

if TYPE_CHECKING:
    from spantune.training import Draft

ANSWERS = ("jsonl", "grouped", "inline", "spans")
SHOWN = 12
"""The maximum number of labels that are printed."""


# Commands have many parameters, and so many lines, since typer reads the options from the signature.


def init(
    corpora: Annotated[
        list[str] | None,
        typer.Argument(
            help="A corpus: a file, several files, a folder with a corpus or its splits, or bundled:NAME.",
            autocompletion=names.corpora,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The recipe to write.")] = Path("recipe.yaml"),
    model: Annotated[
        str | None,
        typer.Option(
            help="The base model: bundled:NAME, hf:OWNER/NAME, modelscope:OWNER/NAME or a folder.",
            autocompletion=names.models,
        ),
    ] = None,
    answer: Annotated[
        Literal["jsonl", "grouped", "inline", "spans"] | None,
        typer.Option(
            help="The format in which entities are written, or spans to read them. Chosen by the size of the corpus if "
            "not given."
        ),
    ] = None,
    language: Annotated[Literal["zh", "en"] | None, typer.Option(help="Language of the instruction.")] = None,
    nested: Annotated[bool | None, typer.Option("--nested/--flat", help="Whether entities may overlap.")] = None,
    dev: Annotated[
        str | None, typer.Option(help="Dev corpus, which chooses the adapter. Held out if not given.")
    ] = None,
    test: Annotated[str | None, typer.Option(help="Test corpus, for the final figures.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Limit of the training time. 5 on a CPU if not given.", min=0.1)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run. That of the corpus file if not given.")] = None,
    format: Format = None,
    column: Column = None,
    joiner: Joiner = None,
    label: Label = None,
    encoding: Encoding = None,
    offsets: Offsets = None,
    force: Force = False,
    list_recipes: Annotated[bool, typer.Option("--list", help="List the recipes that come with spantune.")] = False,
    as_json: Json = False,
) -> None:
    """Write a recipe for a corpus: labels, language, splits and hyperparameters, each with a comment.

    On a terminal, it asks for the model, the answer format and a test corpus if the options do not give them. Give the
    name of a recipe that comes with spantune to copy it.

    Examples:

        spantune init notes.jsonl --out recipe.yaml

        spantune init train.jsonl --dev dev.jsonl --test test.jsonl --model hf:Qwen/Qwen3-0.6B

        spantune init bundled:demo --out recipe.yaml
    """
    if list_recipes:
        _list(as_json=as_json)
        return
    if not corpora:
        raise ConfigError("give a corpus, such as spantune init notes.jsonl, or --list for the recipes that ship")
    choices: dict[str, Any] = {
        "model": model,
        "answer": answer,
        "language": language,
        "nested": nested,
        "dev": dev,
        "test": test,
        "minutes": minutes,
        "name": name,
    }
    choices = {key: value for key, value in choices.items() if value is not None}
    if _is_recipe(corpora):
        if choices:
            given = ", ".join(f"--{key}" for key in choices).replace("--nested", "--nested or --flat")
            raise ConfigError(
                f"{corpora[0]} is a recipe, which is copied as it is; leave out {given}, and change the copy"
            )
        _copy(corpora[0], out, force=force, as_json=as_json)
        return
    options = reading_options(column, joiner, label, encoding, offsets)
    from spantune.training import Reading
    from spantune.training import init as make_recipe

    reading = Reading(format, options)
    if reading.keys():
        choices["reading"] = reading
    require_new(out, corpora, force=force)
    draft = make_recipe(corpora, out, write=False, **choices)
    _say_found(draft)
    if sys.stdin.isatty() and sys.stderr.isatty() and not as_json and (asked := _asked(draft, choices)):
        draft = make_recipe(corpora, out, write=False, **(choices | asked))
    draft.write(out, force=force)
    _say_decided(draft, out)
    if as_json:
        put_json({"recipe": str(out), **draft.as_dict(), "next": _next(out)})


def _asked(draft: Draft, choices: dict[str, Any]) -> dict[str, Any]:
    """Ask the user for the choices that no option has made, and return the answers that differ from the defaults.

    An empty line accepts the default, which the question shows in brackets.

    Raises:
        ConfigError: an answer is not an answer format.
    """
    answers: dict[str, Any] = {}
    if "model" not in choices:
        model = _ask("Model (bundled:, hf:, modelscope: or a folder)", draft.decided.model)
        answers |= {"model": model} if model != draft.decided.model else {}
    if "answer" not in choices:
        answer = _ask(
            f"How the model answers ({', '.join(ANSWERS[:-1])}: it writes; spans: it reads)", draft.decided.answer
        )
        if answer not in ANSWERS:
            raise ConfigError(f"unknown answer format {answer!r}; {nearest(answer, ANSWERS)}")
        answers |= {"answer": answer} if answer != draft.decided.answer else {}
    if not {"dev", "test"} & choices.keys() and draft.decided.found.documents.keys() == {"train"}:
        test = _ask("A file with other documents for the final figures", "none")
        answers |= {"test": test} if test != "none" else {}
    return answers


def _ask(question: str, default: str) -> str:
    say(f"{question} [Enter: {default}]:")
    return sys.stdin.readline().strip() or default


def _say_found(draft: Draft) -> None:
    """Print what was found in the corpora: format, documents, labels and notes."""
    found = draft.decided.found
    counts = ", ".join(f"{split} {len(documents):,}" for split, documents in found.documents.items())
    labels = [f"{label} {count:,}" for label, count in found.labels.items()]
    more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
    overlaps = f"{'some' if found.nested else 'no'} entities overlap"
    _say_row("format", ", ".join(found.formats))
    _say_row("documents", f"{counts}; {found.chinese_share:.0%} Chinese; {overlaps}")
    _say_row("labels", f"{', '.join(labels[:SHOWN])}{more}")
    for note, count in found.notes.items():
        _say_row("note", f"{count:,} × {note}")


def _say_row(name: str, text: str) -> None:
    """Print a row of two columns on stderr. On a terminal, the second column is wrapped."""
    width = shutil.get_terminal_size().columns - 1 if sys.stderr.isatty() else 10**6
    columns = f"{name:<10} {text}"
    lines = textwrap.wrap(columns, max(width, 40), subsequent_indent=" " * 11, break_on_hyphens=False)
    say("\n".join(lines) if len(columns) > width else columns)


def _say_decided(draft: Draft, out: Path) -> None:
    """Print what the recipe has, and the next commands."""
    decided = draft.decided
    held = f" (the first {decided.held_out} of train held out as dev)" if decided.share is not None else ""
    nesting = "nested" if decided.nested else "flat"
    _say_row("splits", f"{', '.join(f'{split} {count:,}' for split, count in decided.counts.items())}{held}")
    language = {"zh": "Chinese", "en": "English"}[decided.language]
    enough = f", since {decided.entities:,} training entities a label are enough for it" if decided.is_chosen else ""
    answer = f"answer {decided.answer}, {language} instruction"
    if decided.is_read:
        answer = f"spans are read{enough}"
    _say_row("task", f"{nesting} entities, {answer}")
    device = {"cpu": "this machine's CPU", "cuda": "a GPU"}[decided.device]
    chosen = f"values for {decided.row.name}" if decided.row else "values chosen when training starts"
    minutes = f", {decided.minutes:g} minutes at most" if decided.minutes is not None else ""
    _say_row("training", f"{decided.model} on {device}, {chosen}{minutes}")
    for remark in draft.remarks:
        _say_row("note", remark)
    _say_written(out)


def _say_written(out: Path, of: str = "") -> None:
    say("\n  ".join([f"written    {out}{of}\n\nNext:", *_next(out)]))


def _next(out: Path) -> list[str]:
    """Return the next commands of a user, quoted so that they can be copied."""
    recipe = shlex.quote(str(out))
    return [f"spantune plan {recipe}", f"spantune train {recipe}"]


def _is_recipe(corpora: list[str]) -> bool:
    """Whether the argument is the name of a bundled recipe, such as `bundled:demo`."""
    from spantune.core import bundled_recipes

    first = corpora[0].removeprefix("bundled:")
    return len(corpora) == 1 and corpora[0].startswith("bundled:") and first in bundled_recipes()


def _copy(recipe: str, out: Path, *, force: bool, as_json: bool) -> None:
    from spantune.core import recipe_path, replace_text

    require_new(out, [recipe_path(recipe)], force=force)
    replace_text(out, recipe_path(recipe).read_text(encoding="utf-8"))
    _say_written(out, f", a copy of {recipe}")
    if as_json:
        put_json({"recipe": str(out), "of": recipe})


def _list(*, as_json: bool) -> None:
    from spantune.core import bundled_recipes, description

    recipes = {f"bundled:{name}": description(path) for name, path in bundled_recipes().items()}
    if as_json:
        put_json({"recipes": recipes})
        return
    print_table(["recipe", "what it is"], list(recipes.items()))
    say("\nRun one:\n  spantune train bundled:demo\nCopy one:\n  spantune init bundled:demo --out recipe.yaml")
