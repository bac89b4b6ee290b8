"""Read the train, dev and test documents that a recipe names.

Training, its report and every command that evaluates a run read them in this way, without a tokenizer or torch. Nothing
is cut or dropped here; repairs made in reading are counted in `notes`. A recipe without train or dev documents is
refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spantune.core import ConfigError, DataError, Document, config
from spantune.data import formats
from spantune.data.raw.document import Options


@dataclass(frozen=True)
class Splits:
    """The documents of the three splits; `notes` say what reading repaired."""

    train: tuple[Document, ...]
    dev: tuple[Document, ...]
    test: tuple[Document, ...]
    notes: tuple[str, ...]


def read_splits(data: config.Data) -> Splits:
    """Read the documents of a recipe: dev and test from files, or from the front of the training file.

    Raises:
        DataError: a file is not what it should be, or nothing is left to train on.
    """
    notes: list[str] = []
    train = list(_read(data.train, data, notes))
    if data.dev:
        dev = list(_read(data.dev, data, notes))
    else:
        train, dev = holdout(train, data.holdout)
    test = list(_read(data.test, data, notes)) if data.test else dev
    train = limit(train, data.limit)
    if not train or not dev:
        raise DataError(
            f"{len(train)} documents to train on and {len(dev)} held out; give data.dev, or a data.holdout "
            "that leaves both",
            path=data.train,
        )
    return Splits(tuple(train), tuple(limit(dev, data.dev_limit)), tuple(limit(test, data.test_limit)), tuple(notes))


def _read(path: str, data: config.Data, notes: list[str]) -> Sequence[Document]:
    options = Options(
        column=data.column, joiner=data.joiner, label=data.label, encoding=data.encoding, offsets=data.offsets
    )
    corpus = formats.read(path, data.format, options)
    notes.extend(f"{path}: {count} × {note}" for note, count in corpus.notes.items())
    notes.append(f"{path}: {len(corpus.documents)} documents, format {corpus.format}")
    return corpus.documents


def holdout(documents: Sequence[Document], share: float) -> tuple[list[Document], list[Document]]:
    """Split into (train, held): the first `int(len * share)` documents are held out, as in the tutorial.

    Raises:
        ConfigError: `share` is not in [0, 1), or holds out nothing of so few documents.
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


def shared_texts(first: Iterable[Document], second: Iterable[Document]) -> list[str]:
    """Return the texts that are in both, each once, in the order of `first`."""
    texts = {document.text for document in second}
    return list(dict.fromkeys(document.text for document in first if document.text in texts))
