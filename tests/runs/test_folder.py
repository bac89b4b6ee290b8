"""A run folder is made once, records what made it, and is never overwritten."""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.run_folders import copy_run, save_run
from spantune.core import Config, Label, RunError, TaskSpec, parse_config
from spantune.runs import (
    Claim,
    RunFolder,
    free_name,
    logging_to,
    require_free,
    resume_recipe,
)
from spantune.training import environment

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


def create(wanted: Config) -> Path:
    with Claim(wanted.run_folder) as claim:
        return claim.create(wanted, TASK, environment())


def test_a_new_folder_holds_recipe_task_and_environment(tmp_path: Path) -> None:
    wanted = recipe(tmp_path / "deep" / "runs", seed=7)
    folder = create(wanted)
    assert folder == tmp_path / "deep" / "runs" / "one"
    names = ["config.yaml", "environment.json", "run.lock", "task.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert RunFolder(folder).config() == wanted
    assert TaskSpec.load(folder) == TASK
    found = json.loads((folder / "environment.json").read_text())
    assert {"python", "system", "device", "torch", "transformers", "peft", "swanlab", "llguidance"} <= found.keys()
    text = (folder / "environment.json").read_text()
    assert socket.gethostname() not in text and f'"{getpass.getuser()}"' not in text


def test_a_folder_that_exists_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with pytest.raises(RunError, match=r"one exists since a moment ago; give another run\.name"):
        create(recipe(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert list((tmp_path / "one").iterdir()) == []
    with pytest.raises(RunError, match=r"one exists; give another run\.name.*--resume"):
        require_free(recipe(tmp_path))
    assert require_free(recipe(tmp_path, name="two")) == tmp_path / "two"
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match=r"file is a file.*another run\.folder"):
        require_free(recipe(tmp_path / "file" / "runs"))


def test_a_claim_that_comes_to_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Claim(tmp_path / "deep" / "runs" / "one"):
        assert (tmp_path / "deep" / "runs" / ".one.part" / "run.lock").is_file()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_start_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".one.part").mkdir()
    (tmp_path / ".one.part" / "config.yaml").write_text("half a rec")
    folder = create(recipe(tmp_path))
    assert RunFolder(folder).config() == recipe(tmp_path) and [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_folder_is_named_only_when_it_is_complete_and_is_locked_from_then_on(tmp_path: Path) -> None:
    with Claim(tmp_path / "one") as claim:
        assert not (tmp_path / "one").exists()
        with (
            pytest.raises(RunError, match=rf"one: process {os.getpid()} is working on this run"),
            Claim(tmp_path / "one"),
        ):
            pytest.fail("claimed twice")
        folder = claim.create(recipe(tmp_path), TASK, {})
        assert RunFolder(folder).is_running
    assert not RunFolder(folder).is_running and not RunFolder(folder).was_killed


def test_free_names_count_up(tmp_path: Path) -> None:
    assert free_name(tmp_path, "demo") == "demo"
    for name in ("demo", "demo-2", "demo-4"):
        (tmp_path / name).mkdir()
        assert free_name(tmp_path, "demo") == ("demo-2" if name == "demo" else "demo-3")


def test_a_run_to_go_on_with_is_where_its_folder_is_now(tmp_path: Path) -> None:
    create(recipe(tmp_path / "before", seed=7))
    (tmp_path / "before" / "one").rename(tmp_path / "moved")
    found = resume_recipe(tmp_path / "moved")
    assert found.run_folder == tmp_path / "moved" and found.run.seed == 7
    assert found == parse_config(found.model_dump())  # the types are still those of a recipe


def test_a_finished_run_and_no_run_cannot_be_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no config\.yaml here"):
        resume_recipe(tmp_path)
    folder = create(recipe(tmp_path))
    (folder / "report.html").write_text("x")
    with pytest.raises(RunError, match="is finished"):
        resume_recipe(folder)


def test_the_log_goes_to_the_run_and_warnings_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("spantune.anything")
    with logging_to(tmp_path):
        log.info("quiet 病")
        log.warning("loud")
    log.warning("later")
    text = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert "INFO spantune.anything: quiet 病" in text and "WARNING spantune.anything: loud" in text
    assert "later" not in text
    err = capsys.readouterr().err
    assert "loud" in err and "quiet" not in err


def test_two_runs_in_a_process_do_not_say_everything_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("spantune")
    before = logger.level, list(logger.handlers)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with logging_to(tmp_path / name):
            logger.warning("said in %s", name)
        assert capsys.readouterr().err == f"said in {name}\n"
        assert (tmp_path / name / "run.log").read_text(encoding="utf-8").count("said in") == 1
        assert (logger.level, logger.handlers) == before


def test_the_newest_predictions_are_those_of_the_largest_step(tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    for name in ("test-9", "test-10", "test", "dev-99", "test-late", "other-test-11"):
        (tmp_path / "predictions" / f"{name}.jsonl").touch()
    assert RunFolder(tmp_path).last_predictions("test").name == "test-10.jsonl"
    assert RunFolder(tmp_path).last_predictions("dev").name == "dev-99.jsonl"
    with pytest.raises(RunError, match=r"no predictions/train-<step>\.jsonl here"):
        RunFolder(tmp_path).last_predictions("train")


def test_an_adapter_comes_with_the_task_of_its_run(tmp_path: Path) -> None:
    folder = create(recipe(tmp_path / "runs"))
    with pytest.raises(RunError, match="no adapter here yet"):
        RunFolder(folder).adapter_task()
    (folder / "adapter").mkdir()
    TASK.save(folder / "adapter")
    assert RunFolder(folder).adapter == folder / "adapter" and RunFolder(folder).adapter_task() == TASK
    other = TASK.model_copy(update={"labels": (Label(code="dis"), Label(code="bug"))})
    other.save(folder)
    with pytest.raises(RunError, match=r"task\.json: its labels \(dis, bug\) are not .* \(dis\); they differ in bug"):
        RunFolder(folder).adapter_task()
    (folder / "task.json").unlink()
    with pytest.raises(RunError, match=r"no task\.json here"):
        RunFolder(folder).adapter_task()


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def save_template(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("{{ messages[0]['content'] }}", encoding="utf-8")


WEIGHTS = "adapter_model.safetensors"
CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of the weights": (lambda adapter: flip_a_bit(adapter / WEIGHTS), f"{WEIGHTS} is not what its manifest says"),
    "no weights": (lambda adapter: (adapter / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    "the scale": (lambda adapter: edit(adapter / "adapter_config.json", lora_alpha=9.0), "adapter_config.json "),
    "the instruction": (lambda adapter: edit(adapter / "task.json", instruction="Do."), "task.json has"),
    "the answer format": (lambda adapter: edit(adapter / "task.json", answer="inline"), "task.json has"),
    "the template": (lambda adapter: edit(adapter / "task.json", template="tutorial"), "task.json has"),
    "a label": (lambda adapter: edit(adapter / "task.json", labels=[{"code": "sym"}]), "task.json has"),
    "the tokenizer": (lambda adapter: edit(adapter / "tokenizer_config.json", x=1), "tokenizer_config.json has"),
    "a template in a folder": (
        lambda adapter: save_template(adapter / "additional_chat_templates" / "default.jinja"),
        "additional_chat_templates/default.jinja was added",
    ),
    "another template": (lambda adapter: (adapter / "added_tokens.json").touch(), "added_tokens.json was added"),
    "the manifest": (lambda adapter: (adapter / "manifest.json").write_text("[]"), "its manifest cannot be read"),
}


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an adapter; tests must not change it."""
    return save_run(tmp_path_factory.mktemp("runs") / "run", tiny_folder)


@pytest.mark.parametrize("name", CHANGES)
def test_an_adapter_that_was_changed_is_refused_or_accepted_in_words(
    name: str, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(copy_run(run, tmp_path / "run"))
    assert folder.adapter_task() == folder.task() and not caplog.messages
    change, said = CHANGES[name]
    change(folder.adapter)
    with pytest.raises(RunError) as caught:
        folder.adapter_task()
    assert f"{folder.adapter} was changed after training: {said}" in str(caught.value)
    assert "--accept-changes (in Python accept_changes=True)" in str(caught.value)
    with contextlib.suppress(RunError):  # a label that the run does not have is still refused
        folder.adapter_task(accept_changes=True)
    (message,) = caplog.messages
    assert f"{folder.adapter} was changed after training, which is accepted: {said}" in message


def test_what_is_written_beside_the_adapter_later_is_no_change(run: Path, tmp_path: Path) -> None:
    folder = RunFolder(copy_run(run, tmp_path / "run"))
    for path in (folder.calibration_file, folder.adapter / "adapter.gguf", folder.adapter / "README.md"):
        path.write_text("{}", encoding="utf-8")
    assert folder.adapter_task() == folder.task()


def test_an_adapter_without_a_manifest_goes_on_with_a_warning(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(copy_run(run, tmp_path / "run"))
    (folder.adapter / "manifest.json").unlink()
    assert folder.adapter_task() == folder.task()
    (message,) = caplog.messages
    assert message == f"{folder.adapter} has no manifest.json: whether it was changed after training is not known"


def test_metrics_are_parsed_again_only_when_the_file_has_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(tmp_path)
    assert run.metrics() == []
    run.metrics_file.write_text('{"step": 1}\n{"ste\n')
    assert run.metrics() == RunFolder(tmp_path).metrics() == [{"step": 1}]
    assert caplog.text.count("metrics.jsonl:2: a torn line is left out") == 1, "the file was parsed once"
    run.metrics().clear()
    run.metrics_file.write_text('{"step": 2}\n{"step": 3}\n')
    assert run.metrics() == [{"step": 2}, {"step": 3}]


def test_a_metric_that_is_no_json_is_read_as_none(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": NaN, "norm": -Infinity, "f1": 0.5}\n')
    assert list(RunFolder(tmp_path).metrics()) == [{"step": 1, "loss": None, "norm": None, "f1": 0.5}]


def test_an_environment_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"environment\.json cannot be read: .*; restore it, or write \{\} into it"):
        RunFolder(tmp_path).environment()
    RunFolder(tmp_path).environment_file.write_text('{"torch": "2.13"}')
    assert RunFolder(tmp_path).environment() == {"torch": "2.13"}


def test_a_folder_that_is_no_run_names_the_run_that_may_be_meant(tmp_path: Path) -> None:
    (tmp_path / "runs" / "notes").mkdir(parents=True)
    (tmp_path / "runs" / "notes" / "config.yaml").write_text("{}", encoding="utf-8")
    with pytest.raises(RunError, match=r"did you mean .*runs/notes\?$"):
        RunFolder(tmp_path / "runs" / "nots").config()
    with pytest.raises(RunError, match=r"expected a run folder in it, such as .*runs/notes$"):
        RunFolder(tmp_path / "runs").config()
    with pytest.raises(RunError, match=r"such as runs/demo$"):
        RunFolder(tmp_path / "else").config()


def test_relative_paths_of_a_recipe_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for name in ("notes.jsonl", "base/config.json"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("{}")
    elsewhere.mkdir()
    wanted = parse_config(
        {
            "run": {"name": "one", "folder": "runs"},
            "model": {"source": "base"},
            "task": {"labels": ["dis"]},
            "data": {"train": ["notes.jsonl", "gone.jsonl"], "test": "bundled:clinical-zh-test"},
        }
    )
    monkeypatch.chdir(project)
    run = RunFolder(create(wanted).resolve())
    assert (run.data(), run.model()) == (wanted.data, wanted.model)
    monkeypatch.chdir(elsewhere)
    assert run.data().train == (str(project / "notes.jsonl"), "gone.jsonl")
    assert (run.data().dev, run.data().test) == (None, "bundled:clinical-zh-test")
    assert run.model().source == run.resume_config().model.source == str(project / "base")
    assert run.config() == wanted
    (elsewhere / "notes.jsonl").write_text("{}")  # a file in the current folder comes first
    assert run.data().train == ("notes.jsonl", "gone.jsonl")
    moved = run.path.rename(run.path.with_name("two"))
    assert RunFolder(moved).model().source == str(project / "base")


def test_a_disk_that_cannot_be_written_is_said_before_anything_is_computed(
    tmp_path: Path, small_disk: Callable[[int], Path], remount: Callable[[Path, str], None]
) -> None:
    disk = small_disk(1 << 20)
    run = RunFolder(create(recipe(disk)))
    run.require_writable()
    remount(disk, "ro")
    with pytest.raises(RunError, match=r"one: cannot be written by this user; make it writable"):
        run.require_writable()
    with pytest.raises(RunError, match=r"disk0 cannot be written by this user; give another run\.folder"):
        require_free(recipe(disk / "deep", name="two"))
