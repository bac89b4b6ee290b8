"""SwanLab's local board, a folder that several runs share: its charts are put into groups, and writing is locked.

SwanLab 0.10 puts all charts of its local board into one group, in the order in which they arrive. Its database has no
lock, so that of two runs that begin at the same moment one is renamed or loses charts. This module makes every write to
a board under a lock and moves each chart to the group of its key. A figure that is a single value and not a curve gets
a hidden chart; the tables of the board still show the value.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from spantune.core import file_lock

SECTIONS = ("train", "dev", "dev by type", "predictions", "speed")
"""The groups of charts, in the order of the board."""
PATIENCE = 60.0
"""The maximum time, in seconds, that a run waits for another one that writes to the same board."""
_SPEED = (
    "examples_per_s",
    "tokens_per_s",
    "step_ms",
    "padding_share",
    "peak_gib",
    "peak_rss_gib",
    "evaluation_seconds",
)
_BY_TYPE = ("f1/", "f1_low/", "f1_high/")
_COUNTS = ("documents", "memory_splits", "left_out")
_CURVES = ("loss", "f1", "f1_low", "f1_high", "precision", "recall", "macro_f1")
log = logging.getLogger(__name__)


def section(key: str) -> str:
    """Return the group of the chart of a key: a scalar, such as `train/loss`, or a panel, such as `Prediction`."""
    split, slash, name = key.partition("/")
    if not slash:
        return "predictions"
    if name in _SPEED:
        return "speed"
    return "dev by type" if split == "dev" and name.startswith(_BY_TYPE) else split


def is_summary(key: str) -> bool:
    """Whether a scalar is shown as a value and not as a curve: a count, or a figure that a run has once or twice."""
    split, slash, name = key.partition("/")
    return bool(slash) and (split in ("test", "plan") or name in _COUNTS)


def group_charts(board: Path) -> None:
    """Change SwanLab in this process so that it writes to the local board `board` in groups and under a lock."""
    from swanlab.deprecated import local

    local.LocalCallbacker = _grouped(local.LocalCallbacker, board)


def hide_constants(board: Path, directory: str, keys: Iterable[str]) -> None:
    """Hide the charts of a run whose curves are constant, except those of loss, F1, precision and recall.

    Args:
        board: the folder of the board.
        directory: the name of the folder of the run's record in the board.
        keys: the keys of the charts with constant curves.
    """
    from swanboard.db.models import Chart, Experiment

    with _alone(board):
        experiment = Experiment.filter(Experiment.run_id == directory).first()
        if experiment is None:  # a user deleted the run on the board while it was recorded
            return
        names = [key for key in keys if key.partition("/")[2] not in _CURVES]
        charts = Chart.select().where(Chart.experiment_id == experiment.id, Chart.name.in_(names), Chart.status == 0)
        for chart in list(charts):
            Chart.hide(chart.id)


def take_out(board: Path, directory: str, target: Path) -> None:
    """Remove the record of an earlier process of a run from the board, and move its files to the folder `target`.

    Args:
        board: the folder of the board.
        directory: the name of the folder of the record in the board; "" if there is no record.
        target: the folder to which that folder is moved.
    """
    if not directory or not (board / directory).is_dir():
        return
    from swanboard.db import connect
    from swanboard.db.models import Chart, Experiment, Source

    with _alone(board):
        connect(path=str(board), autocreate=True)
        Experiment.delete().where(Experiment.run_id == directory).execute()
        # remove charts over all runs that have no run left, since they would break the next run with such a chart
        in_use = Source.select(Source.chart_id)
        Chart.delete().where(Chart.project_id.is_null(False), Chart.id.not_in(in_use)).execute()
        target.mkdir(parents=True, exist_ok=True)
        shutil.move(board / directory, target / directory)


def _alone(board: Path) -> AbstractContextManager[None]:
    board.mkdir(parents=True, exist_ok=True)
    return file_lock(board / "board.lock", PATIENCE)


def _grouped(base: Any, board: Path) -> Any:
    """Return a subclass of SwanLab's writer of the local board, `base`, for the board in the folder `board`."""

    class GroupedBoard(base):
        """A writer that holds the lock of the board and moves each new chart to its group."""

        def on_run_initialized(self, *args: Any, **kwargs: Any) -> None:
            """Begin the record, and create the groups in their order."""
            from swanboard.db import ExistedError
            from swanboard.db.models import Namespace

            self._placed: set[str] = set()
            self._is_gone = False
            with _alone(board):
                super().on_run_initialized(*args, **kwargs)
                for owner in ({"experiment_id": self.exp.id}, {"project_id": self.exp.project_id.id}):
                    for name in SECTIONS:
                        with suppress(ExistedError):
                            Namespace.create(name, **owner)

        def on_scalar_flush(self, scalar_records: list[Any], *args: Any, **kwargs: Any) -> None:
            """Write scalars."""
            self._write(super().on_scalar_flush, scalar_records)

        def on_media_flush(self, media_records: list[Any], *args: Any, **kwargs: Any) -> None:
            """Write texts and pictures."""
            self._write(super().on_media_flush, media_records)

        def on_run_finished(self, *args: Any, **kwargs: Any) -> None:
            """Close the record."""
            with _alone(board):
                if not self._is_gone:
                    super().on_run_finished(*args, **kwargs)

        def _write(self, write: Callable[[list[Any]], None], records: list[Any]) -> None:
            if self._is_gone:
                return
            try:
                with _alone(board):
                    write(records)
                    self._place(records)
            except KeyboardInterrupt:  # SwanLab raises it if a user deleted or stopped the run on the board
                self._is_gone = True
                log.warning("the run was deleted or stopped on SwanLab's board, which gets no more of it; it goes on")

        def _place(self, records: Iterable[Any]) -> None:
            for key in dict.fromkeys(record.key for record in records if record.key not in self._placed):
                self._placed.add(key)
                _put_into_group(key, self.exp)

    return GroupedBoard


def _put_into_group(key: str, experiment: Any) -> None:
    """Move the charts of a key to their group: the run's own chart, and the chart over all runs if it is new."""
    from swanboard.db import ExistedError
    from swanboard.db.models import Chart, Display, Namespace

    of_project = Chart.project_id == experiment.project_id.id
    for chart in Chart.select().where(Chart.name == key, (Chart.experiment_id == experiment.id) | of_project):
        if chart.project_id is not None and chart.sources.count() > 1:
            continue  # the chart over all runs was moved when the first of these runs recorded it
        owner = {"experiment_id": chart.experiment_id_id, "project_id": chart.project_id_id}
        with suppress(ExistedError):
            Namespace.create(section(key), **owner)
        namespace = Namespace.get(name=section(key), **owner)
        Display.update(namespace_id=namespace.id).where(Display.chart_id == chart.id).execute()
        if is_summary(key):
            Chart.hide(chart.id)
