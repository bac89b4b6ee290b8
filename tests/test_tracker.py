"""What trackers keep for later is whole, whoever writes it when, and a damaged file is no obstacle."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from spantune.config import Track
from spantune.tracker import RunInfo, hints


def info(folder: Path) -> RunInfo:
    return RunInfo(folder, "run", Track(), {})


def test_what_is_remembered_is_found_again(tmp_path: Path) -> None:
    assert info(tmp_path).remembered("swanlab") == {} and hints(tmp_path) == []
    info(tmp_path).remember("swanlab", id="a1", hint="dashboard: 看")
    info(tmp_path).remember("swanlab", state="success")
    info(tmp_path).remember("mlflow", id="b2")
    assert info(tmp_path).remembered("swanlab") == {"id": "a1", "hint": "dashboard: 看", "state": "success"}
    assert hints(tmp_path) == ["dashboard: 看"]
    assert [path.name for path in tmp_path.iterdir()] == ["trackers.json"]


def test_trackers_of_many_threads_do_not_lose_each_others_notes(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: info(tmp_path).remember(f"t{number % 4}", **{f"k{number}": number}), range(40)))
    kept = json.loads((tmp_path / "trackers.json").read_text())
    assert sum(len(values) for values in kept.values()) == 40


def test_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "trackers.json").write_text('{"swanlab": {"id')
    assert info(tmp_path).remembered("swanlab") == {}
    info(tmp_path).remember("swanlab", id="a1")
    assert info(tmp_path).remembered("swanlab") == {"id": "a1"}
