"""Records are on the disk line by line, and a tracker that fails takes no record with it."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.tracked_run import GOLD, LABELS, begin, measure, recipe
from spantune.core import ConfigError, Document
from spantune.data import formats
from spantune.runs import RunFolder, Trackers, hints, open_trackers, read_metrics, require_trackers, rewind
from spantune.runs.journal import JsonlTracker
from spantune.runs.trackers import dashboards
from spantune.runs.trackers.dashboards import Worker, documents, history, run_info
from spantune.runs.trackers.interface import Call, Chart, PredictionRow


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


class Board:
    """A tracker that keeps its calls."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        self.told.append(("metrics", step, split, dict(values)))

    def predictions(self, step: int, name: str, rows: Sequence[PredictionRow]) -> None:
        self.told.append(("predictions", step, name, list(rows)))

    def chart(self, step: int, chart: Chart) -> None:
        self.told.append(("chart", step, chart.name))

    def attach(self, step: int, path: Path) -> None:
        self.told.append(("attach", step, path.name))

    def finish(self, state: str) -> None:
        self.told.append(("finish", state))

    def open(self) -> None: ...

    def kill(self) -> None:
        self.told.append(("kill",))


def with_board(folder: Path, **track: Any) -> tuple[Trackers, Board]:
    board = Board()
    info = run_info(recipe(folder, **track), folder, {"dev": GOLD}, LABELS)
    return Trackers(info, JsonlTracker(folder), [Worker("the board", board)]), board


def test_metrics_are_on_disk_at_once_with_step_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1234.56789)
    tracker = JsonlTracker(tmp_path)
    tracker.metrics(3, {"loss": 1.5, "learning_rate": 1e-4})
    (line,) = lines(tmp_path)  # the file is not closed yet
    assert line == {"time": 1234.568, "step": 3, "split": "train", "loss": 1.5, "learning_rate": 1e-4}
    tracker.finish("success")


