"""SwanLab, with the real library: what is recorded, and problems of the library that could lose a run's record."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from helpers.swanlab_cloud import KEY, Cloud
from helpers.tracked_run import begin, measure, recipe
from spantune.core import ConfigError
from spantune.runs import hints, open_trackers, read_metrics, sync

PROGRAM = Path(__file__).parents[2] / "helpers" / "tracked_run.py"


def started(*arguments: object) -> subprocess.Popen[str]:
    """Start `tracked_run.py` and wait until it has recorded all its steps."""
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        encoding="utf-8",
        start_new_session=True,
    )
    assert process.stdout
    line = process.stdout.readline()
    if line != "ready\n":
        process.kill()
        raise AssertionError(line + process.communicate()[1])
    return process


def rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(folder.parent / "swanlab" / "runs.swanlab")) as store:
        return store.execute(query).fetchall()


def series(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """Return the (step, value) pairs of every series of the only experiment, as the local board reads them."""
    ((directory, number),) = rows(folder, f"select run_id, id from experiment where name = '{folder.name}'")
    run = folder.parent / "swanlab" / directory
    found = {}
    for name, directory in rows(folder, f"select name, folder from tag where experiment_id = {number}"):
        text = "".join(path.read_text(encoding="utf-8") for path in sorted((run / "logs" / directory).glob("*.log")))
        found[name] = [(record["index"], record["data"]) for record in map(json.loads, text.splitlines())]
    return found


def steps_of(folder: Path, split: str = "train") -> list[int]:
    """Return the steps in `metrics.jsonl`."""
    return [record["step"] for record in read_metrics(folder) if record["split"] == split]


def steps(points: list[tuple[int, Any]]) -> list[int]:
    return [step for step, _ in points]


def store_of(folder: Path) -> Path:
    (found,) = (folder / "swanlab").glob("run-*/*.swanlab")
    return found


# --- what is recorded --------------------------------------------------------------------------------------------


def test_the_local_board_has_scalars_predictions_and_charts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "exp1"
    trackers = begin(folder, project="my-project")
    trackers.metrics(1, {"loss": 1.5})
    trackers.metrics(2, {"loss": 1.25})
    measure(trackers, folder, 2)
    trackers.finish("success")
    found = series(folder)
    assert found["train/loss"] == [(1, 1.5), (2, 1.25)]
    assert (found["dev/f1"], found["dev/f1_low"], found["dev/f1/病"]) == ([(2, 0.5)], [(2, 0.1)], [(2, 2 / 3)])
    assert "dev/f1_low/病" not in found  # it is in the picture
    ((step, (first, second)),) = found["Prediction"]
    assert step == 2 and first.startswith("1 right, 1 missed, 0 spurious ▸ 患者发热咳嗽\n")
    assert "gold: ✓ 发热 [病 2:4]; − 咳嗽 [病 4:6]" in first and "predicted: ✓ 发热 [病 2:4]" in first
    assert "<b>炎</b>" in second and "predicted: none" in second
    assert dict(rows(folder, "select name, type from tag where type = 'image'")) == {
        "dev F1 by type": "image",
        "dev confusion": "image",
    }
    pictures = [path for path in (tmp_path / "swanlab").glob("run-*/media/image/*") if path.suffix == ".png"]
    assert len(pictures) == 2 and all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert rows(folder, "select name, status from experiment") == [("exp1", 1)]  # 1: finished
    assert rows(folder, "select name from project") == [("my-project",)]
    assert hints(folder) == [f"dashboard: swanlab watch {tmp_path / 'swanlab'}"]
    assert capfd.readouterr().out == ""  # stdout is for machines


def test_what_a_run_is_the_result_of_is_recorded_and_the_machine_is_not_told(tmp_path: Path) -> None:
    begin(tmp_path / "run", tags=["cmeee"]).finish("success")
    (kept,) = (tmp_path / "swanlab").glob("run-*/files/config.yaml")
    values = yaml.safe_load(kept.read_text(encoding="utf-8"))
    assert values["train.learning_rate"]["value"] == 1e-4 and values["train.max_steps"]["value"] == "none"
    assert (values["task.labels"]["value"], values["track.tags"]["value"]) == ("病, 体", "cmeee")
    assert (values["environment.torch"]["value"], values["environment.commit"]["value"]) == ("2.13", "abc")
    assert not [key for key, entry in values.items() if isinstance(entry["value"], dict | list)]
    told = json.loads((kept.parent / "swanlab-metadata.json").read_text(encoding="utf-8"))
    assert told["hardware"]["cpu"] and told["runtime"] is None and told["git"] is None
    assert not any(socket.gethostname() in path.read_text(errors="ignore") for path in kept.parent.iterdir())


def test_the_cloud_has_all_of_a_run_with_charts_that_it_can_draw(
    cloud: Cloud, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    trackers = begin(
        folder,
        swanlab="online",
        experiment="医疗 实体",
        description="第一次",
        tags=["a", "b"],
        group="rank",
        job_type="search",
        workspace="tester",
        predictions=1,
    )
    trackers.metrics(0, {"f1": 0.25}, "test")
    trackers.metrics(1, {"loss": 1.5, "step_ms": 20.0})
    measure(trackers, folder, 1)
    (folder / "report.html").write_text("<p>页", encoding="utf-8")
    (folder / "report.md").write_text("# 页", encoding="utf-8")
    trackers.attach(1, folder / "report.html")
    trackers.finish("success")
    run = cloud.run
    assert (run.about["name"], run.about["description"], run.about["cluster"]) == ("医疗 实体", "第一次", "rank")
    assert [label["name"] for label in run.about["labels"]] == ["a", "b"] and run.about["project"] == "spantune"
    assert run.series("train/loss") == [(1, 1.5)] and run.series("dev/f1_high/病") == [(1, 1.0)]
    media = {key: places for key, _, places in run.media}
    panels = {"Prediction", "Prediction table", "dev F1 by type", "dev confusion", "Report", "Report page"}
    assert media.keys() == panels
    assert len(media["Prediction"]) == 1  # as the recipe says
    bars = json.loads(cloud.files[media["dev F1 by type"][0]])
    assert bars["xAxis"]["data"] == ["病", "体"] and bars["series"][0]["data"] == [66.7, 0.0]
    heat = json.loads(cloud.files[media["dev confusion"][0]])
    assert [0, 0, 1] in heat["series"][0]["data"] and [2, 0, 1] in heat["series"][0]["data"]
    assert cloud.files[media["Report"][0]].decode() == "# 页"
    assert run.saved == ["report.html"] and cloud.files["saved/report.html"].decode() == "<p>页"
    assert cloud.files[media["Report page"][0]].decode() == "<p>页"
    table = json.loads(cloud.files[media["Prediction table"][0]])
    assert [column["field"] for column in table["colDefs"]][:5] == ["document", "text", "right", "missed", "spurious"]
    assert table["rowData"][0]["document"] == "d1" and table["rowData"][0]["missed"] == 1
    assert run.profile["config"]["environment.commit"]["value"] == "abc" and run.about["job"] == "search"
    sections = {key: column["sectionName"] for key, column in cloud.columns.items() if not column.get("hidden")}
    assert list(dict.fromkeys(sections.values()))[:2] == ["train", "speed"] and sections["dev/f1"] == "dev"
    assert sections["dev/f1/病"] == "dev by type" and sections["Prediction"] == "predictions"
    assert cloud.columns["test/f1"]["hidden"] and run.series("test/f1") == [(0, 0.25)]  # a value without a chart
    assert run.states == ["RUNNING", "FINISHED"]
    assert hints(folder) == [f"dashboard: {cloud.host}/@tester/spantune/runs/{run.id}"]
    assert capfd.readouterr().out == ""


def test_the_local_board_has_groups_in_order_and_hides_what_is_no_curve(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trackers = begin(folder)
    trackers.metrics(0, {"f1": 0.25}, "test")
    for step in (1, 2):
        trackers.metrics(step, {"loss": 1.0, "step_ms": 20.0 * step, "padding_share": 0.0})
    measure(trackers, folder, 2)
    trackers.finish("success")
    groups: dict[str, list[str]] = {}
    query = "select n.name, c.name, c.status from namespace n join display d on d.namespace_id = n.id"
    for group, name, status in rows(folder, f"{query} join chart c on c.id = d.chart_id where n.project_id is null"):
        groups.setdefault(group if status == 0 else "hidden", []).append(name)
    assert groups["train"] == ["train/loss"] and groups["dev"] == ["dev/f1", "dev/f1_low", "dev/f1_high"]
    assert groups["speed"] == ["train/step_ms"] and sorted(groups["hidden"]) == ["test/f1", "train/padding_share"]
    assert groups["dev by type"] == ["dev/f1/病", "dev/f1/体"] and "Prediction" in groups["predictions"]
    order = [name for (name,) in rows(folder, "select name from namespace where experiment_id = 1 order by id")]
    assert order[:5] == ["train", "dev", "dev by type", "predictions", "speed"]


@pytest.mark.no_cover
def test_runs_that_begin_at_once_share_a_board_and_keep_their_names_and_charts(tmp_path: Path) -> None:
    processes = [started(tmp_path / name, "local", 6) for name in ("a", "b")]
    for process in processes:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert sorted(rows(tmp_path / "a", "select name, status from experiment")) == [("a", 1), ("b", 1)]
    for name in ("a", "b"):
        assert steps(series(tmp_path / name)["train/loss"]) == steps_of(tmp_path / name)
    query = "select c.name, count(*) from source s join chart c on c.id = s.chart_id where c.project_id is not null"
    compared = dict(rows(tmp_path / "a", f"{query} group by c.id"))
    assert compared["train/loss"] == compared["dev/f1"] == compared["dev confusion"] == 2


def test_a_run_that_is_deleted_on_the_board_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    trackers = begin(folder)
    with closing(sqlite3.connect(tmp_path / "swanlab" / "runs.swanlab")) as store:
        store.execute("delete from experiment")
        store.commit()
    for step in (1, 2):
        trackers.metrics(step, {"loss": 1.0})
    trackers.finish("success")
    assert steps_of(folder) == [1, 2] and "Traceback" not in capfd.readouterr().err
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == ["the run was deleted or stopped on SwanLab's board, which gets no more of it; it goes on"]


def test_off_is_off(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trackers = begin(folder, swanlab="off")
    trackers.metrics(1, {"loss": 1.0})
    trackers.finish("success")
    assert not (tmp_path / "swanlab").exists() and not (folder / "trackers").exists()
    assert [line["loss"] for line in read_metrics(folder)] == [1.0]


# --- the key ------------------------------------------------------------------------------------------------------


def test_online_without_a_key_is_refused_before_it_can_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    settings = recipe(tmp_path / "run", swanlab="online")
    with pytest.raises(ConfigError, match=r"needs an API key: set SWANLAB_API_KEY.*track\.swanlab=local"):
        open_trackers(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.no_cover
@pytest.mark.parametrize("mode", ["online", "offline", "local"])
def test_the_key_is_written_nowhere(cloud: Cloud, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWANLAB_DEBUG", "true")
    process = started(tmp_path / "run", mode, 6)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "config.yaml" for path in written) and len(written) > 6
    assert [path for path in written if KEY.encode() in path.read_bytes()] == [] and KEY not in out + err
    assert bool(cloud.runs) == (mode == "online")


def test_a_login_of_swanlabs_own_is_used_and_not_copied(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SWANLAB_API_KEY")
    monkeypatch.setenv("SWANLAB_DEBUG", "true")  # with it, SwanLab logs the login that it finds
    login = Path.home() / ".swanlab" / ".netrc"
    login.parent.mkdir(parents=True)
    login.write_text(f"machine {cloud.host}\nlogin {cloud.host}\npassword {KEY}\n")
    process = started(tmp_path / "run", "online", 6)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and cloud.run.states == ["RUNNING", "FINISHED"], err
    assert [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == [login]
    assert KEY not in out + err


def test_a_key_that_is_refused_is_said_and_the_run_is_recorded_offline(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SWANLAB_API_KEY", "wrong")
    folder = tmp_path / "run"
    trackers = begin(folder, swanlab="online")
    trackers.metrics(1, {"loss": 1.5})
    trackers.finish("success")
    assert "API key" in caplog.text and f"spantune sync {folder}" in caplog.text
    assert store_of(folder).stat().st_size > 100 and not cloud.runs


# --- the traps ----------------------------------------------------------------------------------------------------


def test_its_trainer_callback_loses_the_config_and_is_not_used(tmp_path: Path) -> None:
    """SwanLab still has this problem, which is why spantune calls `init` itself."""
    from swanlab.integration.transformers import SwanLabCallback

    lost = SwanLabCallback(project="p", config={"rank": 8}, id="x", group="g")
    assert lost._init_kwargs == {"project": "p"}
    begin(tmp_path / "run").finish("success")
    (kept,) = (tmp_path / "swanlab").glob("run-*/files/config.yaml")
    assert "lora.rank" in yaml.safe_load(kept.read_text(encoding="utf-8"))


def test_transformers_own_reporting_crashes_and_is_not_used(trained: Any) -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from transformers.integrations import SwanLabCallback

    with pytest.raises(RuntimeError, match="No active Run"):  # `report_to=swanlab` begins with this call
        SwanLabCallback().on_train_begin(TrainingArguments(use_cpu=True), TrainerState(), TrainerControl())
    board = trained.folder.parent / "swanlab"
    assert len(list(board.glob("run-*"))) == 1
    assert rows(trained.folder, "select status from experiment") == [(1,)]
    (kept,) = board.glob("run-*/files/config.yaml")
    kinds = {"torch", "swanlab", "device", "train_sha256", "model_sha256", "code_sha256"}
    assert {f"environment.{kind}" for kind in kinds} <= yaml.safe_load(kept.read_text(encoding="utf-8")).keys()
    assert {"train/tokens_per_s", "train/padding_share", "train/peak_rss_gib", "Report"} <= series(
        trained.folder
    ).keys()


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SWANLAB_PROJECT", "患者"),  # the variable that transformers documents
        ("SWANLAB_MODE", "cloudy"),
        ("SWANLAB_RUN", "7"),
        ("SWANLAB_EXPERIMENT", "exp"),
        ("SWANLAB_RUN_ID", "a/b"),
        ("SWANLAB_LOG_DIR", "/dev/null"),
        ("SWANLAB_PROJ_NAME", "elsewhere"),
        ("SWANLAB_EXP_NAME", "other"),
    ],
)
def test_its_variables_neither_crash_a_run_nor_override_its_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with caplog.at_level(logging.INFO):
        trackers = begin(tmp_path / "run")
    trackers.metrics(1, {"loss": 1.5})
    trackers.finish("success")
    assert series(tmp_path / "run") == {"train/loss": [(1, 1.5)]}
    assert rows(tmp_path / "run", "select name from project") == [("spantune",)]
    assert rows(tmp_path / "run", "select name from experiment") == [("run",)]
    assert os.environ[name] == value and f"{name}: not used" in caplog.text
    assert {variable for variable in os.environ if variable.startswith("SWANLAB_")} == {name}


def test_a_project_that_is_not_ascii_is_refused_with_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"track\.project.*'医疗'"):
        recipe(tmp_path / "run", project="医疗")
    assert recipe(tmp_path / "run", experiment="医疗 实体").track.experiment == "医疗 实体"


def test_what_is_not_finite_is_left_out_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    trackers = begin(folder)
    for step, value in enumerate([1.0, math.nan, math.inf, -math.inf, 2.0]):
        trackers.metrics(step, {"loss": value, "grad_norm": 1.0})
    trackers.finish("success")
    assert series(folder)["train/loss"] == [(0, 1.0), (4, 2.0)] and len(series(folder)["train/grad_norm"]) == 5
    assert [line["loss"] for line in read_metrics(folder)] == [1.0, None, None, None, 2.0]
    said = [record.message for record in caplog.records if "not finite" in record.message]
    assert said == [
        "train/loss is nan at step 1: null in metrics.jsonl, and no dashboard shows values that are not finite"
    ]


def test_ctrl_c_stays_with_whoever_had_it(tmp_path: Path) -> None:
    """SwanLab's handler would finish the run at once and wait for the cloud without a limit."""

    def ours(number: int, frame: Any) -> None: ...

    before = signal.signal(signal.SIGINT, ours)
    try:
        trackers = begin(tmp_path / "run")
        assert signal.getsignal(signal.SIGINT) is ours
        trackers.finish("success")
        assert signal.getsignal(signal.SIGINT) is ours
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_of_the_users_own_is_left_alone(tmp_path: Path) -> None:
    import swanlab

    mine = swanlab.init(mode="disabled")
    try:
        trackers = begin(tmp_path / "run")
        trackers.metrics(1, {"loss": 1.0})
        trackers.finish("success")
        assert mine.alive and series(tmp_path / "run") == {"train/loss": [(1, 1.0)]}
    finally:
        mine.finish()


