"""The commands `spantune data convert`, `check` and `split`; the modules `inspect` and `corpora` have the others.

Tables and JSON go to stdout, messages to stderr.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spantune.cli import corpora, inspect, names, tables
from spantune.cli.help import App
from spantune.cli.inspect import open_tokenizer
from spantune.cli.options import (
    READING,
    Address,
    Column,
    CorpusEngine,
    Encoding,
    Force,
    Format,
    Joiner,
    Json,
    Label,
    Offsets,
    Workers,
    cluster_of,
    reading_options,
    split_overrides,
)
from spantune.core import (
    ConfigError,
    overwriting,
    print_table,
    put_json,
    require_new,
    say,
    visible,
)

if TYPE_CHECKING:
    from spantune.core import Document
    from spantune.data import Report


app = App(help="Look at annotated corpora, check, convert, split, merge and relabel them.")
app.command(listed=("Corpora that come with spantune", "Models that come in packages"))(inspect.inspect)


# Commands have many parameters, and so many lines, since typer reads the options from the signature.


@app.command(listed=("Formats", "Corpora that come with spantune"))
def convert(
    source: Annotated[
        str, typer.Argument(help="A corpus file or folder, or bundled:NAME.", autocompletion=names.corpora)
    ],
    target: Annotated[Path, typer.Argument(help="The file or folder to write.")],
    to: Annotated[str, typer.Option(help="Format to write.", autocompletion=names.written_formats)],
    source_format: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Format of the input. Detected from its content if not given.",
            autocompletion=names.read_formats,
            rich_help_panel=READING,
        ),
    ] = None,
    column: Column = None,
    joiner: Joiner = None,
    label: Label = None,
    encoding: Encoding = None,
    offsets: Offsets = None,
    nested: Annotated[
        Literal["error", "outermost", "innermost"],
        typer.Option(
            help="Which of overlapping entities to keep where the format has one tag a token. error: refuse the corpus."
        ),
    ] = "error",
    scheme: Annotated[Literal["bio", "bioes"], typer.Option(help="Tagging scheme, where the format has tags.")] = "bio",
    force: Force = False,
) -> None:
    """Convert a corpus to another format.

    Counts of what was repaired on reading, and of what the new format cannot hold, are printed on stderr.

    Examples:

        spantune data convert cmeee.jsonl corpus.jsonl --to native

        spantune data convert cmeee.jsonl corpus.bio --to conll --nested outermost
    """
    from spantune.core import track
    from spantune.data import formats

    require_new(target, [source], force=force)
    options = replace(reading_options(column, joiner, label, encoding, offsets), nested=nested, scheme=scheme)
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


@app.command(listed=("Formats",))
def check(
    files: Annotated[
        list[str],
        typer.Argument(
            help="Corpus files. Several are taken for the splits of one corpus. With --recipe, section.key=value too.",
            autocompletion=names.corpora,
        ),
    ],
    fix: Annotated[
        Path | None,
        typer.Option(
            help="Write a corrected copy of the corpus here: a file, or a folder for several files. Only errors with "
            "one possible correction are corrected."
        ),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="The label set, separated by commas.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Take the label set from this recipe.", autocompletion=names.recipes)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Report texts that have more tokens than this; needs --tokenizer.", min=1)
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Tokenizer that counts: a model source, or a folder.", autocompletion=names.models),
    ] = None,
    format: Format = None,
    column: Column = None,
    joiner: Joiner = None,
    label: Label = None,
    encoding: Encoding = None,
    offsets: Offsets = None,
    engine: CorpusEngine = "local",
    address: Address = None,
    workers: Workers = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Check annotated files: report what is wrong, how often and where. The exit code is 1 if there is an error.

    With --fix, the corrected copy is checked, and a log beside it lists every change.

    Examples:

        spantune data check train.jsonl dev.jsonl --labels dis,sym,bod

        spantune data check cmeee.jsonl --fix mended.jsonl

        spantune data check train.jsonl --engine ray --address auto
    """
    from spantune.data import (
        Demands,
        Options,
        Tally,
        count_dropped,
        engine_for,
        open_source,
        read_source,
        repair_all,
        repair_targets,
        size_of,
    )
    from spantune.data import check as examine

    files, overrides = split_overrides(files)
    if not files or (overrides and recipe is None):
        raise ConfigError("give a corpus file, and section.key=value only to change the recipe of --recipe")
    if fix is not None:
        for path in repair_targets(fix, len(files)):
            require_new(path, files, force=force)
    count_tokens = _token_counter(max_tokens, tokenizer)
    demands = Demands(_label_set(labels, recipe, overrides), max_tokens or 0, count_tokens)
    options = reading_options(column, joiner, label, encoding, offsets)
    cluster = cluster_of(engine, address, workers)
    if cluster is not None and fix is not None:
        raise ConfigError("--fix is not of --engine ray, since it holds the corpus in memory; drop one of the two")
    tally = Tally()
    if fix is None:
        with engine_for(sum(map(size_of, files)), cluster, workers) as worker:
            report = examine([open_source(file, format, options, worker) for file in files], demands, engine=worker)
    else:
        sources = [read_source(file, format, options) for file in files]
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


