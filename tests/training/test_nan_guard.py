"""A run survives bad steps, full and read-only disks, a clock set back and a second process; each is real."""

from __future__ import annotations

import itertools
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.fakes import byte_tokenizer, tiny_model, write_jsonl
from helpers.forked import Command
from spantune.core import Config, Document, Entity, Label, RunError, TaskSpec, config, parse_config
from spantune.data import read
from spantune.encoding import SpanEncoder
from spantune.extraction import load_run
from spantune.models import attach, attach_head, load, make_head, require_head
from spantune.runs import Checkpoints, Claim, read_metrics, resume_recipe, step_of
from spantune.runs.folder import REPORT
from spantune.training import Collator, job, train
from spantune.training.nan_guard import MOST_SKIPPED, StepGuard
from spantune.training.step import StepRunner

Tree = Callable[..., dict[str, Any]]
QUIET = {"swanlab": "off"}
IDS = ("a", "b")


@pytest.fixture
def recipe(tree: Tree, tmp_path: Path) -> Callable[..., Config]:
    """A function that makes the tiny recipe without SwanLab; its runs are in the test's folder."""

    def make(**sections: dict[str, Any]) -> Config:
        return parse_config(tree(tmp_path / "runs", **{"track": QUIET, **sections}))

    return make


def of(folder: Path, split: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(folder) if record["split"] == split]


# --- steps --------------------------------------------------------------------------------------------------------


def test_a_step_that_is_not_finite_stops_or_is_left_out() -> None:
    with pytest.raises(RunError, match=r"the loss became nan at step 7; documents: a, b; .*set train\.on_nan=skip"):
        StepGuard("stop").accepts(math.nan, 7, IDS)
    with pytest.raises(RunError, match=r"the gradient norm became inf at step 7; documents: a, b"):
        StepGuard("stop").accepts_gradient(math.inf, 7, IDS)
    guard = StepGuard("skip")
    assert not guard.accepts(math.inf, 7, IDS) and not guard.accepts_gradient(math.nan, 8, IDS)
    assert guard.taken() == (2, 1) and guard.taken() == (0, 0)


def test_a_run_of_nothing_but_broken_steps_stops_all_the_same() -> None:
    guard = StepGuard("skip")
    for step in range(MOST_SKIPPED):
        assert not guard.accepts(math.nan, step, IDS)
    assert guard.accepts(1.0, 5, IDS) and guard.accepts_gradient(1.0, 5, IDS)  # one good step resets the count
    for step in range(6, 6 + MOST_SKIPPED):
        assert not guard.accepts(math.nan, step, IDS)
    with pytest.raises(RunError, match=r"at step 11, as at the 5 steps before; documents: a, b"):
        guard.accepts(math.nan, 11, IDS)


def test_a_spike_is_warned_of_with_its_documents_and_ordinary_noise_is_not(caplog: pytest.LogCaptureFixture) -> None:
    guard = StepGuard("stop", [1.0 + 0.1 * (number % 5) for number in range(7)])
    assert guard.accepts(1.3, 8, IDS) and guard.accepts(2.0, 9, IDS) and guard.accepts(0.1, 10, IDS)
    assert not caplog.records
    assert guard.accepts(9.0, 11, [str(number) for number in range(23)])
    assert "step 11: the loss jumped to 9; the median of the last 10 steps is 1.15; documents: 0, 1, 2" in caplog.text
    assert caplog.text.rstrip().endswith("18, 19 and 3 more")


def test_the_first_steps_are_no_spike(caplog: pytest.LogCaptureFixture) -> None:
    guard = StepGuard("stop")
    assert all(guard.accepts(loss, step, IDS) for step, loss in enumerate((0.1, 9.0, 0.1, 7.0)))
    assert not caplog.records


@pytest.fixture
def poisoned(
    recipe: Callable[..., Config], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Config]:
    """A recipe whose model computes NaN for a character in one training document, as some models do for rare inputs.

    The embedding is changed after the model was loaded, because a folder with such a weight is refused.
    """

    def load_spoilt(*arguments: Any) -> Any:
        loaded = load(*arguments)
        (token,) = loaded.tokenizer("~", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            loaded.model.get_input_embeddings().weight[token] = math.nan
        return loaded

    monkeypatch.setattr(job, "load", load_spoilt)
    lines = (corpus / "train.jsonl").read_text(encoding="utf-8")
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"id": "the-bad-one", "text": "~痨", "entities": []}])
    (tmp_path / "train.jsonl").write_text(lines + bad.read_text(encoding="utf-8"), encoding="utf-8")

    def make(**settings: Any) -> Config:
        data = {"train": str(tmp_path / "train.jsonl")}
        return recipe(data=data, train={"eval_before": False, **settings})

    return make


def test_a_broken_step_stops_the_run_and_names_its_documents(poisoned: Callable[..., Config]) -> None:
    with pytest.raises(RunError, match=r"the loss became nan at step \d+; documents: .*the-bad-one"):
        train(poisoned())