def test_a_board_that_cannot_start_does_not_end_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "swanlab").write_text("a file where its folder should be")
    trackers = begin(tmp_path / "run")
    trackers.metrics(1, {"loss": 1.0})
    trackers.finish("success")
    assert [line["loss"] for line in read_metrics(tmp_path / "run")] == [1.0]
    assert "SwanLab could not start" in caplog.text and "the run goes on" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO and record.exc_info]


# --- runs that were killed, and the cloud that goes away ---------------------------------------------------------


@pytest.mark.no_cover
def test_a_second_process_in_one_folder_shows_one_complete_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begin(tmp_path / "other").finish("success")  # the board is shared with another run
    process = started(folder, "local", 7, 600)
    process.kill()
    process.communicate()
    last, lines = steps_of(folder)[-1], len(read_metrics(folder))
    trackers = begin(folder)  # a resume gets the lines of metrics.jsonl again
    trackers.metrics(last + 1, {"loss": 0.5})
    trackers.finish("success")
    assert rows(folder, "select name, status from experiment") == [("other", 1), ("run", 1)]
    found = series(folder)
    assert steps(found["train/loss"]) == list(range(1, last + 2)) == steps_of(folder)
    assert steps(found["Prediction"]) == steps(found["dev confusion"]) == steps_of(folder, "dev")
    assert list(folder.glob("swanlab.killed-1/run-*"))  # the killed run's files are kept under another name
    assert len(read_metrics(folder)) == lines + 1  # no line is recorded twice


