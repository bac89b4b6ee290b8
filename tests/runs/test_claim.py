"""A claim of a run folder ends with its process, and the lock file says how the process ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spantune.core import Label, RunError, TaskSpec, parse_config
from spantune.runs import Claim, RunFolder

HOLDER = (
    "import sys, time; from pathlib import Path; from spantune.runs import Claim\n"
    "with Claim(Path(sys.argv[1]), resume=True): print('held', flush=True); time.sleep(60)\n"
)


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert run.is_running
        with (
            pytest.raises(RunError, match=rf"process {process.pid} is working on this run; wait for it, stop it"),
            Claim(tmp_path, resume=True),
        ):
            pytest.fail("claimed twice")
        assert run.lock_file.read_text().strip() == str(process.pid), "who was refused changed nothing"
        process.send_signal(signal.SIGKILL)
    assert not run.is_running and run.was_killed
    with Claim(tmp_path, resume=True):
        assert run.is_running
    assert not run.is_running and not run.was_killed


def test_a_lock_goes_with_its_folder(tmp_path: Path) -> None:
    recipe = parse_config({"model": {"source": "x"}, "task": {"labels": ["dis"]}, "data": {"train": "t.jsonl"}})
    run = RunFolder(tmp_path / "after")
    with Claim(run.path) as claim:
        claim.create(recipe, TaskSpec(labels=(Label(code="dis"),), instruction="Find."), {})
        assert run.is_running and run.lock_file.read_text() == f"{os.getpid()}\n"
    assert not run.is_running and not run.was_killed


def test_looking_makes_no_file_and_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert not run.is_running and not run.was_killed and list(tmp_path.iterdir()) == []
    run.lock_file.mkdir()
    with (
        pytest.raises(RunError, match=r": cannot be written \(Is a directory\); make it writable"),
        Claim(tmp_path, resume=True),
    ):
        pytest.fail("claimed")
