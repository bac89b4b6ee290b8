"""Read the train, dev and test documents that a recipe names.

Training, its report and every command that evaluates a run read their documents in this way, without a tokenizer or
torch. No document is cut or dropped here; repairs made in reading are counted in `notes`. A recipe without train or
dev documents is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spantune.core import ConfigError, DataError, Document, config
from spantune.data import formats
from spantune.data.merging import Merged, merge_corpora
from spantune.data.raw.document import Options


@dataclass(frozen=True)
class Splits:
    """The documents of the three splits of a recipe.

    `notes` has a line for each file that was read, for each kind of repair, and for each merge of several files.
    `merges` has only the lines about merges, which are shown to the user; they are in `notes` too.
    """

    train: tuple[Document, ...]
    dev: tuple[Document, ...]
    test: tuple[Document, ...]
    notes: tuple[str, ...]
    merges: tuple[str, ...] = ()


def read_splits(data: config.Data) -> Splits:
    """Read the documents of a recipe.

    Dev documents come from `data.dev`. Without it, the first documents of the first training file are held out; see
    `holdout`. Test documents come from `data.test`; without it, they are the dev documents.

    A split may have several files. A document of a later file then replaces the document with the same text in an
    earlier file. A document that is held out stays held out, even if a later training file replaces it. With
    `data.limit`, documents of later training files are chosen first.

    Raises:
        ConfigError: `data.holdout` is too small to hold out a document.
        DataError: a file cannot be read as its format, or no document is left to train on or to hold out.
    """
    notes: list[str] = []
    merges: list[str] = []
    corpora = _read_all(data.train, data, notes)
    merged, first = _merged(corpora, merges), corpora[0][1]
    held = 0 if data.dev else len(holdout(first, data.holdout)[1])
    placed = list(zip(merged.documents, merged.places, strict=True))
    dev = [document for document, place in placed if place is not None and place < held]
    if data.dev:
        dev = list(_merged(_read_all(data.dev, data, notes), merges).documents)
    test = list(_merged(_read_all(data.test, data, notes), merges).documents) if data.test else dev
    usable = [
        (document, place is None or document is not first[place])
        for document, place in placed
        if place is None or place >= held
    ]
    train = _limited(usable, data.limit)
    if not train or not dev:
        raise DataError(
            f"{len(train)} documents to train on and {len(dev)} held out; give data.dev, or a data.holdout "
            "that leaves both",
            path=config.name_of(data.train),
        )
    splits = tuple(train), tuple(limit(dev, data.dev_limit)), tuple(limit(test, data.test_limit))
    return Splits(*splits, (*notes, *merges), tuple(merges))


def _read_all(files: config.Files, data: config.Data, notes: list[str]) -> list[tuple[str, Sequence[Document]]]:
    """Return the name and the documents of each file, and add what reading noted to `notes`."""
    options = Options(
        column=data.column, joiner=data.joiner, label=data.label, encoding=data.encoding, offsets=data.offsets
    )
    corpora: list[tuple[str, Sequence[Document]]] = []
    for path in config.files_of(files):
        try:
            corpus = formats.read(path, data.format, options)
        except DataError as error:
            raise _with_format(error, path, data.format, options) from None
        notes.extend(f"{path}: {count} × {note}" for note, count in corpus.notes.items())
        notes.append(f"{path}: {len(corpus.documents)} documents, format {corpus.format}")
        corpora.append((path, corpus.documents))
    return corpora


def _with_format(error: DataError, path: str, stated: str | None, options: Options) -> DataError:
    """Return `error`; if the file looks like another format than `data.format` states, add the remedy."""
    try:
        found = formats.detect(path, options)
    except DataError:
        return error
    if stated in (None, found):
        return error
    remedy = f"data.format={stated} holds for every file, and this one looks like {found}: take data.format out"
    return DataError(f"{error.message}; {remedy}", path=error.path, line=error.line, field=error.field)


def _merged(corpora: Sequence[tuple[str, Sequence[Document]]], merges: list[str]) -> Merged:
    """Unite the files of one split. If there are several, add a line to `merges` that says what became of the files."""
    merged = merge_corpora(corpora)
    if len(corpora) > 1:
        names = ", ".join(name for name, _ in corpora)
        merges.append(f"{names}: {len(merged.documents)} documents; {merged.described()}")
    return merged


def holdout(documents: Sequence[Document], share: float) -> tuple[list[Document], list[Document]]:
    """Split `documents` into (train, held out). The first `int(len * share)` are held out, as in the tutorial.

    Raises:
        ConfigError: `share` is not in [0, 1), or is above 0 and too small to hold out one document.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"data.holdout is {share}; expected a share from 0 up to, but not including, 1")
    count = int(len(documents) * share)
    if share and not count:
        raise ConfigError(
            f"data.holdout={share} of {len(documents)} documents holds out none; raise it, name a dev corpus with "
            "data.dev, or set data.holdout=0"
        )
    return list(documents[count:]), list(documents[:count])


def limit(documents: Sequence[Document], count: int | None) -> list[Document]:
    """Return the first `count` documents; all of them if `count` is None."""
    return list(documents[:count])


def _limited(documents: Sequence[tuple[Document, bool]], count: int | None) -> list[Document]:
    """Return at most `count` documents in their order; those of later files are chosen first.

    Each pair has a document and whether it comes from a later file.
    """
    later_first = sorted(range(len(documents)), key=lambda index: not documents[index][1])
    return [documents[index][0] for index in sorted(later_first[:count])]


def shared_texts(first: Iterable[Document], second: Iterable[Document]) -> list[str]:
    """Return the texts that `first` and `second` have in common, each once, in the order of `first`."""
    texts = {document.text for document in second}
    return list(dict.fromkeys(document.text for document in first if document.text in texts))