@pytest.mark.no_cover
def test_sigterm_leaves_a_whole_store_that_says_how_the_run_ended(cloud: Cloud, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = started(folder, "offline", 7, 600)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert store_of(folder).stat().st_size > 1000
    sync(folder)
    assert steps(cloud.run.series("train/loss")) == steps_of(folder) and len(steps_of(folder)) >= 7
    assert cloud.run.states == ["RUNNING", "ABORTED"]


@pytest.mark.no_cover
def test_ctrl_c_in_a_terminal_reaches_the_run_only_which_says_how_it_ended(cloud: Cloud, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = started(folder, "offline", 7, 600)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the group
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "SwanLab failed" not in err and "KeyboardInterrupt" not in err, err
    sync(folder)
    assert steps(cloud.run.series("train/loss")) == steps_of(folder) and cloud.run.states == ["RUNNING", "ABORTED"]


def test_a_hard_kill_of_the_run_leaves_a_whole_store(cloud: Cloud, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = started(folder, "offline", 7, 600)
    process.kill()
    process.communicate()
    note = folder / "trackers" / "swanlab.json"
    wait_for(lambda: '"aborted"' in note.read_text())  # SwanLab's process has noticed the end of the run
    assert store_of(folder).stat().st_size > 1000
    sync(folder)
    recorded = steps_of(folder)
    shown = steps(cloud.run.series("train/loss"))  # all points that had left the killed process
    assert shown and shown == recorded[: len(shown)] and len(recorded) >= 7
    assert cloud.run.states == ["RUNNING", "ABORTED"]


def test_a_hard_kill_of_everything_loses_no_finished_step(cloud: Cloud, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = started(folder, "offline", 7, 600)
    (swanlab,) = psutil.Process(process.pid).children()
    swanlab.kill()
    process.kill()
    process.communicate()
    assert store_of(folder).stat().st_size == 0  # SwanLab's own record is lost
    sent = sync(folder)
    assert steps(cloud.run.series("train/loss")) == steps_of(folder) and len(steps_of(folder)) >= 7
    shown = {key: [step for name, step, _ in cloud.run.media if name == key] for key, _, _ in cloud.run.media}
    assert shown == dict.fromkeys(
        ("Prediction", "Prediction table", "dev F1 by type", "dev confusion"), steps_of(folder, "dev")
    )
    assert cloud.run.states == ["RUNNING", "ABORTED"] and cloud.run.id == sent.id


def test_an_offline_run_is_sent_once_under_its_own_id(cloud: Cloud, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = started(folder, "offline", 7)
    process.communicate(timeout=60)
    mine = json.loads((folder / "trackers" / "swanlab.json").read_text())["id"]
    assert hints(folder) == [f"dashboard: not yet in SwanLab's cloud; send it with: spantune sync {folder}"]
    first = sync(folder)
    assert (first.id, first.before, cloud.run.id) == (mine, False, mine)
    sent, asked = list(cloud.run.scalars), len(cloud.requests)
    assert sync(folder).before and len(cloud.requests) == asked  # nothing is sent and no request is made
    note = folder / "trackers" / "swanlab.json"  # as after a kill between the last point and this note
    note.write_text(note.read_text().replace('"sent": true', '"sent": false'))
    assert not sync(folder).before
    assert cloud.run.scalars == sent and cloud.run.states[-1] == "FINISHED"


def test_a_cloud_that_is_not_there_is_said_at_once_and_the_run_is_recorded_offline(
    cloud: Cloud, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cloud.stop()
    folder = tmp_path / "run"
    trackers = begin(folder, swanlab="online")
    assert "cannot be reached" in caplog.text and "has not opened" not in caplog.text
    trackers.metrics(1, {"loss": 1.5})
    trackers.finish("success")
    assert f"{cloud.host} cannot be reached" in caplog.text and f"spantune sync {folder}" in caplog.text
    assert hints(folder) == [f"dashboard: not yet in SwanLab's cloud; send it with: spantune sync {folder}"]
    assert store_of(folder).stat().st_size > 100


def test_a_cloud_that_takes_connections_and_never_answers_holds_nothing_up(
    tmp_path: Path, cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    cloud.silent = 60
    trackers = begin(tmp_path / "run", swanlab="online")
    assert "does not answer within" in caplog.text and "has not opened" not in caplog.text
    trackers.metrics(1, {"loss": 1.5})
    trackers.finish("success")
    assert "left behind" not in caplog.text and store_of(tmp_path / "run").stat().st_size > 100


@pytest.mark.no_cover
@pytest.mark.parametrize("way", ["refuses", "hangs"])
def test_a_cloud_that_dies_in_the_middle_delays_no_step_and_is_sent_the_rest_later(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    folder = tmp_path / "run"
    process = started(folder, "online", 5, 600, 2)
    wait_for(lambda: cloud.runs and cloud.run.scalars)
    if way == "hangs":
        cloud.silent = 60
    else:
        cloud.stop()
    seen = steps_of(folder)[-1]
    wait_for(lambda: steps_of(folder)[-1] > seen + 100)  # before the silent cloud answers its first request
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert out == f"aborted after step {steps_of(folder)[-1]}\n"
    assert "SwanLab has not taken everything in 2 s and is left behind" in err
    assert hints(folder) == [f"dashboard: not yet in SwanLab's cloud; send it with: spantune sync {folder}"]
    again = Cloud()
    again.runs, again.projects = cloud.runs, cloud.projects
    monkeypatch.setenv("SWANLAB_API_HOST", again.host)
    sync(folder)
    again.stop()
    assert steps(again.run.series("train/loss")) == steps_of(folder)
    assert again.run.states == ["RUNNING", "RUNNING", "ABORTED"]


@pytest.mark.no_cover
def test_a_run_that_is_resumed_online_goes_on_under_its_id_and_repeats_no_point(cloud: Cloud, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = started(folder, "online", 5, 600)
    wait_for(lambda: cloud.runs and cloud.run.series("dev/f1"))
    process.kill()
    process.communicate()
    trackers = begin(folder, swanlab="online")
    trackers.metrics(steps_of(folder)[-1] + 1, {"loss": 0.25})
    trackers.finish("success")
    assert steps(cloud.run.series("train/loss")) == steps_of(folder)
    assert cloud.run.states[-1] == "FINISHED"


def test_sync_says_what_is_wrong(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spantune.core import RunError

    with pytest.raises(RunError, match=r"no config\.yaml here"):
        sync(tmp_path)
    begin(tmp_path / "run", swanlab="offline").finish("success")
    with monkeypatch.context() as without:
        without.delenv("SWANLAB_API_KEY")
        with pytest.raises(ConfigError, match="needs an API key"):
            sync(tmp_path / "run")
    cloud.stop()
    with pytest.raises(RunError, match=r"SwanLab's cloud cannot be had.*cannot be reached"):
        sync(tmp_path / "run")
    assert not cloud.runs


def wait_for(ready: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.02)
