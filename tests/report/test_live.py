"""The growing report: values from a record that grows, restarts or is damaged; time left; escaped markup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.growing_run import begun, dev, record, step
from spantune.core import RunError, file_lock
from spantune.report.live import Watch, WatchedRun, span


def test_a_record_is_read_as_it_grows_and_anew_after_a_resume(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    watched = WatchedRun(folder)
    assert watched.progress().loss == () and watched.progress().state == "stopped"
    record(folder, step(1), step(2), '{"step": 3, "spl')
    assert watched.progress().loss == ((1, 1.0), (2, 0.5))
    record(folder, 'it": "train", "loss": null}\n', "torn\n", dev(3, 0.5), dev(4, 0.25))
    progress = watched.progress()
    assert [number for number, _ in progress.loss] == [1, 2, 3] and progress.best == (3, 0.5, 0.25, 0.9)
    assert progress.as_dict()["loss"] is None and progress.as_dict()["f1"] == 0.5
    (folder / "metrics.jsonl").rename(folder / "old")  # a resume writes a new file
    record(folder, step(1))
    assert watched.progress().loss == ((1, 1.0),) and watched.progress().best is None


@pytest.mark.parametrize(
    ("train", "steps", "left"),
    [
        ({"epochs": 0.8}, 8, 3.0 + 4.0),  # left: 4 steps of 0.5 s, an evaluation of 2 s, and the last one of 3 s
        ({"max_steps": 5}, 5, 1.0 + 3.0),
        ({"max_minutes": 0.05, "epochs": 100}, 6, 2.0 + 3.0),  # 2 of 3 seconds have passed
    ],
)
def test_the_time_left_follows_what_ends_the_run(tmp_path: Path, train: Any, steps: int, left: float) -> None:
    folder = begun(tmp_path / "run", **train)
    record(folder, {"step": 0, "split": "test", "f1": 0.0, "evaluation_seconds": 3.0})
    record(folder, *map(step, range(1, 5)), dev(4, 0.5))
    assert WatchedRun(folder).progress().seconds_left is None  # no training is running
    with file_lock(folder / "run.lock"):
        progress = WatchedRun(folder).progress()
    assert progress.state == "running" and (progress.step, progress.steps) == (4, steps)
    assert progress.seconds == 7.0 and progress.seconds_left == pytest.approx(left)


def test_a_run_shows_its_curves_lines_and_how_to_go_on_with_all_text_escaped(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    record(folder, *map(step, range(1, 5)), dev(4, 0.5))
    (folder / "run.log").write_text("".join(f"line {number} <script>alert(1)</script>\n" for number in range(2000)))
    (folder / "run.lock").write_text("4242\n")  # as after a killed process
    state = Watch(folder).state()
    body = str(state["body"])
    assert state["title"] == "killed · run" and state["report"] is None
    assert body.count("<svg") == 3 and "<script" not in body and "&lt;script&gt;" in body and "&lt;t&gt;.jsonl" in body
    assert "line 1988 " in body and "line 1987 " not in body and f"spantune train --resume {folder}" in body
    assert ">50.0<" in body and "25.0–90.0" in body
    (folder / "report.html").write_text("<p>")
    assert Watch(folder).state()["report"] == "/report/run"


def test_a_result_on_the_documents_that_chose_the_adapter_says_so(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    record(folder, step(1), dev(1, 0.5), {"step": 1, "split": "test", "f1": 0.75})
    progress = WatchedRun(folder).progress()
    assert (progress.as_dict()["f1"], progress.as_dict()["f1_on"]) == (0.75, "dev")
    assert "the documents that chose the adapter" in str(Watch(folder).state()["body"])


def test_a_folder_shows_all_runs_and_those_that_come_and_what_is_damaged(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    assert "There is no run" in str(watch.state()["body"])
    for name in ("b", "a"):
        record(begun(tmp_path / name), step(1), step(2), dev(2, 0.5))
    (begun(tmp_path / "broken") / "config.yaml").write_text("[")
    state = watch.state()
    runs: Any = state["runs"]
    assert [(run["name"], run["state"]) for run in runs] == [("a", "stopped"), ("b", "stopped"), ("broken", "damaged")]
    body = str(state["body"])
    assert body.count("<svg") == 2 and body.count('<li class="color-1"><i></i>b</li>') == 2
    assert watch.state() == state and watch.state("a")["title"] == "stopped · a"
    assert watch.folder("../a") is None and watch.folder("c") is None


def test_an_absent_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder; a run has one when its checks have passed"):
        Watch(tmp_path / "absent")


def test_spans() -> None:
    assert [span(seconds) for seconds in (0, 59.9, 125, 3723)] == ["0:00", "0:59", "2:05", "1:02:03"]
