"""Where a run is recorded: `metrics.jsonl` always, SwanLab by default, other dashboards beside it.

`metrics.jsonl` is the durable record: a line is written before the step counts as done, so a hard kill loses no
finished step. Dashboards get the same figures, with charts and predictions, in processes of their own; none can delay
a step or end a run. A resumed run sends them its whole history again, since a killed one may have lost any part of it.
A value that is not finite is `null` in the file and is not sent to dashboards, since one NaN breaks SwanLab's board; a
warning says so once.
"""

from __future__ import annotations

import functools
import logging
import math
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from spantune.core import DataError, Document, config, masked_values, require_extra
from spantune.data import formats
from spantune.runs.folder import METRICS_FILE, RunFolder
from spantune.runs.journal import JsonlTracker
from spantune.runs.trackers import charts
from spantune.runs.trackers.interface import Call, RunInfo, Tracker
from spantune.runs.trackers.mlflow import MlflowTracker
from spantune.runs.trackers.notify import NotifyTracker, require_variables
from spantune.runs.trackers.process import FINISH_SECONDS, Backend, TrackerProcess
from spantune.runs.trackers.swanlab import SwanlabTracker, require_key, swanlab_environment
from spantune.runs.trackers.tensorboard import TensorboardTracker
from spantune.runs.trackers.wandb import WandbTracker

OPEN_SECONDS = 20.0
"""Longest that a run waits for its trackers to open; one that opens later gets the calls that it has missed."""
QUEUE_SIZE = 10_000
"""Calls that may wait for a tracker; a tracker that falls further behind is dropped, since its queue takes memory."""
TITLES = {
    "swanlab": "SwanLab",
    "tensorboard": "TensorBoard",
    "wandb": "Weights & Biases",
    "mlflow": "MLflow",
    "notify": "The sender of notifications",
}
_BACKENDS: dict[str, Backend] = {
    "swanlab": SwanlabTracker,
    "tensorboard": TensorboardTracker,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
    "notify": NotifyTracker,
}
_MODULES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}
log = logging.getLogger(__name__)


class Remote(Tracker, Protocol):
    """A tracker in another process."""

    def open(self) -> None:
        """Start it and wait until it can be called; raises when it never can."""

    def kill(self) -> None:
        """End it at once, even in the middle of a call."""


class Worker:
    """The queue and thread of one tracker, so that a dashboard that is slow, full or gone delays no step.

    A call costs the run the time to put it into the queue. A hard kill loses what is still in the queue, which
    `metrics.jsonl` has: a resumed run sends its trackers everything again.

    Args:
        name: its name for people.
        tracker: it is called in the thread.
    """

    def __init__(self, name: str, tracker: Remote):
        self.name, self._tracker = name, tracker
        self._calls: queue.Queue[Call] = queue.Queue(QUEUE_SIZE)
        self._settled = threading.Event()
        self.dropped = False  # whether it failed or fell too far behind, which was logged
        self._finished = self._killed = False
        self._thread = threading.Thread(target=self._work, name=f"track {name}", daemon=True)
        self._thread.start()

    def settled(self, seconds: float) -> bool:
        """Whether the tracker has opened, or failed to, within this time."""
        return self._settled.wait(seconds)

    def put(self, call: Call) -> None:
        """Queue a call; it is ignored when the tracker was dropped."""
        if self.dropped:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self.dropped = True
            log.error("%s is %d calls behind and is dropped; the run goes on", self.name, QUEUE_SIZE)

    def finish(self, state: str) -> None:
        """Queue the call that closes the tracker."""

        def last(tracker: Tracker) -> None:
            tracker.finish(state)
            self._finished = True

        self.put(last)

    def finished(self, seconds: float) -> bool:
        """Whether the tracker took every call and ended within this time; otherwise it is killed."""
        self._thread.join(0 if self.dropped else seconds)
        if not self._finished:
            self._killed = True  # so that its end is not reported as a failure
            self._tracker.kill()
        return self._finished

    def _work(self) -> None:
        problem = "could not start"
        try:
            self._tracker.open()
            self._settled.set()
            problem = "failed and is dropped"
            while not self._finished:
                self._calls.get()(self._tracker)
        except Exception as error:  # whatever an SDK raises: training goes on without its dashboard
            if not self.dropped and not self._killed:
                self.dropped = True
                log.error("%s %s (%s); the run goes on", self.name, problem, error)
        finally:
            self._settled.set()


