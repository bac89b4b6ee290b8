"""TensorBoard: event files in `tensorboard/` of the run folder, written by tensorboardX, which needs no torch.

A resumed run writes the event files again from `metrics.jsonl`, so they have no gap and no step twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from spantune.core import to_json
from spantune.runs.folder import RunFolder
from spantune.runs.trackers.interface import Chart, PredictionRow, RunInfo


class TensorboardTracker:
    """The event files of a run. Files of an earlier process of the run are removed."""

    def __init__(self, info: RunInfo):
        from tensorboardX import SummaryWriter

        folder = RunFolder(info.folder).tensorboard
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder), flush_secs=10)
        self._text("run", 0, {"name": info.name, "description": info.settings.description or "none"})
        self._writer.add_text("config", _code(to_json(info.config, indent=2)), 0)
        info.remember("tensorboard", hint=f"TensorBoard: tensorboard --logdir {folder}")

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        """Write a scalar for each key, with the tag `<split>/<key>`."""
        for key, value in values.items():
            self._writer.add_scalar(f"{split}/{key}", value, step)

    def predictions(self, step: int, name: str, rows: Sequence[PredictionRow]) -> None:
        """Write the rows as one Markdown text."""
        self._text(name, step, {row.id: row.summary for row in rows})

    def chart(self, step: int, chart: Chart) -> None:
        """Write the picture of a chart."""
        import numpy as np

        self._writer.add_image(chart.name, np.asarray(chart.image()), step, dataformats="HWC")

    def attach(self, step: int, path: Path) -> None:
        """Write the Markdown of the report, since TensorBoard shows no HTML pages."""
        self._writer.add_text("report", path.with_suffix(".md").read_text(encoding="utf-8"), step)

    def finish(self, state: str) -> None:
        """Write the state, and close the event files."""
        self._writer.add_text("state", state)
        self._writer.close()

    def _text(self, name: str, step: int, texts: Mapping[str, str]) -> None:
        self._writer.add_text(name, "\n".join(f"**{key}**\n{_code(text)}" for key, text in texts.items()), step)


def _code(text: str) -> str:
    """Return `text` as an indented block, which Markdown shows unchanged."""
    return "\n" + "".join(f"    {line}\n" for line in text.splitlines() if line)
