"""The commands `spantune data merge` and `map`: merge corpora, and give labels other names.

Tables and JSON go to stdout, messages to stderr.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spantune.cli import names
from spantune.cli.options import Column, Encoding, Force, Format, Joiner, Json, Label, Offsets, reading_options
from spantune.core import ConfigError, overwriting, print_table, put_json, require_new, say

# Commands have many parameters, and so many lines, since typer reads the options from the signature.


def merge(
    files: Annotated[
        list[str],
        typer.Argument(help="Two or more corpus files, the corrected ones last.", autocompletion=names.corpora),
    ],
    out: Annotated[Path, typer.Option(help="The file or folder to write.")],
    to: Annotated[str, typer.Option(help="Format to write.", autocompletion=names.written_formats)] = "native",
    format: Format = None,
    column: Column = None,
    joiner: Joiner = None,
    label: Label = None,
    encoding: Encoding = None,
    offsets: Offsets = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Merge corpora; where several files have the same text, the annotation in the last one is kept.

    A document that replaces another one takes its place and its id. An id that is used for another text is made unique.
    In a recipe, data.train=[notes.jsonl, corrected.json] does the same.

    Example: spantune data merge notes.jsonl corrected.json --out all.jsonl
    """
    from spantune.data import conflicting, count_predicted, formats, merge_corpora

    if len(files) < 2:
        raise ConfigError(f"only {files[0]} is given; name two or more files, the corrected one last")
    formats.of_name(to, writing=True)
    require_new(out, files, force=force)
    options = reading_options(column, joiner, label, encoding, offsets)
    corpora = [formats.read(file, format, options) for file in files]
    merged = merge_corpora([(file, corpus.documents) for file, corpus in zip(files, corpora, strict=True)])
    with overwriting(out, force=force) as place:
        lost = formats.write(place, merged.documents, to, options)
    for file, corpus in zip(files, corpora, strict=True):
        for note, count in corpus.notes.items():
            say(f"{file}: {count} × {note}")
        if count := count_predicted(corpus.documents):
            say(f"{file}: {count} documents have entities with scores: predictions that nobody corrected")
    for note, count in lost.items():
        say(f"{count} × {note}")
    conflicts = conflicting(merged.documents)
    if conflicts:
        say(f"{len(conflicts)} texts have several annotations, first in document {conflicts[0].id!r}; keep one of each")
    counts = {"documents": len(merged.documents), "added": merged.added, "replaced": merged.replaced}
    counts |= {
        "unchanged": merged.unchanged,
        "renamed": merged.renamed,
        "left_out": merged.left_out,
        "conflicts": len(conflicts),
    }
    if as_json:
        put_json({**counts, "out": str(out)})
    say(f"{len(merged.documents)} documents; {merged.described()}: {out}")


def map_labels(
    file: Annotated[
        str, typer.Argument(help="A corpus file or folder, or bundled:NAME.", autocompletion=names.corpora)
    ],
    words: Annotated[list[str], typer.Argument(metavar="OLD=NEW", help="New name of a label; OLD= drops it.")],
    out: Annotated[Path, typer.Option(help="The file or folder to write.")],
    to: Annotated[
        str | None,
        typer.Option(help="Format to write. That of the file if not given.", autocompletion=names.written_formats),
    ] = None,
    format: Format = None,
    column: Column = None,
    joiner: Joiner = None,
    label: Label = None,
    encoding: Encoding = None,
    offsets: Offsets = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Give labels other names, join several labels into one, or drop a label.

    All names are replaced at once, so that A=B B=A swaps two labels. Entities that become equal are kept once.

    Examples:

        spantune data map notes.jsonl person=Person people=Person --out renamed.jsonl

        spantune data map notes.jsonl misc= --out without.jsonl
    """
    from spantune.data import formats, parse_label_map, relabel

    require_new(out, [file], force=force)
    options = reading_options(column, joiner, label, encoding, offsets)
    corpus = formats.read(file, format, options)
    known = {entity.label for document in corpus.documents for entity in document.entities}
    mapping = parse_label_map(words, known)
    target = to or corpus.format
    formats.of_name(target, writing=True)
    relabeled = relabel(corpus.documents, mapping)
    with overwriting(out, force=force) as place:
        lost = formats.write(place, relabeled.documents, target, options)
    for note, count in {**corpus.notes, **lost}.items():
        say(f"{count} × {note}")
    rows = [(old, new or "", str(relabeled.counts[old])) for old, new in mapping.items()]
    if as_json:
        counts = {old: {"new": new, "entities": relabeled.counts[old]} for old, new in mapping.items()}
        put_json({"documents": len(relabeled.documents), "labels": counts, "joined": relabeled.joined, "out": str(out)})
    else:
        print_table(["label", "new name", "entities"], [(old, new or "dropped", count) for old, new, count in rows])
    if relabeled.joined:
        say(f"{relabeled.joined} entities became the same as another and were kept once")
    say(f"{len(relabeled.documents)} documents, {target}: {out}")
