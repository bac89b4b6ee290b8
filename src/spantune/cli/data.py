"""The commands of `spantune data`: look at annotated corpora, check, split and convert them.

As in `cli`, no logic lives here: tables and JSON go to stdout, messages to stderr.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spantune.cli import tables
from spantune.cli.options import Column, Encoding, Force, Format, Joiner, Json, Label, Offsets, quiet
from spantune.cli.options import reading_options as _options
from spantune.core import (
    ConfigError,
    overwriting,
    print_table,
    print_text,
    put_json,
    require_new,
    say,
    visible,
)

if TYPE_CHECKING:
    from spantune.core import Document, TaskSpec
    from spantune.data import Corpus, Report
    from spantune.encoding import Tokenizer, Tokens


app = typer.Typer(
    help="Look at annotated corpora, check, split and convert them.", no_args_is_help=True, rich_markup_mode=None
)


@app.command()
def inspect(
    file: Annotated[str | None, typer.Argument(help="A corpus file, or bundled:NAME.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Show tokens, loss mask and shared prefix; with a file: its task and tokenizer.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="section.key=value for the recipe.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Count tokens too: a model source, or a folder.")] = None,
    task: Annotated[str | None, typer.Option(help="Preset for the instruction's share of the tokens.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page to look through the documents.")] = None,
    format: Format = None,
    column: Column = None,
    joiner: Joiner = None,
    label: Label = None,
    encoding: Encoding = None,
    offsets: Offsets = None,
    force: Force = False,
    examples: Annotated[int, typer.Option(help="Examples to show.", min=0)] = 3,
    as_json: Json = False,
) -> None:
    """Show what is in a corpus, or how a recipe turns it into tokens.

    Examples:

        spantune data inspect cmeee.jsonl --html cmeee.html

        spantune data inspect cmeee.jsonl --tokenizer bundled:gemma3-270m --task cmeee

        spantune data inspect --recipe recipes/demo.yaml
    """
    from spantune.data import formats

    if file is None:
        if recipe is None or tokenizer or task or html:
            raise ConfigError(
                "give a corpus file, or --recipe with a recipe and no --tokenizer, --task or --html, which need a file"
            )
        _inspect_recipe(recipe, overrides or [], examples, as_json)
        return
    if task and not (tokenizer or recipe):
        raise ConfigError("--task needs --tokenizer, whose tokens are to be counted")
    if html:
        require_new(html, [file, *([recipe] if recipe else [])], force=force)
    corpus = formats.read(file, format, _options(column, joiner, label, encoding, offsets))
    _inspect_corpus(corpus, html, examples, as_json, _counter(recipe, overrides or [], tokenizer, task))


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A corpus file or folder, or bundled:NAME.")],
    target: Annotated[Path, typer.Argument(help="The file or folder to write.")],
    to: Annotated[str, typer.Option(help="Format to write.")],
    source_format: Annotated[str | None, typer.Option("--from", help="Format to read; recognised when absent.")] = None,
    column: Column = None,
    joiner: Joiner = None,
    label: Label = None,
    encoding: Encoding = None,
    offsets: Offsets = None,
    nested: Annotated[
        Literal["error", "outermost", "innermost"],
        typer.Option(help="What flat tags keep of entities that overlap; error refuses them."),
    ] = "error",
    scheme: Annotated[Literal["bio", "bioes"], typer.Option(help="Tags to write.")] = "bio",
    force: Force = False,
) -> None:
    """Convert a corpus; what reading mended and what the target cannot hold is said on stderr.

    Examples:

        spantune data convert cmeee.jsonl corpus.jsonl --to native

        spantune data convert cmeee.jsonl corpus.bio --to conll --nested outermost
    """
    from spantune.core import track
    from spantune.data import formats

    require_new(target, [source], force=force)
    options = replace(_options(column, joiner, label, encoding, offsets), nested=nested, scheme=scheme)
    name = source_format or formats.detect(source, options)
    notes: Counter[str] = Counter()
    count = 0

    def counted() -> Iterator[Document]:
        nonlocal count
        for document in formats.stream(source, name, notes, options):
            count += 1
            yield document

    with overwriting(target, force=force) as place:
        lost = formats.write(place, track(counted(), "convert", unit="documents"), to, options)
    for note, number in {**+notes, **lost}.items():
        say(f"{number} × {note}")
    say(f"{count} documents, {name} → {to}: {target}")


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
    column: Column = None,
    joiner: Joiner = None,
    label: Label = None,
    encoding: Encoding = None,
    offsets: Offsets = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Check annotated files and say what is wrong, how often and where; exit 1 when an error is, or remains.

    With --fix, what is checked in the end is what was written; the changes are logged beside it.

    Examples:

        spantune data check train.jsonl dev.jsonl --labels dis,sym,bod

        spantune data check cmeee.jsonl --fix mended.jsonl
    """
    from spantune.data import Demands, Options, Tally, count_dropped, read_source, repair_all, repair_targets
    from spantune.data import check as examine

    if fix is not None:
        for path in repair_targets(fix, len(files)):
            require_new(path, files, force=force)
    count_tokens = _token_counter(max_tokens, tokenizer)
    demands = Demands(_label_set(labels, recipe), max_tokens or 0, count_tokens)
    sources = [read_source(file, format, _options(column, joiner, label, encoding, offsets)) for file in files]
    tally = Tally()
    if fix is None:
        report = examine(sources, demands)
    else:
        repaired = repair_all(sources, fix, force=force)
        count_dropped(repaired, tally)
        stated = Options(offsets="codepoints" if offsets else None)
        written = [read_source(repair.path, repair.format, stated) for repair in repaired]
        report = examine(written, demands, tally)
        for repair, source in zip(repaired, sources, strict=True):
            for note, count in {**source.notes, **repair.notes}.items():
                say(f"{source.path}: {count} × {note}")
            say(f"{repair.path}: {len(repair.changes)} changes, logged in {repair.log}")
    if as_json:
        put_json(report.as_dict())
    else:
        print_table(["", "finding", "count", "what, and the first"], _finding_rows(report))
        counted = f"{report.documents} documents, {report.entities} entities"
        say(f"{counted}: {report.errors} errors, {report.warnings} warnings")
    raise typer.Exit(1 if report.errors else 0)