class Trackers:
    """All trackers of a run: its file, and the dashboards.

    Args:
        info: what they are told about the run.
        record: the file, which is written first.
        workers: the dashboards.
    """

    def __init__(self, info: RunInfo, record: JsonlTracker, workers: Sequence[Worker] = ()):
        self._info, self._record, self._workers = info, record, list(workers)
        self._not_finite: set[str] = set()  # keys of which a warning was logged

    def metrics(self, step: int, values: Mapping[str, float | None], split: str = "train") -> None:
        """Record scalars everywhere; None is null in the file and not shown on dashboards."""
        self._record.metrics(step, values, split)
        for key, value in values.items():
            if value is not None and not math.isfinite(value) and key not in self._not_finite:
                self._not_finite.add(key)
                warning = "%s/%s is %s at step %d: null in %s, and no dashboard shows values that are not finite"
                log.warning(warning, split, key, value, step, METRICS_FILE)
        self._tell(scalars(step, values, split))

    def measuring(
        self,
        step: int,
        split: str,
        values: Mapping[str, float | None],
        gold: Sequence[Document],
        predicted: Sequence[Document],
    ) -> None:
        """Record the figures of an evaluation everywhere; the dashboards show predictions and charts too."""
        self.metrics(step, values, split)
        self._tell(documents(self._info, (step, split), values, gold, predicted))

    def attach(self, step: int, path: Path) -> None:
        """Attach the closing report to the dashboards."""
        self._tell(lambda tracker: tracker.attach(step, path))

    def tell(self, calls: Iterable[Call]) -> None:
        """Queue calls for all dashboards."""
        for call in calls:
            for worker in self._workers:
                worker.put(call)

    def finish(self, state: str) -> None:
        """Close all records; the dashboards together have FINISH_SECONDS for it."""
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
    """The call that records scalars, without those that are not finite."""
    finite = {key: value for key, value in values.items() if value is not None and math.isfinite(value)}
    return lambda tracker: tracker.metrics(step, finite, split)


def documents(
    info: RunInfo,
    place: tuple[int, str],
    values: Mapping[str, float | None],
    gold: Sequence[Document],
    predicted: Sequence[Document],
) -> Call:
    """The call that records the predictions on a split at a step: rows of the first documents, and the charts."""
    step, split = place
    first = info.settings.predictions
    rows = charts.panel(gold[:first], predicted[:first])
    name = "Prediction" if split == "dev" else f"Prediction ({split})"
    # built in a dashboard's thread, and once for all of them
    all_charts = functools.cache(lambda: charts.charts(split, values, gold, predicted, info.labels))

    def call(tracker: Tracker) -> None:
        if rows:
            tracker.predictions(step, name, rows)
        for chart in all_charts():
            tracker.chart(step, chart)

    return call


def history(info: RunInfo) -> Iterator[Call]:
    """The calls that record everything that a run has recorded so far."""
    run = RunFolder(info.folder)
    for record in run.metrics():
        step, split = record["step"], record.get("split", "train")
        values = {key: value for key, value in record.items() if key not in ("step", "time", "split")}
        yield scalars(step, values, split)
        path = run.predictions(split, step)
        gold_by_id = info.gold.get(split)
        if not gold_by_id or not path.is_file():
            continue
        try:
            predicted = formats.read(path, "native").documents
        except DataError as error:  # torn by a kill: its figures are shown without the documents
            log.warning("%s is not shown again: %s", path.name, error)
            continue
        gold = [gold_by_id[document.id] for document in predicted if document.id in gold_by_id]
        if [document.text for document in gold] == [document.text for document in predicted]:
            yield documents(info, (step, split), values, gold, predicted)
        else:
            log.warning("%s is not shown again: the %s documents have changed since", path.name, split)


def require_trackers(settings: config.Track) -> None:
    """Check before a run folder is made that the trackers can be used.

    Raises:
        ConfigError: a tracker is not installed, SwanLab's online mode has no API key and would block on a prompt, or
            the variables of a notification are not set.
    """
    for name in settings.also:
        require_extra(f"track.also={name}", name, _MODULES[name])
    if settings.swanlab == "online":
        require_key()
    require_variables(settings.notify)


def open_trackers(
    recipe: config.Config,
    folder: Path,
    gold: Mapping[str, Iterable[Document]] | None = None,
    labels: Sequence[str] = (),
) -> Trackers:
    """Open the trackers of a recipe; those of a resumed run get everything that `metrics.jsonl` holds.

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
    """What trackers are told, credentials masked: the whole recipe, and the environment that the run folder holds."""
    run = RunFolder(folder)
    environment = run.environment() if run.environment_file.is_file() else {}
    by_id = {split: {document.id: document for document in split_documents} for split, split_documents in gold.items()}
    settings = masked_values({**recipe.model_dump(mode="json"), "environment": environment})
    assert isinstance(settings, dict)
    track = config.Track.model_validate(settings["track"])
    return RunInfo(folder, track.experiment or recipe.run.name, track, settings, labels, by_id)


def _opening(info: RunInfo) -> dict[str, Remote]:
    """The trackers of a run, each for a process of its own."""
    settings = info.settings
    names = [
        *([] if settings.swanlab == "off" else ["swanlab"]),
        *settings.also,
        *(["notify"] if settings.notify else []),
    ]
    return {
        name: TrackerProcess(name, _BACKENDS[name], info, swanlab_environment() if name == "swanlab" else None)
        for name in names
    }
