"""MLflow's own client finds in the run folder what was recorded, once each, also after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.tracked_run import begin, measure
from spantune.runs import hints

for module in ("mlflow", "sqlalchemy", "alembic"):
    pytest.importorskip(module)


def read(folder: Path) -> tuple[Any, Any]:
    """Return a client of the run folder's store, and its only run."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "spantune"]
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def steps(folder: Path, key: str) -> list[int]:
    client, run = read(folder)
    return [metric.step for metric in client.get_metric_history(run.info.run_id, key)]


@pytest.fixture(autouse=True)
def _local_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_scalars_predictions_charts_and_the_report(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trackers = begin(folder, swanlab="off", also="mlflow", experiment="医疗", tags=["a"], description="第一次")
    trackers.metrics(1, {"loss": 1.5})
    measure(trackers, folder, 2)
    for name in ("report.html", "report.md"):
        (folder / name).write_text("页", encoding="utf-8")
    trackers.attach(2, folder / "report.html")
    trackers.finish("success")
    _, run = read(folder)
    assert (run.info.run_name, run.info.status) == ("医疗", "FINISHED")
    assert run.data.tags["tag.a"] == "yes" and run.data.tags["mlflow.note.content"] == "第一次"
    assert run.data.metrics["train/loss"] == 1.5 and run.data.metrics["dev/f1_high/病"] == 1.0
    assert run.data.params["lora.rank"] == "16" and run.data.params["environment.commit"] == "abc"
    kept = {str(path.relative_to(folder / "mlflow" / "artifacts")).partition("/artifacts/")[2]: path
            for path in (folder / "mlflow" / "artifacts").rglob("*") if path.is_file()}  # fmt: skip
    assert kept.keys() == {
        "config.json",
        "Prediction/000002.txt",
        "charts/dev F1 by type/000002.png",
        "charts/dev confusion/000002.png",
        "report.html",
        "report.md",
    }
    assert "predicted: ✓ 发热 [病 2:4]" in kept["Prediction/000002.txt"].read_text(encoding="utf-8")
    assert hints(folder) == [f"MLflow: mlflow ui --backend-store-uri sqlite:///{folder / 'mlflow' / 'mlflow.db'}"]


def test_a_resumed_run_goes_on_and_has_every_step_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for recorded in ((1, 2, 3), (4,)):
        trackers = begin(folder, swanlab="off", also="mlflow")
        for step in recorded:
            trackers.metrics(step, {"loss": 1.0})
        trackers.finish("aborted" if 1 in recorded else "success")
    assert steps(folder, "train/loss") == [1, 2, 3, 4]
    assert read(folder)[1].info.status == "FINISHED"
