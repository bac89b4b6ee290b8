"""Predictions of `spantune evaluate`: two inputs never share a file, and the input of a file can be found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from spantune.core import Document, Entity, RunError
from spantune.runs import evaluated, name_predictions, predictions_for

ONE = [Document("1", "肺炎", (Entity(0, 2, "dis"),))]
TWO = [Document("1", "肺癌", (Entity(0, 2, "dis"),))]


def named(run: Path, data: str, documents: list[Document]) -> str:
    path = name_predictions(run, data, documents)
    path.touch()
    return path.name


def test_inputs_of_one_name_have_files_of_their_own(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    first = named(run, str(tmp_path / "a" / "test.jsonl"), ONE)
    second = named(run, str(tmp_path / "b" / "test.jsonl"), TWO)
    third = named(run, str(tmp_path / "a" / "test.jsonl"), TWO)  # the file has changed
    assert first == "test.jsonl" and len({first, second, third}) == 3
    assert second.startswith("test.") and second.endswith(".jsonl")
    assert named(run, str(tmp_path / "a" / "x" / ".." / "test.jsonl"), ONE) == first  # the same input by another path
    assert [(entry.file, entry.documents) for entry in evaluated(run)] == [(second, 1), (third, 1), (first, 1)]
    assert predictions_for(run, ONE) == run / "predictions" / first
    assert predictions_for(run, TWO) == run / "predictions" / third
    assert predictions_for(run, [*ONE, *TWO]) is None


def test_a_file_of_an_unknown_input_and_those_of_training_are_left(tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "dev.jsonl").touch()
    assert named(tmp_path, "dev.jsonl", ONE) != "dev.jsonl"
    assert named(tmp_path, "test-12.jsonl", ONE) == "corpus-test-12.jsonl"
    assert named(tmp_path, "bundled:clinical-zh-test", ONE) == "bundled-clinical-zh-test.jsonl"
    assert len(named(tmp_path, f"{'长' * 80}.jsonl", ONE).encode()) < 200


def test_a_damaged_record_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "inputs.json").write_text("[1")
    with pytest.raises(RunError, match=r"inputs\.json is damaged"):
        evaluated(tmp_path)
