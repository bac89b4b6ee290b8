"""Weights & Biases offline: it would sync what was recorded, and a resumed run has the same id and all steps."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from helpers.tracked_run import begin, measure
from spantune.runs import hints

pytest.importorskip("wandb")


def records(run: Path) -> list[Any]:
    """Return the records of a W&B folder, read with the reader in SwanLab's converter."""
    from swanlab.converter.wb.wbdatastore import WBDataStoreReader
    from wandb.proto import wandb_internal_pb2

    (file,) = run.glob("*.wandb")
    found = []
    with WBDataStoreReader() as reader:
        reader.open(file)
        while data := reader.scan():
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            found.append(record)
    return found


def series(run: Path) -> dict[str, dict[int, Any]]:
    found: dict[str, dict[int, Any]] = defaultdict(dict)
    for record in records(run):
        for item in record.history.item:
            found["/".join(item.nested_key) or item.key][record.history.step.num] = json.loads(item.value_json)
    return dict(found)


def test_scalars_predictions_charts_and_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    folder = tmp_path / "run"
    trackers = begin(
        folder, swanlab="off", also="wandb", experiment="医疗", tags=["a"], group="g", description="第一次"
    )
    trackers.metrics(1, {"loss": 1.5})
    measure(trackers, folder, 2)
    (folder / "report.html").write_text("<p>页", encoding="utf-8")
    trackers.attach(2, folder / "report.html")
    trackers.finish("success")
    (kept,) = (folder / "wandb").glob("offline-run-*")
    found = series(kept)
    assert found["train/loss"] == {1: 1.5} and found["dev/f1_high/病"] == {2: 1.0}
    kinds = {key.removesuffix("/_type"): value[2] for key, value in found.items() if key.endswith("/_type")}
    assert kinds == {
        "Prediction": "table-file",
        "dev F1 by type": "image-file",
        "dev confusion": "image-file",
        "report": "html-file",
    }
    (table,) = kept.glob("files/media/table/*.json")
    assert json.loads(table.read_text(encoding="utf-8"))["data"][0][0] == "d1"
    (run,) = [record.run for record in records(kept) if record.run.run_id]
    assert (run.display_name, run.project, run.run_group, list(run.tags), run.notes) == (
        "医疗", "spantune", "g", ["a"], "第一次",
    )  # fmt: skip
    settings = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert settings["environment"] == {"torch": "2.13", "commit": "abc"} and settings["lora"]["rank"] == 16
    assert [record.exit.exit_code for record in records(kept) if record.HasField("exit")] == [0]
    assert hints(folder) == [f"W&B: recorded offline; send it with: wandb sync {kept}"]
    assert capfd.readouterr().out == ""


def test_a_resumed_run_has_its_id_and_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    folder = tmp_path / "run"
    for steps in ((1, 2), (3,)):
        trackers = begin(folder, swanlab="off", also="wandb")
        for step in steps:
            trackers.metrics(step, {"loss": 1.0})
        trackers.finish("aborted")
    runs = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(runs) == 2 and len({run.name.split("-")[3] for run in runs}) == 1
    latest = Path((folder / "wandb" / "latest-run").resolve())
    assert list(series(latest)["train/loss"]) == [1, 2, 3]
