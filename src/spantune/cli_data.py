"""The command line's `spantune data`: look at annotated corpora, check, split and convert them.

As in `cli`, no logic lives here: tables and JSON go to stdout, everything for people to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spantune import tables
from spantune.errors import ConfigError

if TYPE_CHECKING:
    from spantune.findings import Report

app = typer.Typer(
    help="Look at annotated corpora, check and convert them.", no_args_is_help=True, rich_markup_mode=None
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Format = Annotated[str | None, typer.Option("--format", help="Format of the input; recognised when absent.")]


@app.command()
def inspect(
    file: Annotated[str | None, typer.Argument(help="A corpus file, or bundled:NAME.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Show tokens, loss mask and shared prefix under this recipe.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="section.key=value for the recipe.")] = None,
    format: Format = None,
    examples: Annotated[int, typer.Option(help="Examples to show.", min=0)] = 3,
    as_json: Json = False,
) -> None:
    """Show what is in a corpus, or how a recipe turns it into tokens.

    Examples:

        spantune data inspect cmeee.jsonl

        spantune data inspect --recipe recipes/demo.yaml
    """
    if (file is None) == (recipe is None):
        raise ConfigError("give either a corpus file, or --recipe with a recipe")
    if recipe is not None:
        _inspect_recipe(recipe, overrides or [], examples, as_json)
    else:
        assert file is not None
        _inspect_file(file, format, as_json)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A corpus file, or bundled:NAME.")],
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    to: Annotated[str, typer.Option(help="Format to write.")],
    source_format: Annotated[str | None, typer.Option("--from", help="Format to read; recognised when absent.")] = None,
) -> None:
    """Convert a corpus; what reading mended and what the target cannot hold is said on stderr.

    Example: spantune data convert cmeee.jsonl corpus.jsonl --to native
    """
    from spantune import formats

    corpus = formats.read(source, source_format)
    lost = formats.write(target, corpus.documents, to)
    for note, count in {**corpus.notes, **lost}.items():
        print(f"{count} × {note}", file=sys.stderr)
    print(f"{len(corpus.documents)} documents, {corpus.format} → {to}: {target}", file=sys.stderr)


@app.command()
def check(
    files: Annotated[list[str], typer.Argument(help="Corpus files; several are the splits of one corpus.")],
    fix: Annotated[
        Path | None,
        typer.Option(help="Write the corpus here with all that has one right answer mended; a folder for several."),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="The label set, separated by commas.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Take the label set from this recipe.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of a text, with --tokenizer.", min=1)] = None,
    tokenizer: Annotated[str | None, typer.Option(help="A folder with a tokenizer, or a model source.")] = None,
    format: Format = None,
    as_json: Json = False,
) -> None:
    """Check annotated files and say what is wrong, how often and where; exit 1 when an error is, or remains.

    With --fix, what is checked in the end is what was written; the changes are logged beside it.

    Examples:

        spantune data check train.jsonl dev.jsonl --labels dis,sym,bod

        spantune data check cmeee.jsonl --fix mended.jsonl
    """
    from spantune.check import Demands, read_source
    from spantune.check import check as examine
    from spantune.findings import Tally
    from spantune.repair import count_left_out, repair_all

    count_tokens = _token_counter(max_tokens, tokenizer)
    demands = Demands(_label_set(labels, recipe), max_tokens or 0, count_tokens)
    sources = [read_source(file, format) for file in files]
    tally = Tally()
    if fix is None:
        report = examine(sources, demands)
    else:
        repaired = repair_all(sources, fix)
        count_left_out(repaired, tally)
        written = [read_source(one.path, source.format) for one, source in zip(repaired, sources, strict=True)]
        report = examine(written, demands, tally)
        for one, source in zip(repaired, sources, strict=True):
            for note, count in {**source.notes, **one.notes}.items():
                print(f"{source.path}: {count} × {note}", file=sys.stderr)
            print(f"{one.path}: {len(one.changes)} changes, logged in {one.log}", file=sys.stderr)
    if as_json:
        print(json.dumps(report.as_dict(), ensure_ascii=False))
    else:
        tables.table(["", "finding", "count", "what, and the first"], _finding_rows(report))
        counted = f"{report.documents} documents, {report.entities} entities"
        print(f"{counted}: {report.errors} errors, {report.warnings} warnings", file=sys.stderr)
    raise typer.Exit(1 if report.errors else 0)


def _finding_rows(report: Report) -> list[tuple[str, ...]]:
    return [
        (one.severity, one.name, str(one.count), f"{one.message}\n{one.where}: {one.example}")
        for one in report.findings
    ]


def _label_set(labels: str | None, recipe: Path | None) -> tuple[str, ...]:
    """The label set that is asked for; () for none."""
    if labels is not None and recipe is not None:
        raise ConfigError("give either --labels or --recipe; both say what the labels are")
    if recipe is not None:
        from spantune.config import load_config
        from spantune.prompt import make_task

        return make_task(load_config(recipe, []).task).codes
    codes = tuple(code.strip() for code in (labels or "").split(",") if code.strip())
    if labels is not None and not codes:
        raise ConfigError(f"--labels {labels!r} names no label; expected codes separated by commas: dis,sym,bod")
    return codes


def _token_counter(budget: int | None, source: str | None) -> Callable[[Sequence[str]], list[int]] | None:
    """What counts the tokens of texts under the tokenizer `source`; None without a budget."""
    if (budget is None) != (source is None):
        raise ConfigError("--max-tokens and --tokenizer go together: a budget counts under one tokenizer")
    if source is None:
        return None
    quiet()
    from spantune import hub
    from spantune.load import load_tokenizer

    tokenizer = load_tokenizer(Path(source) if Path(source).is_dir() else hub.resolve(source), source)

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []

    return count


def _inspect_file(file: str, format: str | None, as_json: bool) -> None:
    from dataclasses import asdict

    from spantune import formats
    from spantune.corpus import statistics

    corpus = formats.read(file, format)
    found = asdict(statistics(corpus.documents))
    if as_json:
        print(json.dumps({"format": corpus.format, "notes": dict(corpus.notes), **found}, ensure_ascii=False))
        return
    rows = [("format", corpus.format), *((f"mended: {note}", str(count)) for note, count in corpus.notes.items())]
    for key, value in found.items():
        if isinstance(value, dict):
            rows += [(f"entities: {label}", str(count)) for label, count in sorted(value.items())]
        else:
            rows.append((key.replace("_", " "), str(value)))
    tables.table(["", file], rows)


def _inspect_recipe(recipe: Path, overrides: list[str], count: int, as_json: bool) -> None:
    from spantune.config import load_config

    settings = load_config(recipe, overrides)
    quiet()
    from rich.console import Console

    from spantune.encode import coloured
    from spantune.prepare import prepare

    prepared = prepare(settings)
    prefix = len(prepared.prefix)
    total = sum(len(example.ids) for example in prepared.examples)
    answers = sum(len(example.ids) - example.answer_start for example in prepared.examples)
    figures: dict[str, Any] = {
        "examples": len(prepared.examples),
        "shared_prefix_tokens": prefix,
        "tokens": total,
        "tokens_with_loss": answers,
        "shared_prefix_share": round(prefix * len(prepared.examples) / total, 4),
        "longest": max(len(example.ids) for example in prepared.examples),
        "stop_token": prepared.tokenizer.convert_ids_to_tokens(prepared.encoder.stop_id),
    }
    if as_json:
        print(json.dumps(figures, ensure_ascii=False))
        return
    tables.table(["", str(recipe)], [(key.replace("_", " "), str(value)) for key, value in figures.items()])
    console = Console(highlight=False)
    console.print("[dim]shared prefix[/dim] [cyan]prompt[/cyan] [bold green]answer and stop: with loss[/bold green]")
    for example in prepared.examples[:count]:
        console.print(f"\n{example.id}", style="bold", markup=False)
        console.print(coloured(example, prepared.tokenizer, prefix))


def quiet() -> None:
    """Keep the libraries' banners and bars off the terminal; ours say what is going on."""
    import os
    import warnings

    if not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)  # libraries talking to each other
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads cost ten times the speed beside a neighbour
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers.utils import logging

    logging.disable_progress_bar()
