"""The interface of a tracker, and the facts about a run that it gets.

Each tracker is a small class in its own module, which imports its SDK when it is constructed. It need not protect the
run from its SDK, because it runs in its own process (see `process`): its errors and delays do not reach the run. Values
that it needs again later, such as its run id, are saved in `trackers/` of the run folder. No secret is saved there.
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
"""The maximum time, in seconds, that a tracker waits for the tracker process of a killed run to close its record."""


class Chart(Protocol):
    """A chart for a dashboard. The picture is drawn only if a dashboard needs it."""

    @property
    def name(self) -> str:
        """The title of the chart. There is one chart for each name and step."""

    @property
    def caption(self) -> str:
        """The content of the chart in words and figures."""

    def image(self) -> Image.Image:
        """Return the chart as a picture."""

    def options(self) -> dict[str, object]:
        """Return the chart as ECharts options, a JSON object."""


@dataclass(frozen=True)
class PredictionRow:
    """The entities that were predicted in one document, for a panel or table of a dashboard.

    Args:
        id: the id of the document.
        text: its text.
        right: the number of predicted entities that are correct (strict).
        missed: the number of gold entities that were not predicted.
        spurious: the number of predicted entities that are not gold.
        gold: the gold entities in words, each after ✓ (found) or − (missed).
        predicted: the predicted entities in words, each after ✓ (correct) or + (spurious).
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
        """All values in one text. Its parts begin with ▸, since some dashboards show the text in one line."""
        counts = f"{self.right} right, {self.missed} missed, {self.spurious} spurious"
        return f"{counts} ▸ {self.text}\n\n▸ gold: {self.gold}\n\n▸ predicted: {self.predicted}"


class Tracker(Protocol):
    """The methods of a tracker. They are called in one thread, in the order of the run."""

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        """Record the figures `values` of a split at a step, by name. All of them are finite."""

    def predictions(self, step: int, name: str, rows: Sequence[PredictionRow]) -> None:
        """Record the predictions for some documents at a step, under the title `name`."""

    def chart(self, step: int, chart: Chart) -> None:
        """Record a chart at a step."""

    def attach(self, step: int, path: Path) -> None:
        """Attach the report of the run. `path` is its HTML page; its Markdown file is beside it."""

    def finish(self, state: str) -> None:
        """Close the record. `state` is `success`, `crashed` or `aborted`."""


Call = Callable[[Tracker], None]
"""A function that calls one or more methods of a tracker."""


class Note(TypedDict, total=False):
    """The values that a tracker saves about its record of a run; all of them are optional.

    - `id`: the id of the run in the tracker.
    - `mode`: the mode in which the run is recorded, such as `online`.
    - `directory`: the name of the folder of the record.
    - `state`: `running`, or the state with which the record was closed.
    - `url`: the page of the run in a cloud.
    - `hint`: a line for the user that says how to see or send the record.
    - `sent`: whether the whole record is in the cloud.
    """

    id: str
    mode: str
    directory: str
    state: str
    url: str | None
    hint: str
    sent: bool


@dataclass(frozen=True)
class RunInfo:
    """The facts about a run that trackers get.

    Args:
        folder: the run folder.
        name: the name of the run in the trackers.
        settings: the section `track` of the recipe.
        config: the whole recipe and the environment, with credentials masked.
        labels: the codes of the label set.
        gold: split to document id to annotated document, to show predictions beside them.
    """

    folder: Path
    name: str
    settings: config.Track
    config: Mapping[str, object]
    labels: Sequence[str] = ()
    gold: Mapping[str, Mapping[str, Document]] = field(default_factory=dict)

    @property
    def board(self) -> Path:
        """The folder of SwanLab's local board: `track.board` of the recipe, or else `swanlab` beside the run folder."""
        return self.settings.board or self.folder.parent / "swanlab"

    def remembered(self, tracker: str) -> Note:
        """Return the values that a tracker has saved for this run; empty if its file is absent or damaged."""
        return _read(RunFolder(self.folder).trackers / f"{tracker}.json")

    def remember(self, tracker: str, **values: Unpack[Note]) -> None:
        """Save values of a tracker, with credentials masked, and keep the values that were saved before.

        They are used when the run is resumed or synced, and for the last lines that the command prints.
        """
        path = RunFolder(self.folder).trackers / f"{tracker}.json"
        path.parent.mkdir(exist_ok=True)
        note = masked_values({**self.remembered(tracker), **values})
        text = to_json(note, indent=2)
        replace_text(path, f"{text}\n")

    @contextmanager
    def owned(self, tracker: str, seconds: float = PATIENCE) -> Iterator[None]:
        """Hold a lock inside the block, so that no other process writes the tracker's record of the run.

        Args:
            tracker: the name of the tracker.
            seconds: the maximum time to wait for a process that is closing the record.

        Raises:
            RunError: another process still writes the record.
        """
        path = RunFolder(self.folder).trackers / f"{tracker}.lock"
        path.parent.mkdir(exist_ok=True)
        try:
            with file_lock(path, seconds):
                yield
        except Locked:
            raise RunError(f"another process writes this run's record for {tracker}; wait for it, or stop it") from None


def flattened(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested values as one level, with dotted keys such as `train.learning_rate`.

    A value is a text, a number or a boolean. A list becomes a text with commas, in which a label is written as its code
    and name, and None becomes the text `none`.

    Args:
        values: the nested values.
        prefix: what is put before each key.
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
    """Return a member of a list as text: a text unchanged, a label as `code (name)`, anything else as JSON."""
    if isinstance(part, Mapping) and "code" in part:
        return f"{part['code']} ({part['name']})" if part.get("name") else str(part["code"])
    return part if isinstance(part, str) else to_json(part)


def hints(folder: Path) -> list[str]:
    """Return a line for each tracker of a run that says how to see or send its record; SwanLab comes first."""
    return [note["hint"] for note in _notes(folder) if "hint" in note]


def url_of(folder: Path) -> str | None:
    """Return the page of a run in the cloud of one of its trackers, preferably SwanLab; None if there is none."""
    return next((url for note in _notes(folder) if (url := note.get("url"))), None)


def _notes(folder: Path) -> list[Note]:
    paths = sorted(RunFolder(folder).trackers.glob("*.json"), key=lambda path: (path.stem != "swanlab", path.stem))
    return [_read(path) for path in paths]


def _read(path: Path) -> Note:
    try:
        note: Note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the file is absent or damaged; the tracker then begins a new record
        return {}
    return note
