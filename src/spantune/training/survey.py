"""What a recipe needs to know of a corpus: its files and splits, labels, language, and whether entities overlap.

A folder's splits are recognised by the words train, dev (devel, valid, validation, val) and test in the names of its
files or folders, and so are the neighbours of a file that is named as the training split. Nothing is guessed where two
files could be meant.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spantune.core import DataError, Document
from spantune.data import (
    Corpus,
    Options,
    Statistics,
    formats,
    holdout,
    merge_corpora,
    read,
    shared_texts,
    statistics,
)

Language = Literal["zh", "en"]
Split = Literal["train", "dev", "test"]

WORDS: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    **dict.fromkeys(("dev", "devel", "valid", "validation", "val"), "dev"),
    "test": "test",
    "testing": "test",
}
"""The words in the names of files that say which split they are."""
CHINESE_FROM = 0.3
"""The share of Chinese characters in the letters of a corpus from which its instruction is Chinese."""
_WORD = re.compile(rf"(?<![A-Za-z])({'|'.join(sorted(WORDS, key=len, reverse=True))})(?![A-Za-z])", re.IGNORECASE)
_NO_CORPUS = (".md", ".pdf", ".html", ".yaml", ".yml", ".log", ".py", ".png", ".zip", ".gz", ".ipynb")


@dataclass(frozen=True)
class Survey:
    """The documents of each split that has a corpus, the sources they were read from, and what is in them all.

    `train` may have several sources, the other splits have one. `counted` counts the training documents; `labels` has
    every label of any split, the most frequent of the training documents first, with its entities there.
    """

    sources: Mapping[Split, tuple[str, ...]]
    documents: Mapping[Split, tuple[Document, ...]]
    formats: tuple[str, ...]
    notes: Mapping[str, int]
    counted: Statistics
    labels: Mapping[str, int]
    language: Language
    chinese_share: float
    nested: bool

    @property
    def longest(self) -> int:
        """Characters of the longest text of any split."""
        return max(len(document.text) for documents in self.documents.values() for document in documents)


@dataclass(frozen=True)
class Reading:
    """How corpora are read: a format's name, or None to recognise it, and what some formats need to know."""

    format: str | None = None
    options: Options = formats.DEFAULTS

    def keys(self) -> dict[str, object]:
        """Return the keys of a recipe's section `data` that say so."""
        names = ("column", "joiner", "label", "encoding", "offsets")
        values = {"format": self.format, **{name: getattr(self.options, name) for name in names}}
        return {key: value for key, value in values.items() if value is not None}


def survey(corpora: Sequence[str | Path], held_out: Mapping[Split, str | Path | None], options: Reading) -> Survey:
    """Read the corpora that a recipe is to be made for.

    Args:
        corpora: files, folders or `bundled:NAME`; several are the training documents together, as `data.train` reads
            them: a document of a later one replaces the one with the same text.
        held_out: the corpora of dev and test, where they are named.
        options: how they are read.

    Raises:
        DataError: a corpus cannot be read or has no entities, or it is not clear which file is meant.
    """
    sources = find_splits(corpora)
    sources |= {split: (str(path),) for split, path in held_out.items() if path}
    notes: Counter[str] = Counter()
    names: list[str] = []
    documents: dict[Split, tuple[Document, ...]] = {}
    for split, paths in sources.items():
        parts = [_read(path, options, sources) for path in paths]
        merged = merge_corpora([(path, part.documents) for path, part in zip(paths, parts, strict=True)])
        documents[split] = merged.documents
        names += [part.format for part in parts]
        for part in parts:
            notes.update(part.notes)
        notes["document of a later file that replaces one with the same text"] += merged.replaced
        notes["document of a later file that an earlier one has too"] += merged.unchanged
        notes["document left out, since a later file has its text fewer times"] += merged.left_out
    counted = statistics(documents["train"])
    if not counted.entities:
        raise DataError("no document has an entity, so that there is nothing to learn; annotate some", path=corpora[0])
    every = [statistics(part) for part in documents.values()]
    share = chinese_share(documents["train"])
    return Survey(
        sources=sources,
        documents=documents,
        formats=tuple(dict.fromkeys(names)),
        notes=+notes,
        counted=counted,
        labels=dict.fromkeys((label for part in (counted, *every) for label in part.entities), 0)
        | dict(counted.entities),
        language="zh" if share >= CHINESE_FROM else "en",
        chinese_share=share,
        nested=any(part.nested or part.crossing or part.shared_spans for part in every),
    )


