"""A table of runs from their folders alone: filtered, sorted, compared and exported, with damaged runs."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spantune.core import ConfigError, Label, RunError, TaskSpec, parse_config
from spantune.runs import Claim, RunFolder, listing
from spantune.training import Result

TASK = TaskSpec(labels=(Label(code="dis"),), instruction="Find.")
TRAIN = {"split": "train", "step_ms": 500.0}


def line(step: int, split: str, time: float, **values: float) -> dict[str, Any]:
    return {"step": step, "time": time, "split": split, **values}


def figures(f1: float) -> dict[str, float]:
    return {"f1": f1, "f1_low": round(f1 - 0.1, 4), "f1_high": round(f1 + 0.1, 4), "evaluation_seconds": 2.0}


def write_run(folder: Path, lines: list[dict[str, Any]], finished: bool = True, **changes: dict[str, Any]) -> Path:
    """Write a run folder with these lines of metrics.jsonl."""
    content: dict[str, dict[str, Any]] = {
        "run": {"name": folder.name, "folder": str(folder.parent)},
        "model": {"source": "hf:owner/small"},
        "task": {"labels": ["dis"]},
        "data": {"train": "cmeee.jsonl", "test": "test.jsonl"},
        "lora": {"rank": 16},
        "train": {"learning_rate": 1e-4},
    }
    with Claim(folder) as claim:
        claim.create(parse_config({**content, **changes}), TASK, {})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    if finished:
        RunFolder(folder).report_html.touch()
    return folder


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """Four runs (two finished, one stopped, one damaged) and a folder that is no run."""
    before, folder = line(0, "test", 1000.0, **figures(0.1)), tmp_path / "runs"
    training = [line(step, "train", 1000.0 + step, step_ms=500.0, loss=1.0) for step in (1, 2, 3, 4)]
    write_run(folder / "first", [before, *training, line(4, "dev", 1010.0, **figures(0.9)),
                                 line(4, "test", 1011.0, **figures(0.7))])  # fmt: skip
    write_run(
        folder / "second",
        [line(2, "train", 2000.0, step_ms=250.0, loss=1.0), line(2, "test", 500.0, **figures(0.8))],
        model={"source": "modelscope:owner/large"},
        train={"learning_rate": 2e-4},
    )
    stopped = [line(4, "dev", 3001.0, **figures(0.4)), line(8, "dev", 3002.0, **figures(0.3))]
    write_run(folder / "stopped", [line(8, "train", 3000.0, step_ms=100.0, loss=1.0), *stopped], finished=False)
    write_run(folder / "damaged", [])
    (folder / "damaged" / "config.yaml").write_text("model: [")
    (folder / "notes").mkdir()
    (folder / ".under-way.part").mkdir()
    (folder / "first" / "trackers").mkdir()
    for tracker, url in {"wandb": '"https://other/1"', "swanlab": '"https://cloud/runs/1"', "mlflow": "null"}.items():
        (folder / "first" / "trackers" / f"{tracker}.json").write_text(f'{{"url": {url}}}')
    return folder


def test_figures_on_the_documents_that_chose_the_adapter_are_said_to_be_on_dev(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [line(2, "test", 500.0, **figures(0.8))], data={"train": "cmeee.jsonl"})
    assert listing.read(tmp_path / "run").f1_on == "dev"


def every(parent: Path) -> list[listing.Run]:
    return [listing.read(folder) for folder in listing.find([parent])]


def names(found: list[listing.Run]) -> list[str]:
    return [run.name for run in found]


def test_several_files_and_the_run_that_training_began_with_are_listed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "second", [], data={"train": ["a.jsonl", "b.json"]}, train={"from": "runs/first"})
    run = listing.read(folder)
    assert (run.data, run.warm_start) == ("a.jsonl, b.json", "runs/first")
    assert run.settings["train.from"] == "runs/first" and run.settings["data.train"] == ["a.jsonl", "b.json"]
    assert listing.matching([run], ["data.train=[a.jsonl, b.json]"]) == [run]


def test_a_run_says_what_it_is_made_of_and_what_it_reached(parent: Path) -> None:
    first, second, stopped = (listing.read(parent / name).values for name in ("first", "second", "stopped"))
    assert first == {
        "name": "first", "state": "finished", "model": "hf:owner/small", "data": "cmeee.jsonl", "warm_start": None,
        "f1": 0.7, "f1_low": 0.6, "f1_high": 0.8, "f1_on": "test", "f1_before": 0.1, "step": 4, "seconds": 8.0,
        "started": "1970-01-01T00:16:40+00:00", "folder": str(parent / "first"),
        "url": "https://cloud/runs/1",
    }  # fmt: skip
    assert (second["f1"], second["f1_before"], second["seconds"]) == (0.8, None, 2.5), "a clock set back costs no time"
    assert (stopped["state"], stopped["f1"], stopped["f1_on"], stopped["step"]) == ("stopped", 0.4, "dev", 8)


def test_a_damaged_run_is_listed_as_that(parent: Path) -> None:
    damaged = listing.read(parent / "damaged")
    assert damaged.values["state"] == "damaged" and "config.yaml is damaged" in damaged.problem
    assert names(every(parent)) == ["damaged", "first", "second", "stopped"]


def test_folders_are_runs_or_hold_runs(parent: Path, tmp_path: Path) -> None:
    assert listing.find([parent / "first", parent]) == [
        parent / name for name in ("first", "damaged", "second", "stopped")
    ]
    assert listing.find([parent / "notes"]) == []
    with pytest.raises(RunError, match="absent: no such folder; give run folders"):
        listing.find([tmp_path / "absent"])


@pytest.mark.parametrize(
    ("tests", "wanted"),
    [
        ([], ["damaged", "first", "second", "stopped"]),
        (["state=finished"], ["first", "second"]),
        (["state!=finished"], ["damaged", "stopped"]),
        (["model=*large"], ["second"]),
        (["f1>=0.7"], ["first", "second"]),
        (["f1 < 0.8", "f1>0.4"], ["first"]),
        (["train.learning_rate=0.0002"], ["second"]),
        (["data=other.jsonl"], []),
    ],
)
def test_runs_are_filtered_by_columns_and_settings(tests: list[str], wanted: list[str], parent: Path) -> None:
    assert names(listing.matching(every(parent), tests)) == wanted


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("state", r"--where 'state': expected KEY=PATTERN or KEY>NUMBER"),
        ("stat=finished", r"runs have no 'stat'; did you mean 'state'\?"),
        ("model>0.7", r"> compares numbers, found 'hf:owner/small' and '0.7'; use = or !="),
    ],
)
def test_a_test_that_cannot_be_right(test: str, message: str, parent: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        listing.matching(every(parent)[1:], [test])


@pytest.mark.parametrize(
    ("test", "is_met"),
    [
        ("train.learning_rate=1e-4", True),
        ("train.learning_rate=1E-04", True),
        ("train.learning_rate!=1e-4", False),
        ("train.learning_rate=2e-4", False),
        ("lora.dora=true", True),
        ("lora.dora=yes", True),
        ("lora.dora!=true", False),
        ("lora.dora=false", False),
        ("lora.dora=t*", True),
        ("lora.rank=16.0", True),
        ("lora.rank=true", False),
        ("train.max_steps=null", True),
        ("train.max_steps=", True),
        ("track.also=mlflow", True),
        ("track.also=[mlflow]", True),
        ("track.also=[mlflow, wandb]", False),
        ("track.swanlab=off", True),
        ("track.swanlab=false", True),
        ("data.train=[", False),
        ("data.train='x.jsonl'", True),
        ("train.learning_rate == 0.0001", True),
        ("task.labels=[dis, sym]", True),
        ("lora.dora=!!bool x", False),
    ],
)
def test_values_are_compared_as_a_recipe_reads_them(test: str, is_met: bool) -> None:
    settings = {
        "train.learning_rate": 0.0001,
        "lora.dora": True,
        "lora.rank": 16,
        "train.max_steps": None,
        "track.also": ["mlflow"],
        "track.swanlab": "off",
        "data.train": "x.jsonl",
        "task.labels": [{"code": "dis"}, {"code": "sym"}],
    }
    run = listing.Run("a", "finished", "a", settings=settings)
    assert listing.matching([run], [test]) == [run] * is_met


def test_runs_are_sorted_with_the_unknown_last(parent: Path) -> None:
    found = every(parent)
    assert names(listing.in_order(found, "f1")) == ["stopped", "first", "second", "damaged"]
    assert names(listing.in_order(found, "-f1")) == ["second", "first", "stopped", "damaged"]
    assert names(listing.in_order(found, "-name")) == ["stopped", "second", "first", "damaged"]
    assert names(listing.in_order(found, "train.learning_rate"))[-2:] == ["second", "damaged"]
    with pytest.raises(ConfigError, match=r"runs have no 'f1_hihg'; did you mean 'f1_high'\?"):
        listing.in_order(found, "f1_hihg")


def test_settings_that_differ_are_found(parent: Path) -> None:
    first, second, stopped = (listing.read(parent / name) for name in ("first", "second", "stopped"))
    assert listing.differing([first, second]) == ["model.source", "train.learning_rate"]
    assert listing.differing([first, stopped]) == [] == listing.differing([])


def test_running_and_killed_are_told_apart(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", [], finished=False)
    assert RunFolder(folder).state == "stopped"
    code = (
        "import sys, time; from pathlib import Path; from spantune.runs import Claim\n"
        "with Claim(Path(sys.argv[1]), resume=True): print('on', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "on\n"
        assert RunFolder(folder).state == "running"
        process.send_signal(signal.SIGKILL)
    assert RunFolder(folder).state == "killed"
    RunFolder(folder).report_html.touch()
    assert RunFolder(folder).state == "finished"


# --- the command --------------------------------------------------------------------------------------------------


def test_the_table_shows_every_run_and_says_what_is_damaged(parent: Path, command: Callable[..., Any]) -> None:
    done = command("runs", parent, "--sort", "-f1")
    assert done.code == 0
    rows = [row.split() for row in done.out.splitlines()]
    assert [row[0] for row in rows if row[0] in ("first", "second", "stopped", "damaged")] == [
        "second", "first", "stopped", "damaged",
    ]  # fmt: skip
    assert "0.600–0.800" in done.out and "damaged: " in done.err and "config.yaml is damaged" in done.err


def test_a_list_without_runs_says_why(parent: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    (tmp_path / "none").mkdir()
    assert "there are no runs here; spantune train makes one" in command("runs", tmp_path / "none").err
    assert "no run matches --where" in command("runs", parent, "--where", "name=no such run").err


def test_csv_and_json_have_every_column(parent: Path, command: Callable[..., Any]) -> None:
    done = command("runs", parent, "--where", "state=finished", "--csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [row["name"] for row in rows] == ["first", "second"] and done.err == ""
    assert list(rows[0]) == [*listing.COLUMNS, "model.source", "train.learning_rate"]
    assert (rows[0]["f1"], rows[0]["train.learning_rate"], rows[1]["f1_before"]) == ("0.7", "0.0001", "")
    found = json.loads(command("runs", parent, "--json", "--sort", "name").out)["runs"]
    assert [run["name"] for run in found] == ["damaged", "first", "second", "stopped"]
    assert found[0]["problem"] and found[1]["settings"]["train.learning_rate"] == 0.0001


def test_runs_are_compared_with_the_settings_that_differ(parent: Path, command: Callable[..., Any]) -> None:
    done = command("runs", parent / "first", parent / "second", "--compare", "--sort", "name")
    assert done.code == 0
    rows = {row.split()[0]: row.split()[1:] for row in done.out.splitlines() if row.split()}
    assert rows["F1"] == ["0.700", "0.800"] and rows["train.learning_rate"] == ["0.0001", "0.0002"]
    assert rows["model"] == ["hf:owner/small", "modelscope:owner/large"] and "model.source" not in rows
    assert rows["time"] == ["0:00:08", "0:00:02"]
    assert command("runs", parent, "--csv", "--json").code == 2


def test_a_name_commands_no_terminal(tmp_path: Path, command: Callable[..., Any]) -> None:
    write_run(tmp_path / "runs" / "one", [], data={"train": "\x1b[31mred.jsonl"})
    assert "\x1b" not in command("runs", tmp_path / "runs").out


def test_a_real_run_is_listed_and_looking_changes_nothing(trained: Result, command: Callable[..., Any]) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.folder.rglob("*")}
    (run,) = json.loads(command("runs", trained.folder, "--json").out)["runs"]
    assert run["state"] == "finished" and run["f1"] == pytest.approx(trained.as_dict()["f1"], abs=1e-4)
    assert run["f1_before"] is not None and run["step"] == 12 and 0 < run["seconds"] < trained.seconds
    assert {path: path.stat().st_mtime_ns for path in trained.folder.rglob("*")} == before
    assert os.path.getsize(RunFolder(trained.folder).lock_file) == 0


def test_listing_runs_loads_neither_numpy_nor_pillow() -> None:
    code = (
        "import sys; from spantune.runs import RunFolder, listing\n"
        "print(*sorted({'numpy', 'PIL', 'rich', 'spantune.metrics', 'spantune.data'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
