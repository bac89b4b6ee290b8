"""Sending a run's record to SwanLab's cloud later: once, under the id that the run has had from its start.

A run that was recorded offline to its end is sent from SwanLab's own store, which has the times of all points. One that
was killed, recorded locally, or left behind by a cloud that went away is told again from `metrics.jsonl` and
`predictions/`. What the cloud has already is not sent again. It refuses a run that is still being recorded.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

from spantune.core import Config, DataError, RunError, TaskSpec
from spantune.data import read_splits
from spantune.runs.folder import read_config
from spantune.runs.journal import read_metrics
from spantune.runs.trackers.dashboards import history, run_info
from spantune.runs.trackers.interface import RunInfo
from spantune.runs.trackers.process import call_apart
from spantune.runs.trackers.swanlab import NAME, SwanlabTracker, require_key, swanlab_environment, sync_store

SECONDS = 600.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sent:
    """Where SwanLab shows a run, where that is known, and whether it was sent before."""

    id: str
    url: str | None
    before: bool


def sync(folder: Path, seconds: float = SECONDS) -> Sent:
    """Send the record of a run to SwanLab's cloud, unless it is there.

    Raises:
        ConfigError: there is no API key.
        RunError: the folder is no run, or the cloud cannot be had or has not taken everything in `seconds`.
    """
    info = _info(read_config(folder), folder)
    kept = info.remembered(NAME)
    if kept.get("sent"):
        return Sent(kept["id"], kept.get("url"), True)
    require_key()
    stored = kept.get("mode") == "offline" and kept.get("state") in ("success", "crashed", "aborted")
    try:
        call_apart(seconds, sync_store if stored else tell_again, info, environment=swanlab_environment())
    except TimeoutError:
        raise RunError(
            f"{folder}: SwanLab's cloud has not taken everything in {seconds:.0f} s; run this again, it goes on"
        ) from None
    kept = info.remembered(NAME)
    return Sent(kept["id"], kept.get("url"), False)


def tell_again(info: RunInfo) -> None:
    """Make the run's record in SwanLab's cloud from the files of the run folder.

    Raises:
        RunError: the cloud cannot be had.
    """
    report = info.folder / "report.html"
    with info.owned(NAME), tempfile.TemporaryDirectory() as aside:
        state = info.remembered(NAME).get("state", "running")
        tracker = SwanlabTracker(info, Path(aside))
        for call in history(info):
            call(tracker)
        if report.is_file():
            tracker.attach(max((record["step"] for record in read_metrics(info.folder)), default=0), report)
        tracker.finish("success" if report.is_file() else "aborted" if state == "running" else state)


def _info(recipe: Config, folder: Path) -> RunInfo:
    track = recipe.track.model_copy(update={"swanlab": "online"})
    recipe = recipe.model_copy(update={"track": track})
    try:
        splits = read_splits(recipe.data)
    except DataError as error:
        log.warning("the predictions are not sent, since their documents cannot be read: %s", error)
        return run_info(recipe, folder, {}, ())
    gold = {"dev": splits.dev, "test": splits.test}
    return run_info(recipe, folder, gold, TaskSpec.load(folder).codes)
