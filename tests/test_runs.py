"""A run folder is made once, says what made it, and is never written over."""

from __future__ import annotations

import getpass
import json
import logging
import socket
from pathlib import Path
from typing import Any

import pytest

from spantune import runs
from spantune.config import Config, parse_config
from spantune.errors import RunError
from spantune.task import Label, TaskSpec

TASK = TaskSpec(labels=(Label(code="dis"),), instruction="Find.")


def recipe(folder: Path, **changes: Any) -> Config:
    return parse_config(
        {
            "run": {"name": "one", "folder": str(folder), **changes},
            "model": {"source": "x"},
            "task": {"labels": ["dis"]},
            "data": {"train": "t.jsonl"},
        }
    )


def test_a_new_folder_holds_recipe_task_and_environment(tmp_path: Path) -> None:
    wanted = recipe(tmp_path / "deep" / "runs", seed=7)
    folder = runs.create(wanted, TASK)
    assert folder == tmp_path / "deep" / "runs" / "one"
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "environment.json", "task.json"]
    assert runs.read_config(folder) == wanted
    assert TaskSpec.load(folder) == TASK
    found = json.loads((folder / "environment.json").read_text())
    assert {"python", "system", "device", "torch", "transformers", "peft", "swanlab", "llguidance"} <= found.keys()
    text = (folder / "environment.json").read_text()
    assert socket.gethostname() not in text and f'"{getpass.getuser()}"' not in text


def test_a_folder_that_exists_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with pytest.raises(RunError, match=r"one exists; give another run\.name.*--resume"):
        runs.create(recipe(tmp_path), TASK)
    assert list((tmp_path / "one").iterdir()) == []
    with pytest.raises(RunError):
        runs.require_free(recipe(tmp_path))
    assert runs.require_free(recipe(tmp_path, name="two")) == tmp_path / "two"


def test_free_names_count_up(tmp_path: Path) -> None:
    assert runs.free_name(tmp_path, "demo") == "demo"
    for name in ("demo", "demo-2", "demo-4"):
        (tmp_path / name).mkdir()
        assert runs.free_name(tmp_path, "demo") == ("demo-2" if name == "demo" else "demo-3")


def test_a_run_to_go_on_with_is_where_its_folder_is_now(tmp_path: Path) -> None:
    runs.create(recipe(tmp_path / "before", seed=7), TASK)
    (tmp_path / "before" / "one").rename(tmp_path / "moved")
    found = runs.resume_recipe(tmp_path / "moved")
    assert found.run_folder == tmp_path / "moved" and found.run.seed == 7
    assert found == parse_config(found.model_dump())  # still of the types that a recipe has


def test_a_finished_run_and_no_run_cannot_be_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no config\.yaml here"):
        runs.resume_recipe(tmp_path)
    folder = runs.create(recipe(tmp_path), TASK)
    (folder / "report.html").write_text("x")
    with pytest.raises(RunError, match="is finished"):
        runs.resume_recipe(folder)


def test_the_last_whole_checkpoint_counts_by_number(tmp_path: Path) -> None:
    assert runs.last_checkpoint(tmp_path) is None
    for step, whole in ((4, True), (12, True), (16, False)):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if whole:
            (folder / "trainer_state.json").write_text("{}")
    last = runs.last_checkpoint(tmp_path)
    assert last == tmp_path / "checkpoints" / "checkpoint-12" and runs.step_of(last) == 12


def test_the_log_goes_to_the_run_and_warnings_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("spantune.anything")
    handler = runs.log_to(tmp_path)
    log.info("quiet 病")
    log.warning("loud")
    logging.getLogger("spantune").removeHandler(handler)
    handler.close()
    log.warning("later")
    text = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert "INFO spantune.anything: quiet 病" in text and "WARNING spantune.anything: loud" in text
    assert "later" not in text
    err = capsys.readouterr().err
    assert "loud" in err and "quiet" not in err


def test_two_runs_in_a_process_do_not_say_everything_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        handler = runs.log_to(tmp_path / name)
        logging.getLogger("spantune").removeHandler(handler)
        handler.close()
    logging.getLogger("spantune").warning("once")
    assert capsys.readouterr().err.count("once") == 1


def test_the_newest_predictions_are_those_of_the_largest_step(tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    for name in ("test-9", "test-10", "test", "dev-99", "test-late", "other-test-11"):
        (tmp_path / "predictions" / f"{name}.jsonl").touch()
    assert runs.last_predictions(tmp_path, "test").name == "test-10.jsonl"
    assert runs.last_predictions(tmp_path, "dev").name == "dev-99.jsonl"
    with pytest.raises(RunError, match=r"no predictions/train-<step>\.jsonl here"):
        runs.last_predictions(tmp_path, "train")


def test_an_adapter_comes_with_the_task_of_its_run(tmp_path: Path) -> None:
    folder = runs.create(recipe(tmp_path / "runs"), TASK)
    with pytest.raises(RunError, match="no adapter here yet"):
        runs.read_adapter(folder)
    (folder / "adapter").mkdir()
    TASK.save(folder / "adapter")
    assert runs.read_adapter(folder) == (folder / "adapter", TASK)
    other = TASK.model_copy(update={"labels": (Label(code="dis"), Label(code="bug"))})
    other.save(folder)
    with pytest.raises(RunError, match=r"task\.json: its labels \(dis, bug\) are not .* \(dis\); they differ in bug"):
        runs.read_adapter(folder)
    (folder / "task.json").unlink()
    with pytest.raises(RunError, match=r"no task\.json here"):
        runs.read_adapter(folder)
