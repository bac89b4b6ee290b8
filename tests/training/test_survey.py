"""Splits are recognised by file names, and two files that could both be meant are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from spantune.core import DataError, Document
from spantune.training.survey import chinese_share, find_splits


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train.jsonl", "dev.jsonl", "test.jsonl", "split.json", "a.md"), ("train.jsonl", "dev.jsonl", "test.jsonl")),
        (("w17train.conll", "e.dev.conll", "e.test.annotated"), ("w17train.conll", "e.dev.conll", "e.test.annotated")),
        (("x.train", "x.train.changes.jsonl", "x.devel"), ("x.train", "x.devel")),
        (("sample_train.json", "train.jsonl", "valid.jsonl"), ("train.jsonl", "valid.jsonl")),
        (("train/a.txt", "test/b.txt"), ("train", "test")),
        (("latest.jsonl",), ("latest.jsonl",)),
    ],
)  # fmt: skip
def test_a_folders_splits(tmp_path: Path, names: tuple[str, ...], splits: tuple[str, ...]) -> None:
    found = find_splits([touch(tmp_path, *names)])
    assert [Path(path).name for paths in found.values() for path in paths] == list(splits)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("a-train.json", "b-train.json"), "could each be the train split; name the files"),
        (("a.jsonl", "b.jsonl"), "expected a corpus, or files named train, dev and test, found a.jsonl, b.jsonl"),
        ((), "found none"),
    ],
)
def test_what_could_be_several_things_is_refused(tmp_path: Path, names: tuple[str, ...], words: str) -> None:
    with pytest.raises(DataError, match=words):
        find_splits([touch(tmp_path, *names)])


def test_the_neighbours_of_a_training_file(tmp_path: Path) -> None:
    touch(tmp_path, "x.train.jsonl", "x.validation.jsonl", "y.test.jsonl", "notes.jsonl")
    assert find_splits([tmp_path / "x.train.jsonl"]) == {
        "train": (str(tmp_path / "x.train.jsonl"),),
        "dev": (str(tmp_path / "x.validation.jsonl"),),
    }
    assert find_splits([tmp_path / "notes.jsonl"]).keys() == {"train"}
    assert find_splits(["a", "b"]) == {"train": ("a", "b")}


@pytest.mark.parametrize(
    ("text", "share"),
    [("患者发热", 1.0), ("Ann met Bob", 0.0), ("患者 IL-6", 0.5), ("患者はカタカナです", 0.0), ("123", 0.0)],
)
def test_the_share_of_chinese(text: str, share: float) -> None:
    assert chinese_share([Document("a", text)]) == share
