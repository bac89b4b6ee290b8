"""MLflow: the server of `MLFLOW_TRACKING_URI`, or else a SQLite file in `mlflow/` of the run folder.

A resumed run continues the same MLflow run. Steps that a metric already has are not recorded again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from spantune.core import to_json
from spantune.runs.folder import RunFolder
from spantune.runs.trackers.interface import Chart, PredictionRow, RunInfo, flattened

_STATES = {"success": "FINISHED", "crashed": "FAILED", "aborted": "KILLED"}
_LONGEST = 500
"""The maximum number of characters of a parameter in old MLflow servers. A longer value is in `config.json` only."""


class MlflowTracker:
    """The record of a run in MLflow, in the experiment named `track.project`."""

    def __init__(self, info: RunInfo):
        from mlflow import MlflowClient

        logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)  # it logs every table that it creates
        uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
        if not uri:
            folder = RunFolder(info.folder).mlflow.absolute()
            folder.mkdir(exist_ok=True)
            uri, artifacts = f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()
        self._client = MlflowClient(uri)
        self._last: dict[str, int] = {}  # metric to its last step that an earlier process recorded
        run_id = info.remembered("mlflow").get("id")
        self._resumed = run_id is not None
        self._id = run_id or self._create(info, artifacts)
        if self._resumed:
            self._client.update_run(self._id, "RUNNING")
        info.remember("mlflow", id=self._id, hint=f"MLflow: mlflow ui --backend-store-uri {uri}")

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        """Record the values in one batch."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        named = {f"{split}/{key}": value for key, value in values.items()}
        metrics = [Metric(key, value, now, step) for key, value in named.items() if step > self._step_before(key)]
        self._client.log_batch(self._id, metrics=metrics)

    def predictions(self, step: int, name: str, rows: Sequence[PredictionRow]) -> None:
        """Store the rows as a text file among the artifacts, one for each evaluation."""
        joined = "\n\n".join(f"# {row.id}\n\n{row.summary}" for row in rows)
        self._client.log_text(self._id, joined + "\n", f"{name}/{step:06}.txt")

    def chart(self, step: int, chart: Chart) -> None:
        """Store the picture of a chart among the artifacts."""
        self._client.log_image(self._id, chart.image(), artifact_file=f"charts/{chart.name}/{step:06}.png")

    def attach(self, step: int, path: Path) -> None:
        """Store the page and the Markdown of the report among the artifacts."""
        for file in (path, path.with_suffix(".md")):
            self._client.log_artifact(self._id, str(file))

    def finish(self, state: str) -> None:
        """End the MLflow run."""
        self._client.set_terminated(self._id, _STATES[state])

    def _create(self, info: RunInfo, artifacts: str | None) -> str:
        from mlflow.entities import Param

        settings, client = info.settings, self._client
        experiment = client.get_experiment_by_name(settings.project)
        experiment_id = (
            experiment.experiment_id if experiment else client.create_experiment(settings.project, artifacts)
        )
        tags = {f"tag.{tag}": "yes" for tag in settings.tags} | {"group": settings.group or ""}
        note = {"mlflow.note.content": settings.description} if settings.description else {}
        run_id: str = client.create_run(experiment_id, run_name=info.name, tags={**tags, **note}).info.run_id
        client.log_dict(run_id, dict(info.config), "config.json")
        leaves = {
            key: value if isinstance(value, str) else to_json(value) for key, value in flattened(info.config).items()
        }
        params = [Param(key, value) for key, value in leaves.items() if len(value) <= _LONGEST]
        for start in range(0, len(params), 100):  # a request may have at most 100 parameters
            client.log_batch(run_id, params=params[start : start + 100])
        return run_id

    def _step_before(self, key: str) -> int:
        if self._resumed and key not in self._last:
            history = self._client.get_metric_history(self._id, key)
            self._last[key] = max((metric.step for metric in history), default=-1)
        return self._last.get(key, -1)
