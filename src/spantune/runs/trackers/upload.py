"""Upload of a run's record to SwanLab's cloud after training (`spantune sync`).

A run is uploaded once, under the id that it got when it started. If it was recorded offline to its end, it is sent from
SwanLab's store, which has the time of every point. If it was killed, recorded locally, or lost its connection to the
cloud, its record is made again from `metrics.jsonl` and `predictions/`. Points that the cloud already has are not sent
again. A run that is still being recorded is refused.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

from spantune.core import Config, DataError, RunError
from spantune.data import read_splits
from spantune.runs.folder import RunFolder
from spantune.runs.trackers.dashboards import history, run_info
from spantune.runs.trackers.interface import RunInfo
from spantune.runs.trackers.process import call_apart
from spantune.runs.trackers.swanlab import NAME, SwanlabTracker, require_key, swanlab_environment, sync_store

SECONDS = 600.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sent:
    """The result of an upload.

    Args:
        id: the id of the run in SwanLab's cloud.
        url: the page of the run; None if it is not known.
        before: whether the run had been uploaded before, so that nothing was sent now.
    """

    id: str
    url: str | None
    before: bool


def sync(folder: Path, seconds: float = SECONDS) -> Sent:
    """Send the record of a run to SwanLab's cloud, unless it was sent before.

    Args:
        folder: the run folder.
        seconds: the maximum time that the upload may take.

    Raises:
        ConfigError: there is no API key.
        RunError: the folder is not a run folder, or the cloud cannot be used or has not taken everything in time.
    """
    run = RunFolder(folder)
    info = _info(run.config(), run)
    note = info.remembered(NAME)
    if note.get("sent"):
        return Sent(note["id"], note.get("url"), True)
    require_key()
    is_stored = note.get("mode") == "offline" and note.get("state") in ("success", "crashed", "aborted")
    try:
        call_apart(seconds, sync_store if is_stored else send_again, info, environment=swanlab_environment())
    except TimeoutError:
        raise RunError(
            f"{folder}: SwanLab's cloud has not taken everything in {seconds:.0f} s; run this again, it goes on"
        ) from None
    note = info.remembered(NAME)
    return Sent(note["id"], note.get("url"), False)


def send_again(info: RunInfo) -> None:
    """Record a run in SwanLab's cloud again, from the files of its run folder.

    Raises:
        RunError: the cloud cannot be used, or another process records the run.
    """
    run = RunFolder(info.folder)
    with info.owned(NAME), tempfile.TemporaryDirectory() as aside:
        state = info.remembered(NAME).get("state", "running")
        tracker = SwanlabTracker(info, Path(aside))
        for call in history(info):
            call(tracker)
        if run.is_finished:
            tracker.attach(max((record["step"] for record in run.metrics()), default=0), run.report_html)
        tracker.finish("success" if run.is_finished else "aborted" if state == "running" else state)


def _info(recipe: Config, run: RunFolder) -> RunInfo:
    track = recipe.track.model_copy(update={"swanlab": "online"})
    recipe = recipe.model_copy(update={"track": track})
    try:
        splits = read_splits(recipe.data)
    except DataError as error:
        log.warning("the predictions are not sent, since their documents cannot be read: %s", error)
        return run_info(recipe, run.path, {}, ())
    gold = {"dev": splits.dev, "test": splits.test}
    return run_info(recipe, run.path, gold, run.task().codes)