@pytest.mark.no_cover
@pytest.mark.parametrize("every", [1, 4])
def test_a_broken_step_is_left_out_and_the_run_ends_well(
    every: int, poisoned: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    result = train(poisoned(on_nan="skip", log_steps=every))  # 12 steps of 6 of 25 examples: each comes 2 or 3 times
    lines = of(result.folder, "train")
    left_out = [line for line in lines if "left_out" in line]
    assert 2 <= sum(line["left_out"] for line in left_out) <= 3
    assert all((line["loss"] is None) == (every == 1) for line in left_out)
    assert all(line["loss"] is not None and line["loss"] > 0 for line in lines if line not in left_out)
    assert "is skipped: the loss became nan; documents: " in caplog.text and "the-bad-one" in caplog.text
    adapter = load_file(result.folder / "adapter" / "adapter_model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in adapter.values())
    losses = [line["loss"] for line in lines if line["loss"] is not None]
    assert losses[-1] < losses[0] and result.after.scores.micro.f1 > 0


# --- disks --------------------------------------------------------------------------------------------------------


class Filler:
    """Fills a disk completely after one step, and frees it after another."""

    def __init__(self, disk: Path, full_after: int, free_after: int):
        self.path, self.full_after, self.free_after = disk / "filler", full_after, free_after

    def before_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make every step call this object first."""
        run = StepRunner.run

        def filling(runner: StepRunner, batch: Any, step: int, *rest: Any) -> Any:
            self(step - 1)
            return run(runner, batch, step, *rest)

        monkeypatch.setattr(StepRunner, "run", filling)

    def __call__(self, done: int) -> None:
        """Called before the step that follows `done` steps."""
        if done == self.full_after:
            with self.path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
                while True:
                    file.write(bytes(shutil.disk_usage(self.path.parent).free or 256))
        if done == self.free_after:
            self.path.unlink()


@pytest.mark.no_cover
def test_a_disk_that_is_full_for_a_while_costs_nothing(
    recipe: Callable[..., Config],
    small_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = {"max_steps": 24, "eval_steps": 4, "save_steps": 4}
    whole = train(recipe(run={"name": "whole"}, train=settings))
    disk = small_disk(256 << 20)
    Filler(disk, 6, 17).before_steps(monkeypatch)
    seen: dict[int, list[int]] = {}
    write = Checkpoints.write

    def written(self: Checkpoints, step: int, fill: Any) -> bool:
        done = write(self, step, fill)
        seen[step] = sorted(step_of(path) for path in self.folder.glob("checkpoint-*"))
        return done

    monkeypatch.setattr(Checkpoints, "write", written)
    result = train(recipe(run={"name": "full", "folder": str(disk)}, train=settings))
    assert {step: found for step, found in seen.items() if 4 < step < 20} == {key: [4] for key in (8, 9, 11, 12, 16)}
    assert 24 in seen[24]
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in of(result.folder, "train")] == [line[name] for line in of(whole.folder, "train")]
    assert [line["f1"] for line in of(result.folder, "dev")] == [line["f1"] for line in of(whole.folder, "dev")]
    assert result.after.scores == whole.after.scores
    assert "the checkpoint could not be written (No space left on device" in caplog.text
    assert "(No space left on device); it is kept in memory" in caplog.text
    assert "lines are kept in memory until there is room" in caplog.text and "no line was lost" in caplog.text
    assert "could be written again" in caplog.text
    assert load_run(result.folder).extract(["疮"])


def test_a_disk_that_stays_full_ends_the_run_with_a_way_out(
    recipe: Callable[..., Config], small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk(256 << 20)
    settings = {"max_steps": 12, "eval_steps": 4, "save_steps": 2, "eval_before": False}
    wanted = recipe(run={"folder": str(disk)}, train=settings)
    with monkeypatch.context() as patched:
        Filler(disk, 3, -1).before_steps(patched)
        with pytest.raises(RunError, match="the best adapter could not be written; free some space, and go on with"):
            train(wanted)
    (disk / "filler").unlink()
    result = train(resume_recipe(wanted.run_folder), resume=wanted.run_folder)
    assert [line["step"] for line in of(result.folder, "train")] == list(range(1, 13))


def test_a_read_only_place_is_refused_before_the_model_is_loaded(
    recipe: Callable[..., Config], small_disk: Callable[[int], Path], remount: Callable[[Path, str], None]
) -> None:
    disk = small_disk(256 << 20)
    settings = {"max_steps": 2, "eval_steps": 2, "eval_before": False}
    begun = train(recipe(run={"folder": str(disk)}, train=settings))
    (begun.folder / REPORT).unlink()
    remount(disk, "ro")
    with pytest.raises(RunError, match=r"disk0 cannot be written by this user; give another run\.folder"):
        train(recipe(run={"folder": str(disk), "name": "other"}, train=settings))
    with pytest.raises(RunError, match=r"tiny: cannot be written \(Read-only file system\); make it writable"):
        train(resume_recipe(begun.folder), resume=begun.folder)
    remount(disk, "rw")
    assert sorted(path.name for path in disk.iterdir()) == ["tiny"]


# --- the clock ----------------------------------------------------------------------------------------------------

BACKWARDS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t which, struct timespec *found) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(which, found);
    const char *flag = getenv("SET_BACK_ONCE_THIS_EXISTS");
    if (which == CLOCK_REALTIME && flag && !access(flag, F_OK)) found->tv_sec -= 7200;
    return result;
}
"""


@pytest.mark.no_cover
def test_a_clock_that_goes_backwards_changes_nothing_but_the_times(
    recipe: Callable[..., Config], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("setting one process's clock back needs a C compiler on Linux")
    (tmp_path / "clock.c").write_text(BACKWARDS)
    library = tmp_path / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "clock.c", "-ldl"], check=True)
    settings = {"max_steps": 12, "eval_steps": 4, "save_steps": 2}
    path, folder = recipe_file(track=QUIET, train=settings), tmp_path / "runs" / "tiny"
    flag = folder / "checkpoints" / "checkpoint-6"
    environment = {**os.environ, "LD_PRELOAD": str(library), "SET_BACK_ONCE_THIS_EXISTS": str(flag)}
    done = subprocess.run(
        [sys.executable, "-m", "spantune", "train", str(path)],
        env={**environment, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    times = [line["time"] for line in read_metrics(folder)]
    assert any(second < first - 3600 for first, second in itertools.pairwise(times)), "the clock did go back"
    same = train(recipe(run={"name": "same"}, train=settings))
    for split, key in (("train", "loss"), ("dev", "f1"), ("test", "f1")):
        assert [line[key] for line in of(folder, split)] == [line[key] for line in of(same.folder, split)]
    assert all(line["step_ms"] > 0 for line in of(folder, "train"))
    checkpoints = Checkpoints(folder / "checkpoints")
    assert checkpoints.newest() == folder / "checkpoints" / "checkpoint-12"


# --- two processes ------------------------------------------------------------------------------------------------


def test_of_two_processes_that_start_one_run_one_wins(
    recipe_file: Callable[..., Path], spawn: Callable[..., Command], tmp_path: Path
) -> None:
    path = recipe_file(track=QUIET, train={"max_steps": 4, "eval_steps": 4})
    both = [spawn("train", path) for _ in range(2)]
    codes = [one.end() for one in both]
    assert sorted(codes) == [0, 2], [one.err for one in both]
    loser = both[codes.index(2)]
    assert "runs/tiny" in loser.err and "give another run.name" in loser.err and "Traceback" not in loser.err
    folder = tmp_path / "runs" / "tiny"
    assert [line["step"] for line in of(folder, "train")] == [1, 2, 3, 4]
    assert [entry.name for entry in folder.parent.iterdir()] == ["tiny"]


def test_a_run_under_way_cannot_be_gone_on_with_until_its_process_is_gone(
    recipe_file: Callable[..., Path], spawn: Callable[..., Command], tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "tiny"
    running = spawn("train", recipe_file(track=QUIET, train={"max_steps": 5000, "eval_steps": 5000, "save_steps": 3}))
    running.wait_for(lambda: bool(list(folder.glob("checkpoints/checkpoint-*"))))
    before = len(read_metrics(folder))
    with pytest.raises(RunError, match=rf"tiny: process {running.process.pid} is working on this run; wait for it"):
        train(resume_recipe(folder), resume=folder)
    assert len(read_metrics(folder)) >= before
    running.signal(signal.SIGKILL)
    assert running.end() == -signal.SIGKILL
    with Claim(folder, resume=True):
        pass


def test_documents_of_a_batch_are_named_in_the_log_of_a_spike(caplog: pytest.LogCaptureFixture) -> None:
    guard = StepGuard("stop", [1.0] * 8)
    with caplog.at_level(logging.WARNING):
        guard.accepts(4.0, 9, [document.id for document in read("bundled:clinical-zh-test").documents[:2]])
    assert "documents: clinical-zh-test-" in caplog.text


def test_a_gradient_of_the_head_alone_that_is_not_finite_changes_no_weight() -> None:
    task = TaskSpec(labels=(Label(code="dis"),), instruction="Find.")
    settings = config.Spans(longest=32, size=8)
    tokenizer = byte_tokenizer()
    model, _ = attach(tiny_model(vocabulary=280), config.Lora(rank=2, alpha=4))
    attach_head(model, make_head(model, tokenizer, task, settings))
    head = require_head(model)
    head.bias.register_hook(lambda gradient: gradient * math.nan)
    encoder = SpanEncoder(tokenizer, task, settings)
    train = config.Train(learning_rate=1e-3)
    collator = Collator(train, encoder.prefix, 256, spans=settings)
    runner = StepRunner(model, collator, train, StepGuard("skip"), head_rate=1e-3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    runner.run(collator([encoder.example(Document("a", "a fever", (Entity(2, 7, "dis"),)))]), 1, 1.0)
    assert runner.guard.taken() == (1, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
