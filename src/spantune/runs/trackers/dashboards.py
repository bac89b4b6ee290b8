"""The records of a run: the file `metrics.jsonl`, SwanLab by default, and further dashboards.

`metrics.jsonl` is the durable record. Its line is written before a step counts as done, so a hard kill loses no
finished step. Dashboards get the same figures, and charts and predictions too. Each dashboard runs in its own process,
so it can neither delay a step nor end the run. A resumed run sends its dashboards the whole history again, since the
dashboards of a killed run may have lost any part of it. A value that is not finite is `null` in the file. It is not
sent to dashboards, since one NaN breaks SwanLab's board; one warning says so.
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
"""The maximum time, in seconds, that a run waits for its trackers to open.

A tracker that opens later gets the calls that it has missed.
"""
QUEUE_SIZE = 10_000
"""The maximum number of calls that wait for a tracker.

A tracker with more waiting calls is dropped, since its queue would take too much memory.
"""
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
        """Start the process, and wait until the tracker can be called. Raises an error if it cannot be opened."""

    def kill(self) -> None:
        """Kill the process at once, even in the middle of a call."""


class Worker:
    """The queue and thread of one tracker, so that a slow, full or missing dashboard never delays a step.

    The run only puts a call into the queue. A hard kill loses the calls in the queue; the same figures are in
    `metrics.jsonl`, from which a resumed run sends its trackers everything again.

    Args:
        name: the name of the tracker for messages.
        tracker: the tracker, which is called in the thread.
    """

    def __init__(self, name: str, tracker: Remote):
        self.name, self._tracker = name, tracker
        self._calls: queue.Queue[Call] = queue.Queue(QUEUE_SIZE)
        self._settled = threading.Event()
        self.dropped = False  # whether the tracker failed or fell too far behind; an error was then logged
        self._finished = self._killed = False
        self._thread = threading.Thread(target=self._work, name=f"track {name}", daemon=True)
        self._thread.start()

    def settled(self, seconds: float) -> bool:
        """Wait at most `seconds`, and return whether the tracker has opened or failed to open."""
        return self._settled.wait(seconds)

    def put(self, call: Call) -> None:
        """Put a call into the queue. It is ignored if the tracker was dropped."""
        if self.dropped:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self.dropped = True
            log.error("%s is %d calls behind and is dropped; the run goes on", self.name, QUEUE_SIZE)

    def finish(self, state: str) -> None:
        """Put the call that closes the tracker into the queue."""

        def last(tracker: Tracker) -> None:
            tracker.finish(state)
            self._finished = True

        self.put(last)

    def finished(self, seconds: float) -> bool:
        """Wait at most `seconds` for the tracker, and return whether it took every call and ended; if not, kill it."""
        self._thread.join(0 if self.dropped else seconds)
        if not self._finished:
            self._killed = True  # so that the end of its process is not reported as a failure
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
        except Exception as error:  # an SDK may raise any error, and training goes on without this dashboard
            if not self.dropped and not self._killed:
                self.dropped = True
                log.error("%s %s (%s); the run goes on", self.name, problem, error)
        finally:
            self._settled.set()


class Trackers:
    """All records of a run: the file `metrics.jsonl`, and the dashboards.

    Args:
        info: the facts about the run.
        record: the writer of `metrics.jsonl`, which is always called first.
        workers: the dashboards.
    """

    def __init__(self, info: RunInfo, record: JsonlTracker, workers: Sequence[Worker] = ()):
        self._info, self._record, self._workers = info, record, list(workers)
        self._not_finite: set[str] = set()  # the keys about which a warning was logged

    def metrics(self, step: int, values: Mapping[str, float | None], split: str = "train") -> None:
        """Record figures in the file and on the dashboards.

        None and values that are not finite are null in the file, and are not sent to dashboards.

        Args:
            step: the number of steps that are done.
            values: the figures by name.
            split: the split that the figures are about.
        """
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
        """Record the figures of an evaluation; dashboards also get predictions and charts.

        Args:
            step: the number of steps that are done.
            split: the split that was evaluated.
            values: the figures by name.
            gold: the annotated documents.
            predicted: the same documents with the predicted entities, in the same order.
        """
        self.metrics(step, values, split)
        self._tell(documents(self._info, (step, split), values, gold, predicted))

    def attach(self, step: int, path: Path) -> None:
        """Attach the report of the run, the HTML page `path`, on the dashboards."""
        self._tell(lambda tracker: tracker.attach(step, path))

    def tell(self, calls: Iterable[Call]) -> None:
        """Put calls into the queues of all dashboards."""
        for call in calls:
            for worker in self._workers:
                worker.put(call)

    def finish(self, state: str) -> None:
        """Close all records. All dashboards together have FINISH_SECONDS for this; then they are killed.

        Args:
            state: `success`, `crashed` or `aborted`.
        """
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
    """Return the call that records the figures `values` of a split at a step, without those that are not finite."""
    finite = {key: value for key, value in values.items() if value is not None and math.isfinite(value)}
    return lambda tracker: tracker.metrics(step, finite, split)


def documents(
    info: RunInfo,
    place: tuple[int, str],
    values: Mapping[str, float | None],
    gold: Sequence[Document],
    predicted: Sequence[Document],
) -> Call:
    """Return the call that records the predictions for the first documents of an evaluation, and its charts.

    Args:
        info: the facts about the run; `track.predictions` is the number of documents.
        place: the step and the split.
        values: the figures of the evaluation by name.
        gold: the annotated documents.
        predicted: the same documents with the predicted entities, in the same order.
    """
    step, split = place
    first = info.settings.predictions
    rows = charts.panel(gold[:first], predicted[:first])
    name = "Prediction" if split == "dev" else f"Prediction ({split})"
    # the charts are made once for all dashboards, in the thread of the first one that needs them
    all_charts = functools.cache(lambda: charts.charts(split, values, gold, predicted, info.labels))

    def call(tracker: Tracker) -> None:
        if rows:
            tracker.predictions(step, name, rows)
        for chart in all_charts():
            tracker.chart(step, chart)

    return call


def history(info: RunInfo) -> Iterator[Call]:
    """Yield the calls that record again everything that a run has recorded so far, from the files of its folder."""
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
        except DataError as error:  # the file is incomplete after a kill; its figures are sent without documents
            log.warning("%s is not shown again: %s", path.name, error)
            continue
        gold = [gold_by_id[document.id] for document in predicted if document.id in gold_by_id]
        if [document.text for document in gold] == [document.text for document in predicted]:
            yield documents(info, (step, split), values, gold, predicted)
        else:
            log.warning("%s is not shown again: the %s documents have changed since", path.name, split)


def require_trackers(settings: config.Track) -> None:
    """Check that the trackers can be used, before a run folder is made.

    Raises:
        ConfigError: a tracker is not installed, SwanLab's online mode has no API key (it would wait at a prompt), or
            an environment variable of a notification is not set.
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
    """Open the trackers of a run. They get everything that `metrics.jsonl` holds, as of a resumed run.

    Args:
        recipe: the resolved recipe.
        folder: the run folder.
        gold: split to annotated documents, to show predictions beside them.
        labels: the codes of the label set.

    Raises:
        ConfigError: as `require_trackers`.
        OSError: `metrics.jsonl` cannot be opened.
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
    """Return the facts about a run for its trackers, with credentials masked.

    Args:
        recipe: the resolved recipe.
        folder: the run folder, from which the environment is read.
        gold: split to annotated documents.
        labels: the codes of the label set.
    """
    run = RunFolder(folder)
    environment = run.environment() if run.environment_file.is_file() else {}
    by_id = {split: {document.id: document for document in split_documents} for split, split_documents in gold.items()}
    settings = masked_values({**recipe.model_dump(mode="json"), "environment": environment})
    assert isinstance(settings, dict)
    track = config.Track.model_validate(settings["track"])
    return RunInfo(folder, track.experiment or recipe.run.name, track, settings, labels, by_id)


def _opening(info: RunInfo) -> dict[str, Remote]:
    """Return name to tracker for the trackers of a run, each of which will have its own process."""
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
