"""A lock that the system lets go of with its process, and a file that says how the process ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spantune.core import RunError
from spantune.runs.folder import LOCK_FILE, hold, is_held, let_go, was_let_go

HOLDER = (
    "import sys, time; from pathlib import Path; from spantune.runs.folder import hold\n"
    "lock = hold(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)\n"
)


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert is_held(tmp_path)
        with pytest.raises(RunError, match=rf"process {process.pid} is working on this run; wait for it, stop it"):
            hold(tmp_path)
        assert (tmp_path / LOCK_FILE).read_text().strip() == str(process.pid), "who was refused changed nothing"
        process.send_signal(signal.SIGKILL)
    assert not is_held(tmp_path) and not was_let_go(tmp_path)
    let_go(hold(tmp_path), tmp_path)
    assert not is_held(tmp_path) and was_let_go(tmp_path)


def test_a_lock_goes_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    lock = hold(tmp_path / "before", tmp_path / "after")
    (tmp_path / "before").rename(tmp_path / "after")
    assert is_held(tmp_path / "after")
    assert (tmp_path / "after" / LOCK_FILE).read_text() == f"{os.getpid()}\n"
    let_go(lock, tmp_path / "after")
    assert not is_held(tmp_path / "after") and was_let_go(tmp_path / "after")


def test_looking_makes_no_file_and_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    assert not is_held(tmp_path) and was_let_go(tmp_path) and list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_FILE).mkdir()
    with pytest.raises(RunError, match=r"run: cannot be written \(Is a directory\); make it writable"):
        hold(tmp_path / "run")
