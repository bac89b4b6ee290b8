"""The interface of a tracker, and what it is told about a run.

A backend is a small class in a module of its own that imports its SDK when it is constructed. It need not protect the
run from its SDK: the backend runs in a process of its own (`process`), so that nothing it does, raises or waits for
reaches the run. What it has to know again later, such as its run id, is saved in the run folder's `trackers/`; no
secret is saved there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, TypedDict, Unpack

from spantune.core import Document, Locked, RunError, config, file_lock, masked_values, replace_text, to_json
from spantune.runs.folder import RunFolder

if TYPE_CHECKING:
    from PIL import Image


PATIENCE = 15.0
"""Seconds that a tracker waits for the process of a run that was killed to close its record."""


class Chart(Protocol):
    """A chart that a dashboard shows; it is drawn only where a dashboard needs the picture."""

    @property
    def name(self) -> str:
        """The name that it is shown under; one chart for each name and step."""

    @property
    def caption(self) -> str:
        """What it shows, in words and figures."""

    def image(self) -> Image.Image:
        """The chart as a picture."""

    def options(self) -> dict[str, object]:
        """The chart as ECharts options, which are JSON."""


@dataclass(frozen=True)
class PredictionRow:
    """What was predicted in a document: its id and text, counts of entities, and the gold and predicted ones in words.

    In `gold` and `predicted` the sign before an entity says whether it is right (✓), missed (−) or spurious (+).
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("document", "text", "right", "missed", "spurious", "gold", "predicted")

    id: str
    text: str
    right: int
    missed: int
    spurious: int
    gold: str
    predicted: str

    @property
    def cells(self) -> tuple[str | int, ...]:
        """The values of COLUMNS."""
        return (self.id, self.text, self.right, self.missed, self.spurious, self.gold, self.predicted)

    @property
    def summary(self) -> str:
        """All of it as text; the parts begin with ▸, since some boards show it in one line."""
        counts = f"{self.right} right, {self.missed} missed, {self.spurious} spurious"
        return f"{counts} ▸ {self.text}\n\n▸ gold: {self.gold}\n\n▸ predicted: {self.predicted}"


class Tracker(Protocol):
    """The methods of a backend, which are called in one thread, in the order of the run."""

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        """Record scalars of a split at a step; all are finite."""

    def predictions(self, step: int, name: str, rows: Sequence[PredictionRow]) -> None:
        """Record what was predicted in some documents at a step."""

    def chart(self, step: int, chart: Chart) -> None:
        """Record a chart at a step."""

    def attach(self, step: int, path: Path) -> None:
        """Attach the closing report: `path` is its HTML page, with its Markdown beside it."""

    def finish(self, state: str) -> None:
        """Close the record; `state` is `success`, `crashed` or `aborted`."""


Call = Callable[[Tracker], None]
"""A call that a tracker gets."""


class Note(TypedDict, total=False):
    """What a tracker saves about its record of a run."""

    id: str
    mode: str
    directory: str
    state: str
    url: str | None
    hint: str
    sent: bool


@dataclass(frozen=True)
class RunInfo:
    """What trackers are told about a run: its folder, their settings, its recipe and its environment.

    `labels` are the codes of its label set, and `gold` its documents by split and id, to show predictions beside them.
    """

    folder: Path
    name: str
    settings: config.Track
    config: Mapping[str, object]
    labels: Sequence[str] = ()
    gold: Mapping[str, Mapping[str, Document]] = field(default_factory=dict)

    @property
    def board(self) -> Path:
        """The folder of SwanLab's local board: that of the recipe, else `swanlab` beside the run folder."""
        return self.settings.board or self.folder.parent / "swanlab"

    def remembered(self, tracker: str) -> Note:
        """What the tracker has saved for this run, such as its run id; empty where that is absent or damaged."""
        return _read(RunFolder(self.folder).trackers / f"{tracker}.json")

    def remember(self, tracker: str, **values: Unpack[Note]) -> None:
        """Save values for later, credentials masked: for a resume, a sync, the closing lines of the command."""
        path = RunFolder(self.folder).trackers / f"{tracker}.json"
        path.parent.mkdir(exist_ok=True)
        note = masked_values({**self.remembered(tracker), **values})
        text = to_json(note, indent=2)
        replace_text(path, f"{text}\n")

    @contextmanager
    def owned(self, tracker: str, seconds: float = PATIENCE) -> Iterator[None]:
        """Let only this process write the tracker's record of the run, after waiting `seconds` for one that is ending.

        Raises:
            RunError: another process still writes it.
        """
        path = RunFolder(self.folder).trackers / f"{tracker}.lock"
        path.parent.mkdir(exist_ok=True)
        try:
            with file_lock(path, seconds):
                yield
        except Locked:
            raise RunError(f"another process writes this run's record for {tracker}; wait for it, or stop it") from None


def flattened(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """The leaves of nested values by dotted key, such as `train.learning_rate`; a list is one leaf.

    Leaves are text, numbers or booleans: a list is written with commas, a label as its code and name, null as `none`.
    """
    leaves: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            leaves |= flattened(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            leaves[f"{prefix}{key}"] = ", ".join(map(_in_words, value))
        else:
            leaves[f"{prefix}{key}"] = "none" if value is None else value
    return leaves


def _in_words(part: object) -> str:
    """A part of a list: a text as it is, a label as `code (name)`, anything else as JSON."""
    if isinstance(part, Mapping) and "code" in part:
        return f"{part['code']} ({part['name']})" if part.get("name") else str(part["code"])
    return part if isinstance(part, str) else to_json(part)


def hints(folder: Path) -> list[str]:
    """How to see or send the record of a run: a line for each of its trackers, SwanLab first."""
    return [note["hint"] for note in _notes(folder) if "hint" in note]


def url_of(folder: Path) -> str | None:
    """The address of a run in the cloud of one of its trackers, SwanLab's first; None where it is in none."""
    return next((url for note in _notes(folder) if (url := note.get("url"))), None)


def _notes(folder: Path) -> list[Note]:
    paths = sorted(RunFolder(folder).trackers.glob("*.json"), key=lambda path: (path.stem != "swanlab", path.stem))
    return [_read(path) for path in paths]


def _read(path: Path) -> Note:
    try:
        note: Note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent, or damaged: the tracker then begins a new record
        return {}
    return note
