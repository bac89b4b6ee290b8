"""The files of a model are hashed once, and again after a change."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from spantune.core import sha256_of
from spantune.models import hash_model, hashes

OLD = time.time() - 60


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder whose files have not changed for a minute, and an empty cache."""
    monkeypatch.setenv("SPANTUNE_CACHE", str(tmp_path / "cache"))
    copy = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    for file in copy.iterdir():
        os.utime(file, (OLD, OLD))
    return copy


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that gets the names of the files that are read to be hashed."""
    names: list[str] = []

    def counted(path: Path) -> str:
        names.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(hashes, "sha256_of", counted)
    return names


def change(file: Path, seconds: float) -> None:
    """Change the last byte of a file, and set its time of change to `seconds`."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, (seconds, seconds))


def test_an_unchanged_folder_is_read_once(folder: Path, read: list[str]) -> None:
    first = hash_model(folder)
    assert "model.safetensors" in read and len(read) == len(set(read))
    read.clear()
    assert hash_model(folder) == first and hash_model(folder / ".." / "model") == first and not read
    change(folder / "model.safetensors", OLD + 1)  # the size is the same
    assert hash_model(folder) != first and read == ["model.safetensors"]


def test_a_file_that_takes_the_place_of_another_is_read(folder: Path, read: list[str]) -> None:
    first = hash_model(folder)
    other = folder / "other"
    shutil.copy2(folder / "config.json", other)
    change(other, OLD)
    other.replace(folder / "config.json")  # size and time are the same, but the inode is another
    read.clear()
    assert hash_model(folder) != first and read == ["config.json"]


def test_a_file_that_changed_just_now_is_not_remembered(folder: Path, read: list[str]) -> None:
    change(folder / "config.json", time.time())
    first = hash_model(folder)
    read.clear()
    assert hash_model(folder) == first and read == ["config.json"]


@pytest.mark.parametrize("content", ["", "[]", '{"config.json": [1]}', '{"config.json": 7}'])
def test_a_damaged_record_is_made_again(content: str, folder: Path, read: list[str], tmp_path: Path) -> None:
    first = hash_model(folder)
    (record,) = (tmp_path / "cache" / "hashes").iterdir()
    record.write_text(content)
    assert hash_model(folder) == first and read.count("config.json") == 2
    assert hash_model(folder) == first and read.count("config.json") == 2


def test_a_cache_that_cannot_be_written_costs_time_only(
    folder: Path, read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPANTUNE_CACHE", str(tmp_path / "file"))
    assert hash_model(folder) == hash_model(folder) and read.count("config.json") == 2
