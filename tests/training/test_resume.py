"""A run that was killed or stopped at any moment ends like an undisturbed one, with bit-equal results."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.fakes import write_jsonl
from helpers.forked import Command
from helpers.real import bench
from spantune.core import Interrupted, RunError, Stopped, parse_config
from spantune.runs import read_metrics, resume_recipe, step_of
from spantune.runs.folder import REPORT
from spantune.training import Result, train
from spantune.training.measuring import Measuring

Tree = Callable[..., dict[str, Any]]
QUIET = {"swanlab": "off"}
STEPS = 20
# An epoch has 4 steps, so checkpoints are inside and at the end of epochs, with and without an evaluation.
LONG = {"max_steps": STEPS, "eval_steps": 4, "save_steps": 3}
DROPOUT = {"dropout": 0.1}  # so that the random state must be restored too
records = bench("kills").lines_of


@pytest.fixture(scope="module")
def unbroken(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The undisturbed run with which the others are compared; tests must not change its folder."""
    return train(parse_config(tree(tmp_path_factory.mktemp("unbroken"), train=LONG, lora=DROPOUT, track=QUIET)))


@pytest.fixture
def long_recipe(tree: Tree, tmp_path: Path) -> Callable[..., Path]:
    """A function that writes the recipe of `unbroken`, with changes; its runs are in the test's folder."""

    def make(**sections: dict[str, Any]) -> Path:
        path = tmp_path / "recipe.yaml"
        content = tree(tmp_path / "runs", **{"train": LONG, "lora": DROPOUT, "track": QUIET, **sections})
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        return path

    return make


def trained_steps(folder: Path) -> list[int]:
    return [record["step"] for record in read_metrics(folder) if record["split"] == "train"]


def saved(folder: Path) -> list[int]:
    return sorted(step_of(path) for path in (folder / "checkpoints").glob("checkpoint-*"))


def assert_equal(folder: Path, unbroken: Result) -> None:
    """Check that every line, prediction and weight equals that of the undisturbed run."""
    assert records(folder) == records(unbroken.folder)
    for name in ("predictions", "adapter"):
        for path in sorted((unbroken.folder / name).iterdir()):
            if path.name not in ("README.md", "adapter_config.json"):
                assert (folder / name / path.name).read_bytes() == path.read_bytes(), path.name
    assert {path.name for path in (folder / "predictions").iterdir()} == {
        path.name for path in (unbroken.folder / "predictions").iterdir()
    }
    assert saved(folder)[-1] == STEPS and not list(folder.rglob(".part")) and not list(folder.glob("adapter.*"))


def resumed(folder: Path) -> Result:
    return train(resume_recipe(folder), resume=folder)


def started(spawn: Callable[..., Command], recipe: Path, step: int) -> tuple[Command, Path]:
    """Start a run in a process of its own and wait until it has recorded `step`."""
    folder = recipe.parent / "runs" / "tiny"
    running = spawn("train", recipe)
    running.wait_for(lambda: step in trained_steps(folder))
    return running, folder


# --- killed -------------------------------------------------------------------------------------------------------


@pytest.mark.no_cover
def test_a_run_killed_at_a_random_step_ends_as_if_it_had_not_been(
    long_recipe: Callable[..., Path], spawn: Callable[..., Command], unbroken: Result
) -> None:
    seed = random.randrange(10**6)
    step = random.Random(seed).randrange(3, STEPS)
    running, folder = started(spawn, long_recipe(), step)
    running.signal(signal.SIGKILL)
    assert running.end() == -signal.SIGKILL, seed
    steps = trained_steps(folder)
    assert steps == list(range(1, max(steps) + 1)) and max(steps) >= step, seed
    resumed(folder)
    assert_equal(folder, unbroken)


def broken(unbroken: Result, parent: Path, keep: int | None) -> Path:
    """Copy the run as a kill leaves it after checkpoint `keep` was saved; None: before any checkpoint."""
    folder = Path(shutil.copytree(unbroken.folder, parent / "tiny"))
    (folder / REPORT).unlink()
    for path in (folder / "checkpoints").iterdir():
        if keep is None or step_of(path) > keep:
            shutil.rmtree(path)
    (folder / "checkpoints" / ".part" / "checkpoint-20").mkdir(parents=True)  # the next checkpoint was being written
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 20, "ti')
    return folder


@pytest.mark.no_cover
@pytest.mark.parametrize("keep", [18, 20, None])
def test_a_run_goes_on_from_what_a_kill_leaves(unbroken: Result, tmp_path: Path, keep: int | None) -> None:
    folder = broken(unbroken, tmp_path, keep)
    result = resumed(folder)
    assert_equal(folder, unbroken)
    assert result.after.scores == unbroken.after.scores
    assert result.as_dict()["f1_before"] == unbroken.as_dict()["f1_before"]
    assert (folder / REPORT).is_file()


