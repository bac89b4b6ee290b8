"""Upload of a run's record to SwanLab's cloud after the run: once, under the id that the run has had from its start.

A run that was recorded offline to its end is sent from SwanLab's own store, which has the times of all points. The
record of a run that was killed, recorded locally, or cut off from the cloud is made again from `metrics.jsonl` and
`predictions/`. What the cloud has already is not sent again. A run that is still being recorded is refused.
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
    """The id of a run in SwanLab's cloud, its page where that is known, and whether it was sent before."""

    id: str
    url: str | None
    before: bool


def sync(folder: Path, seconds: float = SECONDS) -> Sent:
    """Send the record of a run to SwanLab's cloud, unless it is there.

    Raises:
        ConfigError: there is no API key.
        RunError: the folder is no run, or the cloud cannot be used or has not taken everything in `seconds`.
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
    """Make the run's record in SwanLab's cloud from the files of the run folder.

    Raises:
        RunError: the cloud cannot be used.
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
