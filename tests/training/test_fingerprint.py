"""The inputs of a run are known by content: a change of any part is noticed, a change of form is not."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spantune.core import Document, Entity, Label, RunError, TaskSpec, parse_config
from spantune.training import prepare
from spantune.training.fingerprint import (
    FIXED,
    code,
    fingerprint,
    hash_documents,
    hash_model,
    hash_task,
    read_environment,
    require_unchanged,
)

DOCUMENTS = (Document("a", "肺炎", (Entity(0, 2, "dis"),)), Document("b", "疮", ()))
TASK = TaskSpec(labels=(Label(code="dis"),), instruction="Find.")


def test_documents_are_hashed_by_id_text_and_entities_in_order() -> None:
    first, second = DOCUMENTS
    same = hash_documents(DOCUMENTS)
    assert same == hash_documents([replace(first, meta={"seen": True}), second])
    for other in (
        [second, first],
        [first],
        [replace(first, id="c"), second],
        [replace(first, text="肺癌"), second],
        [first.with_entities([Entity(0, 1, "dis")]), second],
        [first.with_entities([Entity(0, 2, "sym")]), second],
    ):
        assert hash_documents(other) != same


def test_a_model_is_hashed_by_the_names_and_contents_of_its_files(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    same = hash_model(tiny_folder)
    (folder / "README.md").write_text("# tiny")
    (folder / "conversion.json").write_text('{"seconds": 12}')  # it depends on the machine that converted the model
    assert hash_model(folder) == same
    tokenizer = folder / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert hash_model(folder) != same
    tokenizer.write_text(tokenizer.read_text()[:-1])
    assert hash_model(folder) == same
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert hash_model(folder) != same


def test_the_code_is_known_by_its_source_and_commit() -> None:
    found = code()
    assert re.fullmatch(r"[0-9a-f]{64}", found["code_sha256"]) and found == code()
    assert "commit" not in found or re.fullmatch(r"[0-9a-f]{40}\+?", found["commit"])


def test_a_prepared_recipe_has_a_hash_for_each_part(tree: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    found = fingerprint(prepare(parse_config(tree(tmp_path))))
    assert set(FIXED) <= found.keys() and len({found[key] for key in FIXED}) == 5
    limited = fingerprint(prepare(parse_config(tree(tmp_path, data={"limit": 8}))))
    assert {key for key in found if found[key] != limited[key]} == {"train_sha256"}


def folder_of(tmp_path: Path, environment: object) -> Path:
    TASK.save(tmp_path)
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    return tmp_path


NOW = {key: "0" for key in FIXED} | {"task_sha256": hash_task(TASK), "torch": "2"}


def test_every_part_that_changed_is_named(tmp_path: Path) -> None:
    assert require_unchanged(folder_of(tmp_path, NOW), NOW) == []
    assert require_unchanged(folder_of(tmp_path, {**NOW, "torch": "1"}), NOW) == ["torch was 1 and is 2"]
    other = {**NOW, "model_sha256": "1", "test_sha256": "1"}
    with pytest.raises(RunError, match=r"the model, the test documents changed since the run began; put back"):
        require_unchanged(folder_of(tmp_path, other), NOW)
    with pytest.raises(RunError, match=r"the model, .*the task changed since the run began"):
        require_unchanged(folder_of(tmp_path, {}), NOW)  # without a record, no part counts as unchanged


@pytest.mark.parametrize("content", ["", "[1]", '{"torch": '])
def test_a_damaged_record_is_an_error_with_a_way_out(content: str, tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text(content)
    with pytest.raises(RunError, match=r"environment\.json is (missing or )?damaged.*; restore it, or train again"):
        read_environment(tmp_path)


def test_a_flat_task_is_another_and_a_nested_one_what_it_was() -> None:
    before = TASK.model_dump_json(exclude={"nested"})  # the JSON of a task from before `nested` was added
    assert hash_task(TASK) == hashlib.sha256(before.encode()).hexdigest()
    assert hash_task(TASK.model_copy(update={"nested": False})) != hash_task(TASK)