@pytest.mark.no_cover
def test_a_line_over_several_steps_is_the_same_after_a_resume(tree: Tree, tmp_path: Path) -> None:
    settings = {**LONG, "log_steps": 7, "eval_steps": 10, "eval_before": False}
    result = train(parse_config(tree(tmp_path, train=settings, lora=DROPOUT, track=QUIET)))
    assert trained_steps(result.folder) == [3, 6, 7, 9, 10, 12, 14, 15, 18, 20], "a line ends at each checkpoint"
    for keep in (10, 15):
        folder = broken(result, tmp_path / str(keep), keep)
        resumed(folder)
        assert_equal(folder, result)


def test_a_torn_checkpoint_is_not_taken(unbroken: Result, tmp_path: Path) -> None:
    folder = broken(unbroken, tmp_path, 20)
    optimizer = folder / "checkpoints" / "checkpoint-20" / "optimizer.pt"
    data = bytearray(optimizer.read_bytes())
    data[len(data) // 2] ^= 1
    optimizer.write_bytes(data)
    resumed(folder)
    assert_equal(folder, unbroken)
    log = (folder / "run.log").read_text(encoding="utf-8")
    assert "checkpoint-20 is torn and passed over: optimizer.pt" in log and "resuming from checkpoint-18" in log


@pytest.mark.no_cover
def test_the_best_so_far_stays_the_best_after_a_resume(tree: Tree, tmp_path: Path) -> None:
    settings = {**LONG, "max_steps": 8, "save_steps": 4, "eval_before": False}
    folder = broken(train(parse_config(tree(tmp_path, train=settings, track=QUIET))), tmp_path / "copy", 4)
    lines = read_metrics(folder)
    for line in lines:
        if line["split"] == "dev" and line["step"] == 4:
            line["f1"] = 0.99  # as if step 4 had been better than step 8, whose adapter is saved
    write_jsonl(folder / "metrics.jsonl", lines)
    weights = (folder / "checkpoints" / "checkpoint-4" / "adapter_model.safetensors").read_bytes()
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() != weights
    resumed(folder)
    assert json.loads((folder / "adapter" / "evaluation.json").read_text())["step"] == 4
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == weights
    assert saved(folder) == [4, 8]


def test_a_finished_run_is_not_gone_on_with(unbroken: Result, command: Callable[..., Any]) -> None:
    finished = command("train", "--resume", unbroken.folder)
    assert finished.code == 2 and "is finished" in finished.err


# --- stopped ------------------------------------------------------------------------------------------------------


@pytest.mark.no_cover
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(
    number: int, code: int, long_recipe: Callable[..., Path], spawn: Callable[..., Command], unbroken: Result
) -> None:
    running, folder = started(spawn, long_recipe(train={**LONG, "save_steps": STEPS}), 5)
    running.signal(number)
    assert running.end() == code and running.out == ""
    last = max(trained_steps(folder))
    assert 5 <= last < STEPS and saved(folder)[-1] == last
    assert f"{signal.Signals(number).name}: stopping after this step" in running.err
    assert f"stopped after step {last}; best dev F1 " in running.err and "Traceback" not in running.err
    assert f"saved at step {last}; go on with: spantune train --resume {folder}" in running.err.replace("\n", "")
    assert not (folder / REPORT).exists()
    resumed(folder)
    assert_equal(folder, unbroken)


def signalling(monkeypatch: pytest.MonkeyPatch, number: int, times: int, at: str) -> None:
    """Send real signals to this process when the run begins to extract `at` (split and step)."""
    measure = Measuring.measure

    def measured(self: Measuring, documents: Any, split: str, step: int, **more: float) -> Any:
        if f"{split}-{step}" == at:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return measure(self, documents, split, step, **more)

    monkeypatch.setattr(Measuring, "measure", measured)


@pytest.mark.no_cover
@pytest.mark.parametrize("at", ["dev-8", "dev-20"])
def test_a_stop_while_evaluating_saves_and_evaluates_when_it_goes_on(
    at: str, long_recipe: Callable[..., Path], unbroken: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse_config(yaml.safe_load(long_recipe().read_text(encoding="utf-8")))
    with monkeypatch.context() as patched:
        signalling(patched, signal.SIGTERM, 1, at)
        with pytest.raises(Stopped) as stopped:
            train(recipe)
    assert stopped.value.exit_code == 143
    step = int(at.rpartition("-")[2])
    assert saved(recipe.run_folder)[-1] == step == max(trained_steps(recipe.run_folder))
    assert step not in [line["step"] for line in records(recipe.run_folder) if line["split"] == "dev"]
    resumed(recipe.run_folder)
    assert_equal(recipe.run_folder, unbroken)


def test_a_second_signal_ends_the_run_at_once(
    long_recipe: Callable[..., Path], unbroken: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse_config(yaml.safe_load(long_recipe().read_text(encoding="utf-8")))
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        signalling(patched, signal.SIGINT, 2, "dev-8")
        with pytest.raises(Interrupted) as ended:
            train(recipe)
    assert not isinstance(ended.value, Stopped) and ended.value.exit_code == 130
    assert saved(recipe.run_folder)[-1] == 6 and signal.getsignal(signal.SIGINT) is before
    resumed(recipe.run_folder)
    assert_equal(recipe.run_folder, unbroken)


@pytest.mark.no_cover
@pytest.mark.parametrize("at", ["test-0", "test-20"])
def test_a_stop_while_measuring_loses_nothing_and_closes_the_trackers(
    at: str, long_recipe: Callable[..., Path], unbroken: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse_config(yaml.safe_load(long_recipe(track={"swanlab": "local"}).read_text(encoding="utf-8")))
    with monkeypatch.context() as patched:
        signalling(patched, signal.SIGINT, 1, at)
        with pytest.raises(Stopped):
            train(recipe)
    with closing(sqlite3.connect(recipe.run.folder / "swanlab" / "runs.swanlab")) as store:
        assert store.execute("select status from experiment").fetchall() == [(-1,)]
    resumed(recipe.run_folder)
    assert_equal(recipe.run_folder, unbroken)


# --- changed ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped_run(
    tree: Tree, corpus: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The folder with a stopped run and its own model and corpora, and a copy of this folder."""
    parent = tmp_path_factory.mktemp("stopped") / "own"
    model = shutil.copytree(tiny_folder, parent / "model")
    files = {name: str(shutil.copy(corpus / f"{name}.jsonl", parent)) for name in ("train", "dev", "test")}
    settings = {**LONG, "max_steps": 2, "eval_steps": 2, "save_steps": 1, "eval_before": False}
    sections = {"model": {"source": str(model)}, "data": files, "train": settings}
    result = train(parse_config(tree(parent / "runs", lora=DROPOUT, track=QUIET, **sections)))
    (result.folder / REPORT).unlink()
    return parent, Path(shutil.copytree(parent, parent.with_name("copy")))


@pytest.fixture
def own_files(stopped_run: tuple[Path, Path]) -> Iterator[Path]:
    """The folder of `stopped_run`; the test may change it and the files beside it, which are restored."""
    parent, copy = stopped_run
    yield parent / "runs" / "tiny"
    shutil.rmtree(parent)
    shutil.copytree(copy, parent)


def change_document(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines[0]["entities"] = []
    write_jsonl(path, lines)


def change_weight(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def change_instruction(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace("Find entities", "Find all"), encoding="utf-8")


CHANGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "train": (change_document, "train.jsonl", "the training documents"),
    "dev": (change_document, "dev.jsonl", "the dev documents"),
    "test": (change_document, "test.jsonl", "the test documents"),
    "model": (change_weight, "model/model.safetensors", "the model"),
    "recipe's task": (change_instruction, "runs/tiny/config.yaml", "the task"),
    "task.json": (change_instruction, "runs/tiny/task.json", "task.json"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_whose_ground_has_changed_is_refused_and_says_which(name: str, own_files: Path) -> None:
    change, path, what = CHANGES[name]
    before = (own_files / "metrics.jsonl").read_bytes()
    change(own_files.parents[1] / path)
    with pytest.raises(RunError, match=rf"tiny: {what} changed since the run began; put back"):
        resumed(own_files)
    assert (own_files / "metrics.jsonl").read_bytes() == before and saved(own_files)[-1] == 2


def test_another_release_is_told_and_not_refused(own_files: Path) -> None:
    path = own_files / "environment.json"
    environment = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**environment, "torch": "1.0"}), encoding="utf-8")
    resumed(own_files)
    log = (own_files / "run.log").read_text(encoding="utf-8")
    assert f"WARNING spantune.training.job: torch was 1.0 and is {environment['torch']}" in log


@pytest.mark.no_cover
def test_data_of_another_format_with_the_same_documents_are_the_same(own_files: Path) -> None:
    path = own_files.parents[1] / "train.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    write_jsonl(path, [{**dict(reversed(line.items())), "meta": {"seen": True}} for line in lines])
    assert resumed(own_files).folder == own_files
