"""Notes that trackers keep are complete, written by one process at a time, and a damaged file is ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from spantune.core import RunError
from spantune.core.config import Track
from spantune.runs import hints
from spantune.runs.trackers.interface import RunInfo


def info(folder: Path) -> RunInfo:
    return RunInfo(folder, "run", Track(), {})


def test_what_is_remembered_is_found_again_and_swanlab_is_named_first(tmp_path: Path) -> None:
    assert info(tmp_path).remembered("swanlab") == {} and hints(tmp_path) == []
    info(tmp_path).remember("mlflow", id="b2", hint="MLflow: x")
    info(tmp_path).remember("swanlab", id="a1", hint="dashboard: 看")
    info(tmp_path).remember("swanlab", state="success")
    info(tmp_path).remember("wandb", id="c3")
    assert info(tmp_path).remembered("swanlab") == {"id": "a1", "hint": "dashboard: 看", "state": "success"}
    assert hints(tmp_path) == ["dashboard: 看", "MLflow: x"]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    info(tmp_path).remember("swanlab", id="a1")
    (tmp_path / "trackers" / "swanlab.json").write_text('{"swanlab": {"id')
    assert info(tmp_path).remembered("swanlab") == {}
    info(tmp_path).remember("swanlab", id="a2")
    assert info(tmp_path).remembered("swanlab") == {"id": "a2"}


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    with (
        info(tmp_path).owned("swanlab"),
        info(tmp_path).owned("wandb"),
        pytest.raises(RunError, match="another process writes this run's record for swanlab"),
        info(tmp_path).owned("swanlab", 0.1),
    ):
        pytest.fail("two owners")
    with info(tmp_path).owned("swanlab", 0.1):
        pass
