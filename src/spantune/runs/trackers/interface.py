"""What a tracker is: its interface, and what it is told of a run.

A backend is a small class in a module of its own, `track_<name>`, that imports its SDK when it is made. It does not
guard itself: `track_process` keeps whatever it does, raises or waits for away from the run. What it has to know again
later, such as its run id, is kept in the run folder's `trackers/`; nothing secret goes in there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock, Timeout

from spantune.core import Document, RunError, config

if TYPE_CHECKING:
    from PIL import Image


TRACKERS = "trackers"
PATIENCE = 15.0
"""Seconds that a tracker waits for the process of a run that was killed to close its record."""


class Chart(Protocol):
    """A chart that a dashboard shows, drawn only where it is wanted."""

    @property
    def name(self) -> str:
        """Where it is shown; one chart a name and step."""

    @property
    def caption(self) -> str:
        """What it shows, in words and figures."""

    def image(self) -> Image.Image:
        """The chart as a picture."""

    def options(self) -> dict[str, Any]:
        """The chart as ECharts options, which are JSON."""


class Tracker(Protocol):
    """What a backend offers. Its methods are called in one thread, in the order of the run."""

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        """Record scalars of a split at a step; all are finite."""

    def texts(self, step: int, name: str, texts: Mapping[str, str]) -> None:
        """Record texts by caption at a step."""

    def chart(self, step: int, chart: Chart) -> None:
        """Record a chart at a step."""

    def attach(self, step: int, path: Path) -> None:
        """Attach the closing report: `path` is its HTML page, with its Markdown beside it."""

    def finish(self, state: str) -> None:
        """Close the record; `state` is `success`, `crashed` or `aborted`."""


Call = Callable[[Tracker], None]
"""Something that a tracker is told."""


@dataclass(frozen=True)
class RunInfo:
    """What trackers are told of a run: its folder, their settings, and all that it is the result of.

    `labels` are the codes of its label set, and `gold` its documents by split and id, to show predictions beside them.
    """

    folder: Path
    name: str
    settings: config.Track
    config: Mapping[str, Any]
    labels: Sequence[str] = ()
    gold: Mapping[str, Mapping[str, Document]] = field(default_factory=dict)

    def remembered(self, tracker: str) -> dict[str, Any]:
        """What the tracker has kept for this run, such as its run id; nothing where that is absent or damaged."""
        return _read(self.folder / TRACKERS / f"{tracker}.json")

    def remember(self, tracker: str, **values: Any) -> None:
        """Keep values for later: a resume, a sync, the closing lines of the command."""
        path = self.folder / TRACKERS / f"{tracker}.json"
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".tmp")
        text = json.dumps({**self.remembered(tracker), **values}, ensure_ascii=False, indent=2)
        temporary.write_text(f"{text}\n", encoding="utf-8")
        temporary.replace(path)

    @contextmanager
    def owned(self, tracker: str, seconds: float = PATIENCE) -> Iterator[None]:
        """Be the one process that writes this tracker's record of the run; one that is ending gets this time for it.

        Raises:
            RunError: another process goes on writing it.
        """
        path = self.folder / TRACKERS / f"{tracker}.lock"
        path.parent.mkdir(exist_ok=True)
        try:
            with FileLock(path, timeout=seconds):
                yield
        except Timeout:
            raise RunError(f"another process writes this run's record for {tracker}; wait for it, or stop it") from None


def hints(folder: Path) -> list[str]:
    """What to type to see or send the record of a run, a line for each of its trackers, SwanLab first."""
    kept = sorted((folder / TRACKERS).glob("*.json"), key=lambda path: (path.stem != "swanlab", path.stem))
    return [found["hint"] for found in map(_read, kept) if "hint" in found]


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent, or damaged: the tracker then begins anew
        return {}
    return found