def _read(path: str, options: Reading, sources: Mapping[Split, Sequence[str]]) -> Corpus:
    try:
        return read(path, options.format, options.options)
    except DataError as error:
        if "--fix" not in error.message:
            raise
        files = shlex.join(source for paths in sources.values() for source in paths)
        remedy = f"here: spantune data check {files} --fix mended, then spantune init mended"
        raise DataError(f"{error.message}; {remedy}", path=error.path, line=error.line, field=error.field) from None


def chinese_share(documents: Sequence[Document]) -> float:
    """Return the share of Chinese characters in all letters; 0 where Japanese kana show that they are not Chinese."""
    letters = [sign for document in documents for sign in document.text if sign.isalpha()]
    chinese = sum("\u4e00" <= sign <= "\u9fff" or "\u3400" <= sign <= "\u4dbf" for sign in letters)
    kana = sum("\u3040" <= sign <= "\u30ff" for sign in letters)
    return 0.0 if kana > 0.05 * len(letters) else chinese / max(1, len(letters))


def find_splits(corpora: Sequence[str | Path]) -> dict[Split, tuple[str, ...]]:
    """Return the sources of each split: of a folder by the names in it, of a training file by those beside it.

    Raises:
        DataError: a folder has no corpus, or several that could be meant.
    """
    if len(corpora) > 1:
        return {"train": tuple(map(str, corpora))}
    path = Path(corpora[0])
    if path.is_dir():
        return _in_folder(path)
    if str(corpora[0]).startswith("bundled:") or not path.is_file():
        return {"train": (str(corpora[0]),)}
    return {"train": (str(path),), **_beside(path)}


def leaking(documents: Sequence[Document], share: float) -> list[str]:
    """Return the texts that would be on both sides if the first `share` of the documents were held out."""
    return shared_texts(*holdout(documents, share))


def _in_folder(folder: Path) -> dict[Split, tuple[str, ...]]:
    entries = [path for path in sorted(folder.iterdir()) if _may_be_corpus(path)]
    named: dict[Split, list[Path]] = {}
    for path in entries:
        if split := _split_of(path.name):
            named.setdefault(split, []).append(path)
    if "train" in named:
        return {split: (str(_only(paths, split, folder)),) for split, paths in sorted(named.items(), key=_order)}
    files = [path for path in entries if path.is_file()]
    if len(files) == 1 and len(entries) == 1:
        return {"train": (str(files[0]),)}
    try:
        formats.detect(folder)
    except DataError:
        found = ", ".join(path.name for path in entries[:6]) or "none"
        raise DataError(
            f"expected a corpus, or files named train, dev and test, found {found}; name the file to train on: "
            "spantune init FILE --dev FILE --test FILE",
            path=folder,
        ) from None
    return {"train": (str(folder),)}


def _order(item: tuple[Split, object]) -> int:
    return ("train", "dev", "test").index(item[0])


def _only(paths: Sequence[Path], split: Split, folder: Path) -> Path:
    """The path that is called by the split's word alone, or else the only one."""
    bare = [path for path in paths if path.stem.lower() in WORDS]
    chosen = bare or paths
    if len(chosen) > 1:
        names = ", ".join(path.name for path in chosen)
        raise DataError(
            f"{names} could each be the {split} split; name the files: spantune init FILE --dev FILE --test FILE",
            path=folder,
        )
    return chosen[0]


def _beside(path: Path) -> dict[Split, tuple[str, ...]]:
    """The dev and test splits beside a file whose name says that it is the training split."""
    match = _WORD.search(path.name)
    if match is None or WORDS[match[0].lower()] != "train":
        return {}
    found: dict[Split, tuple[str, ...]] = {}
    for word, split in WORDS.items():
        candidate = path.with_name(path.name[: match.start()] + word + path.name[match.end() :])
        if split != "train" and split not in found and candidate.is_file():
            found[split] = (str(candidate),)
    return found


def _split_of(name: str) -> Split | None:
    words = {WORDS[match.lower()] for match in _WORD.findall(name)}
    return words.pop() if len(words) == 1 else None


def _may_be_corpus(path: Path) -> bool:
    name = path.name
    is_other = name.startswith((".", "split.")) or name.endswith((*_NO_CORPUS, ".changes.jsonl"))
    return not (is_other or _holds_runs(path))


def _holds_runs(path: Path) -> bool:
    """Whether a folder is, or holds, run folders or a board of them."""
    return path.is_dir() and (any(path.glob("config.yaml")) or any(path.glob("*/config.yaml")))