def test_what_is_not_finite_is_null_since_json_has_no_nan(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    tracker.metrics(1, {"loss": math.nan, "grad_norm": math.inf, "epoch": 0.5}, "dev")
    tracker.finish("success")
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    (line,) = lines(tmp_path)
    assert (line["loss"], line["grad_norm"], line["epoch"], line["split"]) == (None, None, 0.5, "dev")


def test_a_new_tracker_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    for step in (1, 2):
        tracker = JsonlTracker(tmp_path)
        tracker.metrics(step, {})
        tracker.finish("aborted")
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_dashboard_is_told_what_the_file_holds_and_what_was_predicted(tmp_path: Path) -> None:
    trackers, board = with_board(tmp_path, predictions=1)
    trackers.metrics(1, {"loss": 1.5, "grad_norm": math.nan})
    measure(trackers, tmp_path, 5)
    trackers.attach(5, tmp_path / "report.html")
    trackers.finish("success")
    measured = board.told[1]
    assert board.told[0] == ("metrics", 1, "train", {"loss": 1.5})  # NaN is left out
    assert measured[:3] == ("metrics", 5, "dev") and measured[3]["f1_low/病"] == 0.0
    (shown,) = [told for told in board.told if told[0] == "predictions"]
    assert shown[1:3] == (5, "Prediction") and [row.id for row in shown[3]] == [
        "d1"
    ]  # one document, as the recipe says
    assert board.told[-4:] == [
        ("chart", 5, "dev F1 by type"),
        ("chart", 5, "dev confusion"),
        ("attach", 5, "report.html"),
        ("finish", "success"),
    ]


def test_the_documents_of_another_split_have_a_panel_of_their_own(tmp_path: Path) -> None:
    board = Board()
    info = run_info(recipe(tmp_path), tmp_path, {}, LABELS)
    documents(info, (3, "test"), {}, GOLD, GOLD)(board)
    assert [told[:3] for told in board.told] == [
        ("predictions", 3, "Prediction (test)"),
        ("chart", 3, "test confusion"),
    ]


def test_a_panel_of_no_documents_is_not_made(tmp_path: Path) -> None:
    board = Board()
    documents(run_info(recipe(tmp_path, predictions=0), tmp_path, {}, LABELS), (3, "dev"), {}, GOLD, GOLD)(board)
    assert [told[0] for told in board.told] == ["chart"]


def test_a_resumed_run_tells_its_history_once_again(tmp_path: Path) -> None:
    trackers, first = with_board(tmp_path)
    trackers.metrics(1, {"loss": 1.5, "grad_norm": math.inf})
    measure(trackers, tmp_path, 5)
    trackers.finish("aborted")
    again = Board()
    for call in history(run_info(recipe(tmp_path), tmp_path, {"dev": GOLD}, LABELS)):
        call(again)
    assert again.told == first.told[:-1] and len(again.told) == 5


def test_history_goes_on_without_predictions_that_are_torn_or_of_other_documents(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trackers, _ = with_board(tmp_path)
    for step in (5, 10, 15):
        measure(trackers, tmp_path, step)
    trackers.finish("aborted")
    torn = tmp_path / "predictions" / "dev-5.jsonl"
    torn.write_bytes(torn.read_bytes()[:30])
    formats.write(tmp_path / "predictions" / "dev-10.jsonl", [Document("d1", "另一句", ())])

    def told(gold: list[Document]) -> list[Call]:
        return list(history(run_info(recipe(tmp_path), tmp_path, {"dev": gold}, LABELS)))

    assert len(told(GOLD)) == 4  # the figures three times, the documents once
    assert "dev-5.jsonl is not shown again" in caplog.text
    assert "dev-10.jsonl is not shown again: the dev documents have changed since" in caplog.text
    assert len(told([])) == 3


def test_trackers_are_told_recipe_and_environment(tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text('{"commit": "abc"}')
    info = run_info(recipe(tmp_path, experiment="医疗"), tmp_path, {}, ())
    assert info.name == "医疗" and info.config["environment"] == {"commit": "abc"}
    assert info.config["lora"]["rank"] == 16 and info.config["track"]["experiment"] == "医疗"


class Broken(Board):
    """A tracker that fails, as an SDK does without its server."""

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        super().metrics(step, values, split)
        raise ConnectionError("the dashboard is gone")


def test_a_tracker_that_fails_is_reported_once_and_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken, sound = Broken(), Board()
    info = run_info(recipe(tmp_path), tmp_path, {}, ())
    workers = [Worker("this one", broken), Worker("that one", sound)]
    trackers = Trackers(info, JsonlTracker(tmp_path), workers)
    with caplog.at_level(logging.ERROR):
        for step in (1, 2):
            trackers.metrics(step, {"loss": 1 / step})
            time.sleep(0.05)
        trackers.finish("success")
    assert [line["loss"] for line in lines(tmp_path)] == [1.0, 0.5]
    assert [told[0] for told in sound.told] == ["metrics", "metrics", "finish"]
    assert [told[0] for told in broken.told] == ["metrics", "kill"]
    said = "this one failed and is dropped (the dashboard is gone); the run goes on"
    assert [record.message for record in caplog.records] == [said]


def test_a_tracker_that_hangs_costs_a_bounded_time_at_the_end_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboards, "FINISH_SECONDS", 0.2)
    go_on = threading.Event()

    class Slow(Board):
        def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
            self.told.append(("went on", go_on.wait(60)))

    slow = Slow()
    trackers = Trackers(
        run_info(recipe(tmp_path), tmp_path, {}, ()), JsonlTracker(tmp_path), [Worker("the slow one", slow)]
    )
    for step in range(100):
        trackers.metrics(step, {"loss": 1.0})
    assert len(lines(tmp_path)) == 100 and slow.told == [], "all steps are recorded while the first call hangs"
    trackers.finish("success")
    assert slow.told == [("kill",)], "the run has ended while the first call hangs"
    go_on.set()
    assert "the slow one has not taken everything in 0 s and is left behind" in caplog.text


def test_trackers_that_hang_share_the_time_that_they_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboards, "FINISH_SECONDS", 0.4)

    go_on = threading.Event()

    class Stuck(Board):
        def finish(self, state: str) -> None:
            go_on.wait(60)

    class Noting(Worker):
        def finished(self, seconds: float) -> bool:
            self.seconds = seconds
            return super().finished(seconds)

    sound, info = Board(), run_info(recipe(tmp_path), tmp_path, {}, ())
    workers = [Noting("one", Stuck()), Noting("two", Stuck()), Noting("three", sound)]
    Trackers(info, JsonlTracker(tmp_path), workers).finish("success")
    first, *others = (worker.seconds for worker in workers)
    assert first <= 0.4 and others == pytest.approx([0.0, 0.0], abs=0.05) and sound.told == [("finish", "success")]
    go_on.set()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_file_that_cannot_be_written_is_said_once_and_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    board, info = Board(), run_info(recipe(tmp_path), tmp_path, {}, ())
    RunFolder(tmp_path).metrics_file.symlink_to("/dev/full")
    trackers = Trackers(info, JsonlTracker(tmp_path), [Worker("the board", board)])
    for step in (1, 2):
        trackers.metrics(step, {"loss": 1.0})
    trackers.finish("success")
    assert caplog.text.count("No space left") == 1 and "lines are kept in memory" in caplog.text
    assert "the last 2 lines could not be written and are lost" in caplog.text
    assert [told[0] for told in board.told] == ["metrics", "metrics", "finish"]


def test_a_tracker_that_is_not_installed_is_refused_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spantune.core.extras.find_spec", lambda name: None if name == "alembic" else object())
    with pytest.raises(
        ConfigError, match=r"track\.also=mlflow needs alembic, which is not .*pip install .*\[mlflow\]'"
    ):
        require_trackers(recipe(tmp_path, swanlab="off", also="mlflow").track)


def test_several_at_once(tmp_path: Path) -> None:
    for name in ("tensorboard", "wandb", "mlflow"):
        pytest.importorskip(name)
    folder = tmp_path / "run"
    trackers = begin(folder, also=["tensorboard", "wandb", "mlflow"])
    trackers.metrics(1, {"loss": 1.5})
    measure(trackers, folder, 1)
    trackers.finish("success")
    assert [hint.partition(":")[0] for hint in sorted(hints(folder))] == ["MLflow", "TensorBoard", "W&B", "dashboard"]
    assert {path.name for path in folder.iterdir()} >= {"tensorboard", "wandb", "mlflow", "metrics.jsonl"}


def test_opening_waits_for_a_bounded_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = threading.Event()

    class Late(Board):
        def open(self) -> None:
            self.told.append(("open", go_on.wait(60)))

    board = Late()
    monkeypatch.setattr(dashboards, "OPEN_SECONDS", 0.1)
    monkeypatch.setattr(dashboards, "_opening", lambda info: {"swanlab": board})
    trackers = open_trackers(recipe(tmp_path), tmp_path)
    assert board.told == [], "the run goes on before the tracker has opened"
    assert "SwanLab has not opened in 0 s; the run goes on, and it gets the rest" in caplog.text
    trackers.metrics(1, {"loss": 1.0})
    go_on.set()
    trackers.finish("success")
    assert [told[0] for told in board.told] == ["open", "metrics", "finish"]  # no record is lost


def test_rewinding_drops_what_a_resumed_run_records_again(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    for step in range(5):
        tracker.metrics(step, {"loss": float(step)})
    tracker.finish("aborted")
    rewind(tmp_path, 2)
    assert [line["loss"] for line in lines(tmp_path)] == [0.0, 1.0, 2.0]
    assert not list(tmp_path.glob("*.tmp"))
    rewind(tmp_path, -1)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_torn_last_line_is_left_out_and_written_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo', encoding="utf-8")
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
    assert "metrics.jsonl:2: a torn line is left out" in caplog.text
    rewind(tmp_path, 9)
    assert lines(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_a_run_without_metrics_has_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


# --- the queue of one tracker ------------------------------------------------------------------------------------


class Keeping:
    """A tracker that keeps its calls and their threads."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.told: list[Any] = []
        self.threads: set[str] = set()
        self.failure = failure

    def open(self) -> None:
        if self.failure:
            raise self.failure

    def add(self, value: Any) -> None:
        self.told.append(value)
        self.threads.add(threading.current_thread().name)

    def finish(self, state: str) -> None:
        self.add(state)

    def kill(self) -> None:
        self.told.append("killed")


def worker(keeping: Keeping) -> Worker:
    return Worker("x", keeping)  # type: ignore[arg-type]


def test_calls_come_in_order_in_one_thread_of_its_own() -> None:
    keeping = Keeping()
    working = worker(keeping)
    assert working.settled(5)
    for number in range(500):
        working.put(lambda tracker, number=number: tracker.add(number))  # type: ignore[misc]
    working.finish("success")
    assert working.finished(5) and not working.dropped
    assert keeping.told == [*range(500), "success"] and keeping.threads == {"track x"}


def test_one_that_cannot_open_takes_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    keeping = Keeping(RuntimeError("no such host"))
    working = worker(keeping)
    assert working.settled(5)
    working.put(lambda tracker: pytest.fail("called"))
    working.finish("success")
    assert not working.finished(5) and working.dropped and keeping.told == ["killed"]
    assert [record.message for record in caplog.records] == ["x could not start (no such host); the run goes on"]


def test_one_that_is_too_far_behind_is_dropped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dashboards, "QUEUE_SIZE", 3)
    go_on, keeping = threading.Event(), Keeping()
    working = worker(keeping)
    for _ in range(10):
        working.put(lambda tracker: go_on.wait(5) and None)
    assert caplog.text.count("x is 3 calls behind and is dropped; the run goes on") == 1
    working.finish("success")
    assert not working.finished(0.1) and keeping.told == ["killed"]
    go_on.set()
