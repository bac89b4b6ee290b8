"""`spantune sync`: it sends once and prints the address, and the end of a run names the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.swanlab_cloud import Cloud
from helpers.tracked_run import begin


def test_sync_says_where_and_that_it_was_sent_before(cloud: Cloud, tmp_path: Path, command: Callable[..., Any]) -> None:
    folder = tmp_path / "run"
    trackers = begin(folder, swanlab="local")
    trackers.metrics(1, {"loss": 1.0})
    trackers.finish("success")
    first = command("sync", folder, "--json")
    assert first.code == 0, first.err
    url = f"{cloud.host}/@tester/spantune/runs/{cloud.run.id}"
    assert json.loads(first.out) == {"id": cloud.run.id, "url": url, "before": False}
    assert f"{folder} is sent: {url}" in first.err
    again = command("sync", folder)
    assert again.code == 0 and again.out == "" and f"{folder} was sent before: {url}" in again.err
    assert cloud.run.series("train/loss") == [(1, 1.0)]
    assert (tmp_path / "swanlab" / "runs.swanlab").is_file() and not list(folder.glob("swanlab.*"))  # the board is kept


def test_what_cannot_be_sent_is_one_sentence(tmp_path: Path, command: Callable[..., Any]) -> None:
    found = command("sync", tmp_path)
    assert found.code == 2 and found.err.startswith("error: ") and "no config.yaml here" in found.err


def test_an_offline_run_ends_with_what_to_type(command: Callable[..., Any], recipe_file: Callable[..., Path]) -> None:
    path = recipe_file(run={"name": "off"}, track={"swanlab": "offline"})
    found = command("train", path, "train.max_steps=2", "train.eval_steps=2")
    assert found.code == 0, found.err
    folder = path.parent / "runs" / "off"
    assert f"dashboard: not yet in SwanLab's cloud; send it with: spantune sync {folder}\n" in found.err
    assert len(found.out.splitlines()) == 1
