"""Where a run is recorded: `metrics.jsonl` always, SwanLab beside it.

`metrics.jsonl` is the durable record, flushed by line. A tracker's failure never ends a run: it is
reported once and the run goes on. SDKs are imported here and nowhere else. The traps of SwanLab 0.10
that are handled: its Trainer callback swallows the config (so it is not used), the environment variable
SWANLAB_PROJECT crashes `init`, one NaN breaks the local dashboard, `finish` may wait for ever.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Protocol

from spantune import config
from spantune.errors import ConfigError
from spantune.formats.files import replacing
from spantune.journal import Journal

FINISH_SECONDS = 60.0
METRICS_FILE = "metrics.jsonl"
log = logging.getLogger(__name__)


class Tracker(Protocol):
    """What a backend offers."""

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        """Record scalars of a split at a step."""

    def texts(self, step: int, name: str, texts: Sequence[str]) -> None:
        """Record texts at a step."""

    def finish(self, state: str) -> None:
        """Close the record; `state` is `success`, `crashed` or `aborted`."""


class JsonlTracker:
    """`metrics.jsonl`: one object a line with `step` and `time` (Unix seconds)."""

    def __init__(self, folder: Path):
        self._journal = Journal(folder / METRICS_FILE)

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        """Append one line; a value that is not finite becomes null, since JSON has no NaN."""
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self._journal.append(json.dumps({"step": step, "time": round(time.time(), 3), "split": split, **finite}))

    def texts(self, step: int, name: str, texts: Sequence[str]) -> None:
        """Texts are kept whole in `predictions/`."""

    def finish(self, state: str) -> None:
        """Close the file."""
        self._journal.close()


class SwanlabTracker:
    """A SwanLab experiment: config, scalars, and texts as a panel."""

    def __init__(self, settings: config.Track, name: str, folder: Path, recipe: Mapping[str, Any]):
        os.environ.pop("SWANLAB_PROJECT", None)  # documented by transformers, but makes `init` crash
        import swanlab

        self._swanlab = swanlab
        # run.log keeps the console; host name, command line and git remote are nobody else's business
        quiet = {"terminal": {"proxy_type": "none"}, "probe": {"runtime": False, "git": False, "requirements": False}}
        with redirect_stdout(sys.stderr):
            swanlab.init(
                project=settings.project,
                name=name,
                config=dict(recipe),
                log_dir=str(folder / "swanlab"),
                mode=settings.swanlab,
                reinit=True,
                settings=swanlab.Settings(interactive=False, **quiet),
            )

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        """Log the finite values; one NaN would break the dashboard's summary."""
        finite = {f"{split}/{key}": value for key, value in values.items() if math.isfinite(value)}
        self._swanlab.log(finite, step=step)

    def texts(self, step: int, name: str, texts: Sequence[str]) -> None:
        """Log texts as one panel."""
        if texts:
            self._swanlab.log({name: [self._swanlab.Text(text) for text in texts]}, step=step)

    def finish(self, state: str) -> None:
        """Finish, but wait no longer than a minute for a cloud that is gone."""

        with redirect_stdout(sys.stderr), _at_most(FINISH_SECONDS):
            self._swanlab.finish(state=state, error=None if state == "success" else f"the run was {state}")


class Trackers:
    """All trackers of a run; one that fails is reported and dropped."""

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = list(trackers)

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        """Record scalars everywhere."""
        self._each(lambda tracker: tracker.metrics(step, values, split))

    def texts(self, step: int, name: str, texts: Sequence[str]) -> None:
        """Record texts everywhere."""
        self._each(lambda tracker: tracker.texts(step, name, texts))

    def finish(self, state: str) -> None:
        """Close all records."""
        self._each(lambda tracker: tracker.finish(state))
        self._trackers = []

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception:  # the boundary to foreign SDKs: a tracker must not end a training run
                log.exception("%s failed and is dropped; the run goes on", type(tracker).__name__)
                self._trackers.remove(tracker)


def require_key(settings: config.Track) -> None:
    """Check what SwanLab needs before a run folder is made.

    Raises:
        ConfigError: online mode without an API key, which would block on a prompt.
    """
    if settings.swanlab == "online" and not (os.environ.get("SWANLAB_API_KEY") or _saved_key()):
        raise ConfigError("track.swanlab=online needs an API key; run `swanlab login`, or set track.swanlab=local")


def open_trackers(recipe: config.Config, folder: Path) -> Trackers:
    """The trackers that a recipe asks for.

    Raises:
        ConfigError: as `require_key`.
    """
    require_key(recipe.track)
    trackers: list[Tracker] = [JsonlTracker(folder)]
    if recipe.track.swanlab != "off":
        try:
            trackers.append(SwanlabTracker(recipe.track, recipe.run.name, folder, recipe.model_dump(mode="json")))
        except Exception:  # the same boundary: no dashboard is no reason not to train
            log.exception("SwanLab could not start; the run goes on with metrics.jsonl")
    return Trackers(trackers)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; a torn last line is left out."""
    path = folder / METRICS_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            log.warning("%s:%d: a torn line is left out", path, number)
    return records


def rewind(folder: Path, step: int) -> None:
    """Drop what a run resumed at `step` records again: lines after it, the closing measurement, their predictions."""

    def is_kept(record: Mapping[str, Any]) -> bool:
        return bool(record["step"] <= step and not (record.get("split") == "test" and record["step"] > 0))

    records = read_metrics(folder)
    with replacing(folder / METRICS_FILE) as file:
        file.writelines(json.dumps(record) + "\n" for record in records if is_kept(record))
    for record in records:
        if not is_kept(record):
            (folder / "predictions" / f"{record['split']}-{record['step']}.jsonl").unlink(missing_ok=True)


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what takes longer; without effect outside the main thread, which alone gets signals."""

    def late(number: int, frame: Any) -> None:
        raise TimeoutError(f"not finished in {seconds:.0f} s")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _saved_key() -> bool:
    return any((Path.home() / ".swanlab" / name).exists() for name in (".netrc", "credentials", "config"))
