"""What is recorded is on disk, line by line, and a tracker that fails takes nothing with it."""

from __future__ import annotations

import json
import logging
import math
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from spantune import tracking
from spantune.config import Config, parse_config
from spantune.errors import ConfigError
from spantune.tracking import JsonlTracker, Trackers, open_trackers, read_metrics, rewind


def recipe(**track: Any) -> Config:
    return parse_config(
        {
            "run": {"name": "exp1"},
            "model": {"source": "x"},
            "task": {"labels": ["病"]},
            "data": {"train": "t.jsonl"},
            "track": track,
        }
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def swanlab_rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(folder / "swanlab" / "runs.swanlab")) as store:
        return store.execute(query).fetchall()


def swanlab_series(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """The (step, value) pairs of every series of the one experiment, as its local dashboard reads them."""
    (run,) = (folder / "swanlab").glob("run-*")
    series = {}
    for name, directory in swanlab_rows(folder, "select name, folder from tag"):
        text = "".join(path.read_text(encoding="utf-8") for path in sorted((run / "logs" / directory).glob("*.log")))
        series[name] = [(record["index"], record["data"]) for record in map(json.loads, text.splitlines())]
    return series


def test_metrics_are_on_disk_at_once_with_step_and_time(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    before = time.time()
    tracker.metrics(3, {"loss": 1.5, "learning_rate": 1e-4})
    (line,) = lines(tmp_path)  # not closed yet
    assert before - 1 < line.pop("time") < time.time() + 1
    assert line == {"step": 3, "split": "train", "loss": 1.5, "learning_rate": 1e-4}
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


def test_swanlab_keeps_config_scalars_and_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SWANLAB_PROJECT", "患者")  # what transformers documents; swanlab.init crashes on it
    trackers = open_trackers(recipe(project="my-project"), tmp_path)
    trackers.metrics(1, {"loss": 1.5, "grad_norm": math.nan})
    trackers.metrics(2, {"loss": 1.25})
    trackers.metrics(2, {"f1": 0.5}, "dev")
    trackers.texts(2, "Prediction", ["患者 <b>发热</b>", "second"])
    trackers.texts(2, "Nothing", [])
    trackers.finish("success")
    assert swanlab_series(tmp_path) == {
        "train/loss": [(1, 1.5), (2, 1.25)],  # no train/grad_norm: one NaN breaks the dashboard's summary
        "dev/f1": [(2, 0.5)],
        "Prediction": [(2, ["患者 <b>发热</b>", "second"])],
    }
    assert swanlab_rows(tmp_path, "select name, status from experiment") == [("exp1", 1)]  # 1: finished
    assert swanlab_rows(tmp_path, "select name from project") == [("my-project",)]
    (kept,) = (tmp_path / "swanlab").glob("run-*/files/config.yaml")
    values = yaml.safe_load(kept.read_text(encoding="utf-8"))
    assert values["train"]["value"]["learning_rate"] == 1e-4
    assert values["task"]["value"]["labels"][0]["code"] == "病"
    assert capfd.readouterr().out == ""  # stdout is for machines


def test_swanlab_says_how_a_run_that_failed_ended(tmp_path: Path) -> None:
    trackers = open_trackers(recipe(), tmp_path)
    trackers.metrics(1, {"loss": 1.5})
    trackers.finish("crashed")
    ((status,),) = swanlab_rows(tmp_path, "select status from experiment")
    assert status == -1
    assert swanlab_series(tmp_path) == {"train/loss": [(1, 1.5)]}


def test_machine_and_repository_are_not_told(tmp_path: Path) -> None:
    import socket

    open_trackers(recipe(), tmp_path).finish("success")
    (file,) = (tmp_path / "swanlab").glob("run-*/files/swanlab-metadata.json")
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["runtime"] is None and found["git"] is None
    assert not any(socket.gethostname() in path.read_text(errors="ignore") for path in file.parent.iterdir())


def test_off_is_off(tmp_path: Path) -> None:
    trackers = open_trackers(recipe(swanlab="off"), tmp_path)
    trackers.metrics(1, {"loss": 1.0})
    trackers.finish("success")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_online_without_a_key_is_refused_before_it_can_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"track\.swanlab=online needs an API key.*swanlab login.*track\.swanlab=local"
    ):
        open_trackers(recipe(swanlab="online"), tmp_path)
    assert list(tmp_path.iterdir()) == []


class Broken:
    """A tracker whose every call fails, as an SDK without its server does."""

    def __init__(self) -> None:
        self.calls = 0

    def fail(self) -> None:
        self.calls += 1
        raise ConnectionError("the dashboard is gone")

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        self.fail()

    def texts(self, step: int, name: str, texts: Sequence[str]) -> None:
        self.fail()

    def finish(self, state: str) -> None:
        self.fail()


def test_a_tracker_that_fails_is_reported_once_and_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = Broken()
    trackers = Trackers([broken, JsonlTracker(tmp_path)])
    with caplog.at_level(logging.ERROR):
        trackers.metrics(1, {"loss": 1.0})
        trackers.metrics(2, {"loss": 0.5})
        trackers.finish("success")
    assert [line["loss"] for line in lines(tmp_path)] == [1.0, 0.5]
    assert broken.calls == 1
    assert [record.message for record in caplog.records] == ["Broken failed and is dropped; the run goes on"]
    assert "the dashboard is gone" in caplog.text


def test_swanlab_that_cannot_start_does_not_end_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "swanlab").write_text("a file where its folder should be")
    trackers = open_trackers(recipe(), tmp_path)
    trackers.metrics(1, {"loss": 1.0})
    trackers.finish("success")
    assert [line["loss"] for line in lines(tmp_path)] == [1.0]
    assert "SwanLab could not start; the run goes on with metrics.jsonl" in caplog.text


def test_finishing_waits_for_a_bounded_time_only() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError), tracking._at_most(0.05):
        time.sleep(5)
    assert time.monotonic() - started < 2
    with tracking._at_most(0.05):
        pass
    time.sleep(0.1)  # the alarm is off again


def test_the_bound_has_no_effect_in_other_threads() -> None:
    ended = []

    def wait() -> None:
        with tracking._at_most(0.01):
            time.sleep(0.05)
        ended.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    assert ended == [True]


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