@app.command(listed=("Formats",))
def split(
    file: Annotated[
        str, typer.Argument(help="A corpus file or folder, or bundled:NAME.", autocompletion=names.corpora)
    ],
    to: Annotated[Path, typer.Option(help="The folder to create.")],
    shares: Annotated[str, typer.Option(help="Share of each split, separated by commas.")] = "0.8,0.1,0.1",
    split_names: Annotated[
        str | None,
        typer.Option("--names", help="Names of the splits, separated by commas. train,dev,test if not given."),
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Key of the documents' meta: documents with the same value stay together.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed; another seed gives another split.")] = 0,
    threshold: Annotated[
        float, typer.Option(help="Similarity from which two texts are near-duplicates and stay together, 0 to 1.")
    ] = 0.9,
    k_shot: Annotated[
        int | None,
        typer.Option(help="Reduce the first split to few documents with K entities of every label.", min=1),
    ] = None,
    allow_fewer: Annotated[
        bool, typer.Option("--allow-fewer", help="With --k-shot, allow labels with fewer than K entities.")
    ] = False,
    sample: Annotated[int | None, typer.Option(help="Reduce the first split to N documents.", min=1)] = None,
    format: Format = None,
    column: Column = None,
    joiner: Joiner = None,
    label: Label = None,
    encoding: Encoding = None,
    offsets: Offsets = None,
    write_format: Annotated[
        str, typer.Option(help="Format of the splits.", autocompletion=names.written_formats)
    ] = "native",
    force: Force = False,
    engine: CorpusEngine = "local",
    address: Address = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Split a corpus so that every split has its share of every label, and no two splits share a text.

    Near-duplicates stay in one split. If documents are added to the corpus later, the earlier ones stay in their split.
    Writes train.jsonl, dev.jsonl, test.jsonl and a record of the split, split.json, into a new folder.

    Examples:

        spantune data split cmeee.jsonl --to splits

        spantune data split notes.jsonl --to splits --shares 0.9,0.1 --by patient

        spantune data split cmeee.jsonl --to five-shot --k-shot 5

        spantune data split large.jsonl --to splits --engine ray --address auto
    """
    from spantune.data import SplitJob, engine_for, size_of, split_file, splitting

    if k_shot and sample:
        raise ConfigError("--k-shot and --sample both choose from the first split; give one of them")
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(to)):
        raise ConfigError("--to names a folder, not a URL; copy the splits into object storage afterwards")
    require_new(to, [file], force=force)
    rule = splitting.Rule(splitting.parse_shares(shares, split_names), seed, by, threshold)
    options = reading_options(column, joiner, label, encoding, offsets)
    fewer = splitting.Fewer(k_shot, sample, allow_fewer)
    cluster = cluster_of(engine, address, workers)
    with overwriting(to, force=force) as folder, engine_for(size_of(file), cluster, workers) as worker:
        done = split_file(SplitJob(file, rule, format, options, fewer, write_format), folder, worker)
    record = done.record
    for note, count in done.notes.items():
        say(f"{count} × {note}")
    if by is None and done.has_groups:
        say("documents have a group in their meta; --by group would keep each in one split")
    if as_json:
        put_json(record)
    else:
        tables.print_split(record)
    say(f"{', '.join(rule.shares)} and {splitting.RECORD}: {to}")


app.command(listed=("Formats",))(corpora.merge)
app.command("map", listed=("Formats",))(corpora.map_labels)


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


def _label_set(labels: str | None, recipe: Path | None, overrides: list[str]) -> tuple[str, ...]:
    """Return the label set of the options --labels or --recipe; () if neither is given.

    Raises:
        ConfigError: both options are given, or --labels names no label.
    """
    if labels is not None and recipe is not None:
        raise ConfigError("give either --labels or --recipe; both say what the labels are")
    if recipe is not None:
        from spantune.core import load_config
        from spantune.encoding import make_task

        return make_task(load_config(recipe, overrides).task).codes
    codes = tuple(code.strip() for code in (labels or "").split(",") if code.strip())
    if labels is not None and not codes:
        raise ConfigError(f"--labels {labels!r} names no label; expected codes separated by commas: dis,sym,bod")
    return codes


def _token_counter(budget: int | None, source: str | None) -> Callable[[Sequence[str]], Sequence[int]] | None:
    """Return a function that counts the tokens of each text with a tokenizer; None if no budget is given.

    Args:
        budget: the value of --max-tokens.
        source: the value of --tokenizer: a model source or a folder.

    Raises:
        ConfigError: only one of the two is given.
    """
    if (budget is None) != (source is None):
        raise ConfigError("--max-tokens and --tokenizer go together: a budget counts under one tokenizer")
    if source is None:
        return None
    _tokenizer(source)  # loaded now, so that an error is reported before the corpus is read
    return partial(_count_tokens, source)


def _count_tokens(source: str, texts: Sequence[str]) -> list[int]:
    """Return the number of tokens of each text. It can be pickled, so that worker processes can call it."""
    tokenizer = _tokenizer(source)
    return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []


_tokenizer = lru_cache(maxsize=1)(open_tokenizer)