@app.command()
def split(
    file: Annotated[str, typer.Argument(help="A corpus file, or bundled:NAME.")],
    to: Annotated[Path, typer.Option(help="The folder to make.")],
    shares: Annotated[str, typer.Option(help="Share of each split, with commas between.")] = "0.8,0.1,0.1",
    names: Annotated[str | None, typer.Option(help="Their names; train,dev,test when absent.")] = None,
    by: Annotated[str | None, typer.Option(help="Meta key whose values are groups, kept together.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed is another split.")] = 0,
    threshold: Annotated[float, typer.Option(help="Likeness from which texts stay together.")] = 0.9,
    k_shot: Annotated[
        int | None, typer.Option(help="Keep K entities of every label in the first split.", min=1)
    ] = None,
    allow_fewer: Annotated[bool, typer.Option("--allow-fewer", help="Labels may have fewer than K.")] = False,
    sample: Annotated[int | None, typer.Option(help="Keep N documents of the first split.", min=1)] = None,
    format: Format = None,
    column: Column = None,
    joiner: Joiner = None,
    label: Label = None,
    encoding: Encoding = None,
    offsets: Offsets = None,
    write_format: Annotated[str, typer.Option(help="Format of the splits.")] = "native",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Split a corpus by label, with no text or near-duplicate in two splits; appended documents move no earlier one.

    Writes train.jsonl, dev.jsonl, test.jsonl and split.json, the record, into a new folder.

    Examples:

        spantune data split cmeee.jsonl --to splits

        spantune data split notes.jsonl --to splits --shares 0.9,0.1 --by patient

        spantune data split cmeee.jsonl --to five-shot --k-shot 5
    """
    from spantune.data import formats, splitting

    if k_shot and sample:
        raise ConfigError("--k-shot and --sample both choose from the first split; give one of them")
    require_new(to, [file], force=force)
    rule = splitting.Rule(splitting.parse_shares(shares, names), seed, by, threshold)
    corpus = formats.read(file, format, _options(column, joiner, label, encoding, offsets))
    division = splitting.split(corpus.documents, rule)
    first = next(iter(division.parts.values()))
    if k_shot:
        division = division.with_first(splitting.few_shot(first, k_shot, seed, allow_fewer))
    if sample:
        division = division.with_first(splitting.sample(first, sample, seed))
    facts = {"source": file, "k_shot": k_shot, "sample": sample, "left_out": len(corpus.documents) - division.size}
    with overwriting(to, force=force) as folder:
        lost = splitting.write_splits(folder, division, write_format, facts)
    for note, count in {**corpus.notes, **lost}.items():
        say(f"{count} × {note}")
    if by is None and any("group" in document.meta for document in corpus.documents):
        say("documents have a group in their meta; --by group would keep each in one split")
    record = {**facts, **division.as_dict()}
    if as_json:
        put_json(record)
    else:
        tables.print_split(record)
    say(f"{', '.join(division.parts)} and {splitting.RECORD}: {to}")


def _finding_rows(report: Report) -> list[tuple[str, ...]]:
    return [
        (
            finding.severity,
            finding.name,
            str(finding.count),
            f"{visible(finding.message)}\n{visible(f'{finding.where}: {finding.example}')}",
        )
        for finding in report.findings
    ]


def _label_set(labels: str | None, recipe: Path | None) -> tuple[str, ...]:
    """The label set of the options; () for none."""
    if labels is not None and recipe is not None:
        raise ConfigError("give either --labels or --recipe; both say what the labels are")
    if recipe is not None:
        from spantune.core import load_config
        from spantune.encoding import make_task

        return make_task(load_config(recipe, []).task).codes
    codes = tuple(code.strip() for code in (labels or "").split(",") if code.strip())
    if labels is not None and not codes:
        raise ConfigError(f"--labels {labels!r} names no label; expected codes separated by commas: dis,sym,bod")
    return codes


def _token_counter(budget: int | None, source: str | None) -> Callable[[Sequence[str]], list[int]] | None:
    """A function that counts the tokens of texts under the tokenizer `source`; None without a budget."""
    if (budget is None) != (source is None):
        raise ConfigError("--max-tokens and --tokenizer go together: a budget counts under one tokenizer")
    if source is None:
        return None
    tokenizer = _tokenizer(source)

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []

    return count


@dataclass(frozen=True)
class _Counter:
    """The tokenizer's source and the task that tokens are counted with."""

    source: str
    task: TaskSpec | None


def _counter(recipe: Path | None, overrides: list[str], tokenizer: str | None, preset: str | None) -> _Counter | None:
    """The tokenizer and task of the options of `inspect`; an option takes precedence over the recipe."""
    from spantune.core import config, nearest
    from spantune.encoding import PRESETS, make_task

    if recipe is None and tokenizer is None:
        return None
    if preset and preset not in PRESETS:
        raise ConfigError(f"unknown task {preset!r}; {nearest(preset, PRESETS)}")
    settings = config.load_config(recipe, overrides) if recipe else None
    task = config.Task.model_validate({"preset": preset}) if preset else settings and settings.task
    source = tokenizer or (settings.model.source if settings else "")
    return _Counter(source, make_task(task) if task else None)


def _inspect_corpus(corpus: Corpus, html: Path | None, examples: int, as_json: bool, counter: _Counter | None) -> None:
    from spantune.data import statistics

    file = str(corpus.path)
    corpus_statistics = statistics(corpus.documents)
    tokens = _tokens(counter, corpus.documents) if counter else None
    if html:
        from spantune.report import write_page

        names = counter.task.names if counter and counter.task else None
        write_page(html, corpus.documents, corpus.path.name, names)
        say(f"page: {html}")
    if as_json:
        record = {"format": corpus.format, "notes": dict(corpus.notes), **asdict(corpus_statistics)}
        put_json(record | ({"tokens": asdict(tokens)} if tokens else {}))
        return
    notes = {"format": corpus.format, **{f"mended: {note}": str(count) for note, count in corpus.notes.items()}}
    tables.print_statistics(corpus_statistics, file, notes)
    if tokens and counter:
        tables.print_tokens(tokens, counter.source)
    annotated = [document for document in corpus.documents if document.entities] or corpus.documents
    tables.print_examples(annotated[:examples], list(corpus_statistics.entities))


def _tokens(counter: _Counter, documents: Sequence[Document]) -> Tokens:
    from spantune.encoding import count_tokens

    if counter.task:
        counter.task.check(documents)
    return count_tokens(documents, _tokenizer(counter.source), counter.task)


def _tokenizer(source: str) -> Tokenizer:
    """The tokenizer of a model source, or of a folder that may hold nothing else."""
    quiet()
    from spantune.models import load_tokenizer, resolve

    tokenizer: Tokenizer = load_tokenizer(Path(source) if Path(source).is_dir() else resolve(source), source)
    return tokenizer


def _inspect_recipe(recipe: Path, overrides: list[str], count: int, as_json: bool) -> None:
    from spantune.core import load_config

    settings = load_config(recipe, overrides)
    quiet()
    from rich.text import Text

    from spantune.encoding import coloured
    from spantune.training import prepare

    prepared = prepare(settings)
    prefix = len(prepared.prefix)
    total = sum(len(example.ids) for example in prepared.examples)
    answers = sum(len(example.ids) - example.answer_start for example in prepared.examples)
    figures: dict[str, object] = {
        "examples": len(prepared.examples),
        "shared_prefix_tokens": prefix,
        "tokens": total,
        "tokens_with_loss": answers,
        "shared_prefix_share": round(prefix * len(prepared.examples) / total, 4),
        "longest": max(len(example.ids) for example in prepared.examples),
        "stop_token": prepared.tokenizer.convert_ids_to_tokens(prepared.encoder.stop_id),
    }
    if as_json:
        put_json(figures)
        return
    print_table(["", str(recipe)], [(key.replace("_", " "), str(value)) for key, value in figures.items()])
    kinds = {"shared prefix": "dim", "prompt": "cyan", "answer and stop: with loss": "bold green"}
    print_text(Text(" ").join(Text(kind, style) for kind, style in kinds.items()))
    for example in prepared.examples[:count]:
        print_text(Text(f"\n{visible(example.id)}", style="bold"))
        print_text(coloured(example, prepared.tokenizer, prefix))
