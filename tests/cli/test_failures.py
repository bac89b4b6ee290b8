"""A bug exits with code 70 and a log file, a system error with code 2 and one line; neither shows a traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.command import fresh, one_line_error
from spantune.core import crash

Command = Callable[..., Any]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's temporary folders allow only their owner."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(autouse=True)
def _own_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(crash, "_run_folder", None)


def test_a_bug_is_70_and_its_traceback_in_a_file(
    command: Command, corpus_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("http://alice:geheim@host \x1b[31m")

    monkeypatch.setattr("spantune.data.statistics", broken)
    outcome = command("data", "inspect", corpus_file)
    assert outcome.code == 70 and outcome.out == "" and outcome.err.count("\n") == 1, outcome.err
    assert "bug in spantune (KeyError" in outcome.err and "\x1b" not in outcome.err and "geheim" not in outcome.err
    log = Path(outcome.err.partition("the traceback is in ")[2].partition(";")[0])
    text = log.read_text(encoding="utf-8")
    assert "Traceback" in text and "in broken" in text and "geheim" not in text and "\x1b" not in text


def test_the_log_of_a_bug_is_in_the_run_folder_where_that_is_known(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AssertionError

    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setattr("spantune.report.report_run", broken)
    outcome = command("report", run)
    assert outcome.code == 70 and str(run / "crash.log") in outcome.err
    assert "AssertionError" in (run / "crash.log").read_text()


def test_wrong_use_is_filtered_too(command: Command) -> None:
    outcome = command("data", "inspect", "--no\x1b[31m", "http://a:geheim@h")
    assert outcome.code == 2 and outcome.err.startswith("error: no such option: --no")
    assert "\x1b" not in outcome.err and "geheim" not in outcome.err
    assert command("data", "inspect", "a", "b\x1b[31m").code == 2


@pytest.mark.parametrize(
    "name", ["inspect", "convert", "check", "split", "evaluate", "extract", "plan", "train", "resume"]
)
def test_a_name_that_is_too_long_is_one_line(command: Command, corpus_file: Path, tmp_path: Path, name: str) -> None:
    long = tmp_path / ("x" * 300)
    arguments = {
        "inspect": ["data", "inspect", long],
        "convert": ["data", "convert", corpus_file, long, "--to", "native"],
        "check": ["data", "check", corpus_file, "--fix", long],
        "split": ["data", "split", corpus_file, "--to", long, "--shares", "0.5,0.5"],
        "evaluate": ["evaluate", "--gold", corpus_file, "--predicted", corpus_file, "--report", long],
        "extract": ["extract", long, corpus_file],
        "plan": ["plan", long],
        "train": ["train", long],
        "resume": ["train", "--resume", long],
    }[name]
    outcome = command(*arguments)
    one_line_error(outcome, "xxx")


@pytest.mark.no_cover
@pytest.mark.skipif(os.name == "nt" or os.getuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv")
def test_a_folder_without_permission_is_one_line(corpus_file: Path, open_folder: Path) -> None:
    locked, readable = open_folder / "locked", Path(shutil.copy(corpus_file, open_folder / "in.jsonl"))
    locked.mkdir()
    shutil.copy(corpus_file, locked / "in.jsonl")
    locked.chmod(0)
    readable.chmod(0o644)
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-m", "spantune"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # so without coverage
    environment = {**own, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
    inside, new = str(locked / "in.jsonl"), str(locked / "new")
    for arguments in (
        ["data", "inspect", inside],
        ["data", "convert", inside, str(open_folder / "out"), "--to", "native"],
        ["data", "convert", str(readable), new, "--to", "native"],
        ["data", "inspect", str(readable), "--html", new],
        ["evaluate", "--gold", inside, "--predicted", inside],
        ["train", "--resume", str(locked)],
        ["extract", str(locked), inside],
        ["report", str(locked / "run")],
    ):
        done = subprocess.run([*user, *arguments], capture_output=True, text=True, check=False, env=environment)
        if "No module named" in done.stderr or "Permission denied: '/" in done.stderr.partition("Traceback")[2]:
            pytest.skip("another user cannot read this installation")
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ") and "locked" in line, done.stderr


def test_a_closed_stdout_is_no_bug(corpus_file: Path) -> None:
    if os.name == "nt":
        pytest.skip("no /dev/full here")
    done = subprocess.run(
        f"{sys.executable} -m spantune data inspect {corpus_file} --json | true",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "bug" not in done.stderr and "Traceback" not in done.stderr
    full = subprocess.run(
        f"{sys.executable} -m spantune data inspect {corpus_file} --json > /dev/full",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in full.stderr and full.returncode != 70
    assert fresh("--version").returncode == 0
