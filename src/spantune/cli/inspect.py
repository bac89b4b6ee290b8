"""The command `spantune data inspect`: the content of a corpus, and the tokens that a recipe makes of it.

Tables and JSON go to stdout, messages to stderr.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spantune.cli import names, tables
from spantune.cli.libraries import quiet
from spantune.cli.options import (
    Column,
    Encoding,
    Force,
    Format,
    Joiner,
    Json,
    Label,
    Offsets,
    Overrides,
    Sets,
    reading_options,
    split_overrides,
)
from spantune.core import ConfigError, print_table, print_text, put_json, require_new, say, visible

if TYPE_CHECKING:
    from spantune.core import Document, TaskSpec
    from spantune.data import Corpus
    from spantune.encoding import Tokenizer, Tokens


# Commands have many parameters, and so many lines, since typer reads the options from the signature.


def inspect(
    file: Annotated[
        str | None,
        typer.Argument(help="A corpus file or folder, or bundled:NAME.", autocompletion=names.corpora),
    ] = None,
    overrides: Overrides = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="A recipe: show its examples as tokens, with the shared prefix and the tokens that have a loss. With "
            "a corpus file, count the tokens of that file under the recipe's tokenizer and task.",
            autocompletion=names.recipes,
        ),
    ] = None,
    sets: Sets = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Count tokens too, with this tokenizer: a model source, or a folder.", autocompletion=names.models
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="With --tokenizer, count the instruction of this preset too: cmeee, biomedical …"),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write an HTML page that shows the documents.")] = None,
    format: Format = None,
    column: Column = None,
    joiner: Joiner = None,
    label: Label = None,
    encoding: Encoding = None,
    offsets: Offsets = None,
    force: Force = False,
    examples: Annotated[int, typer.Option(help="How many documents to print.", min=0)] = 3,
    as_json: Json = False,
) -> None:
    """Show what is in a corpus, or the tokens that a recipe makes of it.

    Examples:

        spantune data inspect cmeee.jsonl --html cmeee.html

        spantune data inspect cmeee.jsonl --tokenizer bundled:gemma3-270m --task cmeee

        spantune data inspect --recipe bundled:demo train.max_tokens=256
    """
    from spantune.data import formats

    given, more = split_overrides([*([file] if file else []), *(overrides or [])])
    changes = [*more, *(sets or [])]
    if len(given) > 1:
        raise ConfigError(f"{given[1]}: expected section.key=value, such as train.max_steps=24, after the corpus file")
    if changes and recipe is None:
        raise ConfigError(f"{changes[0]}: it changes a recipe, and none is given; name one with --recipe")
    if not given:
        if recipe is None or tokenizer or task or html:
            raise ConfigError(
                "give a corpus file, or --recipe with a recipe and no --tokenizer, --task or --html, which need a file"
            )
        _inspect_recipe(recipe, changes, examples, as_json)
        return
    if task and not (tokenizer or recipe):
        raise ConfigError("--task needs --tokenizer, whose tokens are to be counted")
    (file,) = given
    if html:
        require_new(html, [file, *([recipe] if recipe else [])], force=force)
    corpus = formats.read(file, format, reading_options(column, joiner, label, encoding, offsets))
    _inspect_corpus(corpus, html, examples, as_json, _counter(recipe, changes, tokenizer, task))


@dataclass(frozen=True)
class _Counter:
    """How tokens are counted.

    Args:
        source: the source of the tokenizer: a model source or a folder.
        task: the task whose instruction and answers are counted too; None to count only texts.
    """

    source: str
    task: TaskSpec | None


def _counter(recipe: Path | None, overrides: list[str], tokenizer: str | None, preset: str | None) -> _Counter | None:
    """Return the tokenizer and task of the options of `inspect`; None if there is neither a recipe nor a tokenizer.

    The options --tokenizer and --task take precedence over the recipe.

    Raises:
        ConfigError: the preset is unknown.
    """
    if recipe is None and tokenizer is None:
        return None
    from spantune.core import config, load_config, nearest
    from spantune.encoding import PRESETS, make_task

    if preset and preset not in PRESETS:
        raise ConfigError(f"unknown task {preset!r}; {nearest(preset, PRESETS)}")
    settings = load_config(recipe, overrides) if recipe else None
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
    return count_tokens(documents, open_tokenizer(counter.source), counter.task)


def open_tokenizer(source: str) -> Tokenizer:
    """Load the tokenizer of a model source, or of a folder, which needs no model.

    Raises:
        ModelError: there is no such model, or its tokenizer cannot be read.
    """
    quiet()
    from spantune.models import load_tokenizer, resolve

    tokenizer: Tokenizer = load_tokenizer(Path(source) if Path(source).is_dir() else resolve(source), source)
    return tokenizer


def _inspect_recipe(recipe: Path, overrides: list[str], count: int, as_json: bool) -> None:
    from spantune.core import load_config

    settings = load_config(recipe, overrides)
    quiet()
    from rich.text import Text

    from spantune.encoding import Encoder, SpanExample, coloured
    from spantune.training import prepare

    prepared = prepare(settings)
    prefix = len(prepared.prefix)
    total = sum(len(example.ids) for example in prepared.examples)
    figures: dict[str, object] = {
        "examples": len(prepared.examples),
        "shared_prefix_tokens": prefix,
        "tokens": total,
        "shared_prefix_share": round(prefix * len(prepared.examples) / total, 4),
        "longest": max(len(example.ids) for example in prepared.examples),
    }
    if isinstance(prepared.encoder, Encoder):
        answers = sum(len(example.ids) - example.answer_start for example in prepared.written)
        figures["tokens_with_loss"] = answers
        figures["stop_token"] = prepared.tokenizer.convert_ids_to_tokens(prepared.encoder.stop_id)
    else:
        figures["characters"] = sum(len(document.text) for document in prepared.splits.train)
        figures["longest_entity_allowed"] = prepared.encoder.longest
    if as_json:
        put_json(figures)
        return
    print_table(["", str(recipe)], [(key.replace("_", " "), str(value)) for key, value in figures.items()])
    kinds = {"shared prefix": "dim", "prompt": "cyan", "answer and stop: with loss": "bold green"}
    if prepared.task.reads:
        copy = {"first copy": "cyan"} if prepared.recipe.spans.view == "twice" else {}
        kinds = {"shared prefix": "dim", **copy, "text that is read": "bold green"}
    print_text(Text(" ").join(Text(kind, style) for kind, style in kinds.items()))
    for example in prepared.examples[:count]:
        print_text(Text(f"\n{visible(example.id)}", style="bold"))
        last_part = example.text_start if isinstance(example, SpanExample) else example.answer_start
        print_text(coloured(example.ids, prepared.tokenizer, prefix, last_part))
