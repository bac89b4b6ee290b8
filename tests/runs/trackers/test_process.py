"""A tracker in its own process: calls arrive in order, and each side notices how the other has ended."""

from __future__ import annotations

import os
import pickle
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

import spantune
from helpers import tracked_backends
from spantune.core import RunError
from spantune.core.config import Track
from spantune.runs.journal import logging_to
from spantune.runs.trackers.charts import Bar, F1Chart
from spantune.runs.trackers.interface import PredictionRow, RunInfo
from spantune.runs.trackers.process import TrackerProcess, call_apart


@pytest.fixture(autouse=True)
def _backends_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)


def opened(folder: Path, backend: Any = tracked_backends.Noting, **environment: str) -> TrackerProcess:
    given = {**os.environ, **environment}
    tracker = TrackerProcess("noting", backend, RunInfo(folder, "run", Track(), {}), given)
    tracker.open()
    return tracker


def told(folder: Path) -> list[str]:
    return (folder / "told").read_text(encoding="utf-8").splitlines()


PROCESS = "spantune.runs.trackers.process"
OTHERS: set[int] = set()
"""Processes that tests of other files have left in this pytest worker."""


@pytest.fixture(autouse=True)
def others() -> None:
    OTHERS.clear()
    OTHERS.update(child.pid for child in psutil.Process().children())


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.pid not in OTHERS]


def test_calls_arrive_in_order_and_what_the_sdk_prints_is_not_on_stdout(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "spantune")
    tracker = opened(tmp_path, NOTED="by the environment")
    for step in range(300):
        tracker.metrics(step, {"loss": 1.5}, "dev")
    tracker.predictions(300, "Prediction", [PredictionRow("d1", "患者", 0, 0, 0, "none", "none")])
    tracker.chart(300, F1Chart("F1", (Bar("病", 0.5),)))
    tracker.attach(300, tmp_path / "report.html")
    tracker.finish("success")
    lines = told(tmp_path)
    assert lines[0] == "opened by the environment" and lines[1:301] == [
        f"metrics {step} dev {{'loss': 1.5}}" for step in range(300)
    ]
    assert lines[301:] == [
        "predictions 300 Prediction ['0 right, 0 missed, 0 spurious ▸ 患者\\n\\n▸ gold: none\\n\\n▸ predicted: none']",
        "chart 300 F1 (640, 52)",
        "attach 300 report.html",
        "finish success",
    ]
    out, err = capfd.readouterr()
    assert out == err == ""
    said = {(record.name, record.levelname, record.message) for record in caplog.records}
    assert said == {
        ("spantune.noting", "WARNING", "said to the log: 看\nand more"),
        (PROCESS, "INFO", "printed by the SDK"),
        (PROCESS, "WARNING", "OSError: printed by the SDK too"),
    }
    assert not children()


def test_one_that_cannot_open_says_why(tmp_path: Path) -> None:
    tracker = TrackerProcess("noting", tracked_backends.Unwilling, RunInfo(tmp_path, "run", Track(), {}))
    with pytest.raises(RunError, match=r"^not today$"):
        tracker.open()
    tracker.kill()
    assert not children()


def test_one_that_fails_is_closed_there_and_says_why_at_the_next_call(tmp_path: Path) -> None:
    tracker = opened(tmp_path, tracked_backends.Failing)
    tracker.metrics(1, {})
    with pytest.raises(RunError, match=r"^ConnectionError: the dashboard is gone$"):
        for _ in range(1000):
            tracker.metrics(2, {})
            time.sleep(0.01)
    assert told(tmp_path)[1:] == ["metrics 1 train {}", "finish crashed"]
    tracker.kill()


def test_one_that_fails_in_its_last_call_says_why_when_it_is_finished(tmp_path: Path) -> None:
    tracker = opened(tmp_path, tracked_backends.Failing)
    tracker.metrics(2, {})
    with pytest.raises(RunError, match=r"^ConnectionError: the dashboard is gone$"):
        tracker.finish("success")
    tracker.kill()


