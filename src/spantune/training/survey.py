"""A survey of a corpus for a recipe: its files and splits, labels, language, and whether entities overlap.

The splits of a folder are recognised by the words train, dev (devel, valid, validation, val) and test in the names of
its files or folders. If a single file has the word train in its name, dev and test are looked for beside it. If two
files could be meant, that is an error and nothing is guessed.
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
"""The words in the names of files, and the split that each of them means."""
CHINESE_FROM = 0.3
"""The instruction is Chinese if at least this share of the letters of a corpus are Chinese characters."""
_WORD = re.compile(rf"(?<![A-Za-z])({'|'.join(sorted(WORDS, key=len, reverse=True))})(?![A-Za-z])", re.IGNORECASE)
_NO_CORPUS = (".md", ".pdf", ".html", ".yaml", ".yml", ".log", ".py", ".png", ".zip", ".gz", ".ipynb")


@dataclass(frozen=True)
class Survey:
    """The documents of a corpus, and what was found in them.

    Attributes:
        sources: the sources of each split; train may have several, dev and test have one.
        documents: the documents of each split that has a source.
        formats: the corpus formats of the sources, without repetition.
        notes: what the readers repaired and how documents were merged, with counts.
        counted: the statistics of the training documents.
        labels: the labels of all splits with their number of training entities, the most frequent first.
        language: the language of the instruction.
        chinese_share: the share of Chinese characters in the letters of the training documents.
        nested: whether entities overlap in any split.
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
        """The number of characters of the longest text of all splits."""
        return max(len(document.text) for documents in self.documents.values() for document in documents)


@dataclass(frozen=True)
class Reading:
    """How corpora are read: the name of the format, or None to recognise it, and options that some formats need."""

    format: str | None = None
    options: Options = formats.DEFAULTS

    def keys(self) -> dict[str, object]:
        """Return the same as keys and values of a recipe's section `data`."""
        names = ("column", "joiner", "label", "encoding", "offsets")
        values = {"format": self.format, **{name: getattr(self.options, name) for name in names}}
        return {key: value for key, value in values.items() if value is not None}


def survey(corpora: Sequence[str | Path], held_out: Mapping[Split, str | Path | None], options: Reading) -> Survey:
    """Read the corpora for which a recipe is made, and survey them.

    Args:
        corpora: files, folders or `bundled:NAME`. Several are read as training documents together, as `data.train`
            does: a document of a later corpus replaces an earlier one with the same text.
        held_out: the corpora of dev and test, if they are named.
        options: how the corpora are read.

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
    """Return the share of Chinese characters in all letters; 0 if there are Japanese kana, so the text is Japanese."""
    letters = [sign for document in documents for sign in document.text if sign.isalpha()]
    chinese = sum("\u4e00" <= sign <= "\u9fff" or "\u3400" <= sign <= "\u4dbf" for sign in letters)
    kana = sum("\u3040" <= sign <= "\u30ff" for sign in letters)
    return 0.0 if kana > 0.05 * len(letters) else chinese / max(1, len(letters))


def find_splits(corpora: Sequence[str | Path]) -> dict[Split, tuple[str, ...]]:
    """Return the sources of each split.

    Those of a folder are found by the names in it, those of a training file by the names beside it. Several corpora are
    all training documents.

    Raises:
        DataError: a folder has no corpus, or two files in it could be the same split.
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
    """Return the texts that would be in train and in dev if the first `share` of the documents were held out as dev."""
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
    """Return the only path of a split; of several, the one whose name is just the word of the split.

    Raises:
        DataError: several paths could be meant.
    """
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
    """Return the files of dev and test beside a training file; none if its name does not have the word train.

    Example: `CMeEE-V2_dev.json` beside `CMeEE-V2_train.json`.
    """
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
    """Whether a folder is a run folder or contains run folders."""
    return path.is_dir() and (any(path.glob("config.yaml")) or any(path.glob("*/config.yaml")))
