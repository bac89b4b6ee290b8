"""`spantune data merge` and `map`: the files that they write and the lines that they print."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.command import last_object, one_line_error
from spantune.core import Document, Entity
from spantune.data import formats

Command = Callable[..., Any]
ANN, BOB = Entity(0, 3, "person"), Entity(8, 11, "Person")


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A file with two texts, as doccano exports them."""
    path = tmp_path / "notes.jsonl"
    documents = [Document("1", "Ann met Bob", (ANN, Entity(8, 11, "person"))), Document("2", "Nobody", ())]
    formats.write(path, documents, "doccano")
    return path


@pytest.fixture
def corrected(tmp_path: Path) -> Path:
    """A file with one of these texts corrected and one new text, as Label Studio exports them."""
    path = tmp_path / "corrected.json"
    documents = [Document("1", "Nobody", (Entity(0, 6, "person"),)), Document("2", "Ann", (ANN,))]
    formats.write(path, documents, "label_studio")
    return path


def test_corrections_replace_and_are_counted(command: Command, notes: Path, corrected: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.jsonl"
    outcome = command("data", "merge", notes, corrected, "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    assert last_object(outcome) == {
        "documents": 3, "added": 1, "replaced": 1, "unchanged": 0, "renamed": 1, "left_out": 0, "conflicts": 0,
        "out": str(out),
    }  # fmt: skip
    assert "1 added, 1 replaced by the later annotation" in outcome.err
    documents = formats.read(out, "native").documents
    assert [(document.id, document.text) for document in documents] == [
        ("1", "Ann met Bob"), ("2", "Nobody"), ("corrected:2", "Ann"),
    ]  # fmt: skip
    assert documents[1].entities == (Entity(0, 6, "person"),)
    one_line_error(command("data", "merge", notes, "--out", tmp_path / "x"), "two or more files")
    one_line_error(command("data", "merge", notes, corrected, "--out", notes, "--force"), "is read from")
    one_line_error(command("data", "merge", notes, corrected, "--out", tmp_path / "x", "--to", "brats"), "'brat'")


def test_conflicts_and_predictions_are_named(command: Command, notes: Path, tmp_path: Path) -> None:
    doubled = tmp_path / "doubled.jsonl"
    predicted = Entity(0, 1, "person", 0.5)
    formats.write(doubled, [Document("a", "x", (predicted,)), Document("b", "x"), Document("c", "Nobody")])
    outcome = command("data", "merge", notes, doubled, "--out", tmp_path / "out.jsonl")
    assert "1 texts have several annotations, first in document 'a'" in outcome.err
    assert f"{doubled}: 1 documents have entities with scores" in outcome.err


def test_labels_get_other_names_in_the_format_of_the_file(command: Command, notes: Path, tmp_path: Path) -> None:
    out = tmp_path / "renamed.jsonl"
    outcome = command("data", "map", notes, "person=Person", "--out", out)
    assert outcome.code == 0 and "person" in outcome.out and "2 documents, doccano" in outcome.err
    assert json.loads(out.read_text(encoding="utf-8").splitlines()[0])["label"] == [[0, 3, "Person"], [8, 11, "Person"]]
    dropped = command("data", "map", notes, "person=", "--out", tmp_path / "none.jsonl", "--json")
    assert last_object(dropped)["labels"] == {"person": {"new": None, "entities": 2}}
    one_line_error(command("data", "map", notes, "persn=P", "--out", tmp_path / "x"), "did you mean 'person'?")
    one_line_error(command("data", "map", notes, "person", "--out", tmp_path / "x"), "expected OLD=NEW")
    assert not (tmp_path / "x").exists()