def test_one_that_is_killed_is_known_to_be(tmp_path: Path) -> None:
    tracker = opened(tmp_path)
    (process,) = children()
    process.kill()
    with pytest.raises(RunError, match=r"^its process has ended with code -9$"):
        tracker.finish("success")
    tracker.kill()


def test_one_that_does_not_finish_can_be_left(tmp_path: Path) -> None:
    tracker = opened(tmp_path, tracked_backends.Stuck)
    (process,) = children()
    tracker.kill()
    assert not process.is_running() and told(tmp_path) == ["opened "]


def test_the_end_of_the_run_closes_the_record_as_aborted(tmp_path: Path) -> None:
    tracker = opened(tmp_path)
    tracker.metrics(1, {})
    (process,) = children()
    pipe = tracker._process._popen.stdin
    assert pipe
    pipe.write(pickle.dumps(("metrics", (2, {}, "train")))[:-4])  # as after a kill in the middle of a message
    pipe.close()
    process.wait(10)
    assert told(tmp_path)[1:] == ["metrics 1 train {}", "finish aborted"]
    tracker.kill()


def test_a_record_has_one_process_at_a_time(tmp_path: Path) -> None:
    first = opened(tmp_path)
    second = TrackerProcess("noting", tracked_backends.Noting, RunInfo(tmp_path, "run", Track(), {}))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(second.open)
        time.sleep(1)
        assert not waiting.done()
        first.finish("aborted")
        waiting.result(30)
    second.finish("success")
    assert [line for line in told(tmp_path) if line != "opened "] == ["finish aborted", "finish success"]


def test_a_process_that_cannot_be_started_is_an_error_of_its_opening_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    tracker = TrackerProcess("noting", tracked_backends.Noting, RunInfo(tmp_path, "run", Track(), {}))
    with pytest.raises(OSError, match="No such file"):
        tracker.open()
    tracker.kill()


def test_a_function_apart(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    call_apart(60, tracked_backends.noted, tmp_path / "x", 7)
    assert (tmp_path / "x").read_text().startswith("7 ")
    assert capfd.readouterr().out == ""
    with pytest.raises(RunError, match=r"^will not$"):
        call_apart(60, tracked_backends.refusing)
    with pytest.raises(TimeoutError):
        call_apart(1, tracked_backends.slow)
    assert not children()


def test_the_standard_library_comes_before_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "types.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    helpers = str(Path(__file__).parents[2])
    call_apart(60, tracked_backends.paths, tmp_path / "paths", environment={**os.environ, "PYTHONPATH": helpers})
    types, own, os_file, *paths = (tmp_path / "paths").read_text(encoding="utf-8").splitlines()
    library = str(Path(os_file).parent)
    assert Path(types).parent == Path(library) and Path(own) == Path(spantune.__file__)
    source = str(Path(spantune.__file__).parents[1])
    assert paths.index(library) < paths.index(source) and "" not in paths and str(tmp_path) not in paths


def test_no_credential_comes_out_of_the_process(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKER_URI", "http://alice:geheim@127.0.0.1:5999")
    tracker = TrackerProcess("leaking", tracked_backends.Leaking, RunInfo(tmp_path, "run", Track(), {}))
    with logging_to(tmp_path), pytest.raises(RunError, match=r"ConnectionError: http://\*\*\*@127") as error:
        tracker.open()
    tracker.kill()
    out, err = capfd.readouterr()
    for said in ("View run at http://***@", "retrying http://***@", "from C: http://***@", "connected to http://***@"):
        assert said in (tmp_path / "run.log").read_text(encoding="utf-8")
    assert "connected to" in err and "View run" not in err
    texts = [out, err, str(error.value), *(path.read_text() for path in tmp_path.rglob("*") if path.is_file())]
    assert not any("geheim" in text or "\x1b" in text for text in texts)
    assert "http://***@127" in (tmp_path / "trackers" / "leaking.json").read_text()
