"""Where a run is recorded: `metrics.jsonl` always, SwanLab by default, other dashboards beside it.

`metrics.jsonl` is the durable record: a line is with the system before the step counts as done, so a hard kill loses
no finished step. Dashboards get what it holds, and charts and predictions with it, in processes of their own; none can
delay a step or end a run. A resumed run tells them its whole history again, since a killed one may have lost any part.
A value that is not finite is `null` here and is left out there, which is said once: one NaN breaks SwanLab's board.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spantune.core import ConfigError, DataError, Document, config
from spantune.data import formats
from spantune.runs.journal import METRICS_FILE, JsonlTracker, read_metrics
from spantune.runs.trackers import charts
from spantune.runs.trackers.interface import Call, RunInfo, Tracker
from spantune.runs.trackers.mlflow import MlflowTracker
from spantune.runs.trackers.process import FINISH_SECONDS, Backend, TrackerProcess
from spantune.runs.trackers.queue import Remote, Worker
from spantune.runs.trackers.swanlab import SwanlabTracker, require_key, swanlab_environment
from spantune.runs.trackers.tensorboard import TensorboardTracker
from spantune.runs.trackers.wandb import WandbTracker

OPEN_SECONDS = 20.0
"""Most that a run waits for its trackers to open; one that opens later gets what it has missed."""
TITLES = {"swanlab": "SwanLab", "tensorboard": "TensorBoard", "wandb": "Weights & Biases", "mlflow": "MLflow"}
_BACKENDS: dict[str, Backend] = {
    "swanlab": SwanlabTracker,
    "tensorboard": TensorboardTracker,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
}
_MODULES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}
log = logging.getLogger(__name__)


class Trackers:
    """All trackers of a run: its file, and the dashboards.

    Args:
        info: what they were told of the run.
        record: what is written before anything else.
        workers: the dashboards.
    """

    def __init__(self, info: RunInfo, record: JsonlTracker, workers: Sequence[Worker] = ()):
        self._info, self._record, self._workers = info, record, list(workers)
        self._left_out: set[str] = set()

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        """Record scalars everywhere."""
        self._record.metrics(step, values, split)
        for key, value in values.items():
            if not math.isfinite(value) and key not in self._left_out:
                self._left_out.add(key)
                said = "%s/%s is %s at step %d: null in %s, and no dashboard shows values that are not finite"
                log.warning(said, split, key, value, step, METRICS_FILE)
        self._tell(scalars(step, values, split))

    def measuring(
        self,
        step: int,
        split: str,
        values: Mapping[str, float],
        gold: Sequence[Document],
        predicted: Sequence[Document],
    ) -> None:
        """Record the figures of a measuring everywhere; the dashboards show predictions and charts too."""
        self.metrics(step, values, split)
        self._tell(documents(self._info, (step, split), values, gold, predicted))

    def attach(self, step: int, path: Path) -> None:
        """Attach the closing report to the dashboards."""
        self._tell(lambda tracker: tracker.attach(step, path))

    def tell(self, calls: Iterable[Call]) -> None:
        """Have the dashboards called, all of them."""
        for call in calls:
            for worker in self._workers:
                worker.put(call)

    def finish(self, state: str) -> None:
        """Close all records; the dashboards get FINISH_SECONDS for it."""
        try:
            self._record.finish(state)
        except OSError as error:
            log.error("%s cannot be written (%s); the run goes on", METRICS_FILE, error)
        for worker in self._workers:
            worker.finish(state)
        deadline = time.monotonic() + FINISH_SECONDS
        for worker in self._workers:
            if not worker.finished(max(0.0, deadline - time.monotonic())) and not worker.dropped:
                log.error("%s has not taken everything in %.0f s and is left behind", worker.name, FINISH_SECONDS)
        self._workers = []

    def _tell(self, call: Call) -> None:
        self.tell([call])


def scalars(step: int, values: Mapping[str, float | None], split: str) -> Call:
    """Tells a tracker scalars; those that are not finite are left out."""
    finite = {key: value for key, value in values.items() if value is not None and math.isfinite(value)}
    return lambda tracker: tracker.metrics(step, finite, split)


def documents(
    info: RunInfo,
    place: tuple[int, str],
    values: Mapping[str, Any],
    gold: Sequence[Document],
    predicted: Sequence[Document],
) -> Call:
    """Tells a tracker what was predicted at a step of a split: the panel of the first documents, and the charts."""
    step, split = place
    first = info.settings.predictions
    texts = charts.panel(gold[:first], predicted[:first])
    name = "Prediction" if split == "dev" else f"Prediction ({split})"
    # made in a dashboard's thread, and not once for each of them
    drawn = functools.cache(lambda: charts.charts(split, values, gold, predicted, info.labels))

    def call(tracker: Tracker) -> None:
        if texts:
            tracker.texts(step, name, texts)
        for chart in drawn():
            tracker.chart(step, chart)

    return call


def history(info: RunInfo) -> Iterator[Call]:
    """Tells a tracker everything that a run has recorded so far."""
    for record in read_metrics(info.folder):
        step, split = record["step"], record.get("split", "train")
        values = {key: value for key, value in record.items() if key not in ("step", "time", "split")}
        yield scalars(step, values, split)
        path = info.folder / "predictions" / f"{split}-{step}.jsonl"
        known = info.gold.get(split)
        if not known or not path.is_file():
            continue
        try:
            predicted = formats.read(path, "native").documents
        except DataError as error:  # torn by the kill: its figures are shown without it
            log.warning("%s is not shown again: %s", path.name, error)
            continue
        gold = [known[document.id] for document in predicted if document.id in known]
        if [document.text for document in gold] == [document.text for document in predicted]:
            yield documents(info, (step, split), values, gold, predicted)
        else:
            log.warning("%s is not shown again: the %s documents have changed since", path.name, split)


def require_trackers(settings: config.Track) -> None:
    """Check what the trackers need before a run folder is made.

    Raises:
        ConfigError: a tracker is not installed, or SwanLab's online mode has no API key and would block on a prompt.
    """
    for name in settings.also:
        if not all(importlib.util.find_spec(module) for module in _MODULES[name]):
            raise ConfigError(f"track.also names {name}, which is not installed: pip install 'spantune[{name}]'")
    if settings.swanlab == "online":
        require_key()


def open_trackers(
    recipe: config.Config,
    folder: Path,
    gold: Mapping[str, Iterable[Document]] | None = None,
    labels: Sequence[str] = (),
) -> Trackers:
    """The trackers that a recipe asks for; those of a resumed run are told what `metrics.jsonl` holds.

    Args:
        recipe: of the run.
        folder: of the run.
        gold: its documents by split.
        labels: codes of its label set.

    Raises:
        ConfigError: as `require_trackers`.
    """
    require_trackers(recipe.track)
    info = run_info(recipe, folder, gold or {}, labels)
    workers = [Worker(TITLES[name], tracker) for name, tracker in _opening(info).items()]
    trackers = Trackers(info, JsonlTracker(folder), workers)
    deadline = time.monotonic() + OPEN_SECONDS
    for worker in workers:
        if not worker.settled(max(0.0, deadline - time.monotonic())):
            log.warning("%s has not opened in %.0f s; the run goes on, and it gets the rest", worker.name, OPEN_SECONDS)
    trackers.tell(history(info))
    return trackers


def run_info(
    recipe: config.Config, folder: Path, gold: Mapping[str, Iterable[Document]], labels: Sequence[str]
) -> RunInfo:
    """What trackers are told: the whole recipe, and the environment that the run folder keeps."""
    path = folder / "environment.json"
    environment = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known = {split: {document.id: document for document in found} for split, found in gold.items()}
    everything = {**recipe.model_dump(mode="json"), "environment": environment}
    return RunInfo(folder, recipe.track.experiment or recipe.run.name, recipe.track, everything, labels, known)


def _opening(info: RunInfo) -> dict[str, Remote]:
    """The trackers that a run asks for, each to be opened in a process of its own."""
    wanted = [*([] if info.settings.swanlab == "off" else ["swanlab"]), *info.settings.also]
    return {
        name: TrackerProcess(name, _BACKENDS[name], info, swanlab_environment() if name == "swanlab" else None)
        for name in wanted
    }
