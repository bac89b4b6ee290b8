"""Weights & Biases: online if `track.swanlab` is `online`, else in `wandb/` of the run folder, for `wandb sync`.

The environment variable `WANDB_MODE` takes precedence. W&B itself reads its API key, from `WANDB_API_KEY` or from
`wandb login`. A resumed run continues under the same id. Offline, it gets a new folder with the whole history.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from spantune.runs.trackers.interface import Chart, PredictionRow, RunInfo


class WandbTracker:
    """The record of a run in W&B."""

    def __init__(self, info: RunInfo):
        import wandb

        self._wandb = wandb
        settings = info.settings
        mode = os.environ.get("WANDB_MODE") or ("online" if settings.swanlab == "online" else "offline")
        # the output of the console is in run.log already; the host name, command line and git remote are private
        private = {
            "disable_git": True,
            "disable_code": True,
            "x_disable_machine_info": True,
            "x_save_requirements": False,
        }
        self._run = wandb.init(
            id=info.remembered("wandb").get("id") or secrets.token_hex(8),
            resume="allow",
            mode=mode,
            dir=str(info.folder),
            project=settings.project,
            name=info.name,
            notes=settings.description,
            tags=list(settings.tags),
            group=settings.group,
            job_type=settings.job_type,
            config=dict(info.config),
            settings=wandb.Settings(silent=True, console="off", **private),
        )
        hint = f"W&B: recorded offline; send it with: wandb sync {Path(self._run.dir).parent}"
        if not self._run.offline and self._run.url:
            hint = f"W&B: {self._run.url}"
        info.remember("wandb", id=self._run.id, hint=hint, url=None if self._run.offline else self._run.url)

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        """Log the values. W&B merges several calls for the same step."""
        self._run.log({f"{split}/{key}": value for key, value in values.items()}, step=step)

    def predictions(self, step: int, name: str, rows: Sequence[PredictionRow]) -> None:
        """Log a table, which can be sorted."""
        data = [list(row.cells) for row in rows]
        self._run.log({name: self._wandb.Table(columns=list(PredictionRow.COLUMNS), data=data)}, step=step)

    def chart(self, step: int, chart: Chart) -> None:
        """Log the picture of a chart."""
        self._run.log({chart.name: self._wandb.Image(chart.image(), caption=chart.caption)}, step=step)

    def attach(self, step: int, path: Path) -> None:
        """Log the HTML page of the report, which W&B shows."""
        self._run.log({"report": self._wandb.Html(path.read_text(encoding="utf-8"), inject=False)}, step=step)

    def finish(self, state: str) -> None:
        """Close the run, with an exit code, since W&B has no states: 0 for `success`, else 1."""
        self._run.finish(exit_code=0 if state == "success" else 1)
