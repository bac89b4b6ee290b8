"""TensorBoard's own reader finds what was recorded, once each, also after a kill and a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.tracked_run import begin, measure
from spantune.runs import hints

pytest.importorskip("tensorboard")


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return found.Reload()


def test_scalars_texts_pictures_and_the_report(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trackers = begin(folder, swanlab="off", also="tensorboard", description="第一次")
    trackers.metrics(1, {"loss": 1.5})
    trackers.metrics(2, {"loss": float("nan")})
    measure(trackers, folder, 2)
    (folder / "report.html").write_text("<p>")
    (folder / "report.md").write_text("# 页", encoding="utf-8")
    trackers.attach(2, folder / "report.html")
    trackers.finish("success")
    found = read(folder)
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(1, 1.5)]
    assert [event.step for event in found.Scalars("dev/f1_low/病")] == [2]
    assert set(found.Tags()["images"]) == {"dev_F1_by_type", "dev_confusion"}  # as TensorBoard spells the names

    def text(tag: str) -> str:
        return str(found.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode())

    assert "predicted: ✓ 发热 [病 2:4]" in text("Prediction") and "**d2**" in text("Prediction")
    assert text("report") == "# 页" and "第一次" in text("run") and text("state") == "success"
    assert '"learning_rate": 0.0001' in text("config")
    assert hints(folder) == [f"TensorBoard: tensorboard --logdir {folder / 'tensorboard'}"]
    assert not (folder / "swanlab").exists()


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for steps in ((1, 2, 3), (4, 5)):
        trackers = begin(folder, swanlab="off", also="tensorboard")
        for step in steps:
            trackers.metrics(step, {"loss": 1.0})
        trackers.finish("aborted")
    assert [event.step for event in read(folder).Scalars("train/loss")] == [1, 2, 3, 4, 5]
