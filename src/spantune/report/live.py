"""The growing report of runs that train: their present figures, and the part of a web page that shows them.

Each time, only the new lines of a run's `metrics.jsonl` are read. A resumed run writes this file again, which is
noticed by its inode. Nothing is written and no model is loaded, so a run that trains is not disturbed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from spantune.core import Config, RunError, config, number
from spantune.report import charts
from spantune.report.charts import Chart, EvaluationPoint
from spantune.report.html import interval, render, render_part
from spantune.runs import RunFolder, listing

MOST_RUNS = 12
"""The maximum number of runs of a folder that are shown together: those with the latest records."""
LINES = 12
"""The number of last lines of `run.log` that are shown."""
_TAIL_BYTES = 8192


@dataclass(frozen=True)
class Progress:
    """The present state of a run.

    Args:
        name: the name of the run folder.
        folder: its path.
        state: `running`, `finished`, `stopped`, `killed` or `damaged`.
        problem: why the folder is damaged; "" if it is not.
        step: the number of optimizer steps so far.
        steps: the expected number of steps of the whole run; None if it is not known yet.
        seconds: the time of steps and evaluations so far.
        seconds_left: the expected remaining time; None if it is not known or the run does not train.
        loss: (step, training loss).
        learning_rates: (step, learning rate).
        evaluations: the evaluations on the dev documents during training.
        result: the final evaluation; None if there is none yet.
        result_on: the documents of the final evaluation: `test`, or `dev` if the recipe has no test documents.
        examples_per_s: the training speed at the last record.
        model: the source of the base model.
        data: the training files.
        lines: the last lines of `run.log`.
        has_report: whether the run has a report.
    """

    name: str
    folder: str
    state: str
    problem: str = ""
    step: int = 0
    steps: int | None = None
    seconds: float = 0.0
    seconds_left: float | None = None
    loss: Sequence[tuple[int, float]] = ()
    learning_rates: Sequence[tuple[int, float]] = ()
    evaluations: Sequence[EvaluationPoint] = ()
    result: EvaluationPoint | None = None
    result_on: str = "test"
    examples_per_s: float | None = None
    model: str = ""
    data: str = ""
    lines: Sequence[str] = ()
    has_report: bool = False

    @property
    def best(self) -> EvaluationPoint | None:
        """The evaluation with the best F1, and the latest of several equal ones; None if there is no evaluation."""
        return max(self.evaluations, key=lambda point: (point[1], point[0]), default=None)

    def as_dict(self) -> dict[str, object]:
        """Return the figures as a JSON object, without the curves."""
        step, f1, low, high = self.result or self.best or (None, None, None, None)
        return {
            "name": self.name,
            "state": self.state,
            "step": self.step,
            "steps": self.steps,
            "seconds": round(self.seconds, 1),
            "seconds_left": None if self.seconds_left is None else round(self.seconds_left),
            "loss": self.loss[-1][1] if self.loss and math.isfinite(self.loss[-1][1]) else None,
            "learning_rate": self.learning_rates[-1][1] if self.learning_rates else None,
            "f1": f1,
            "f1_low": low,
            "f1_high": high,
            "f1_on": None if f1 is None else self.result_on if self.result else "dev",
            "f1_step": step,
            "report": self.has_report,
        }


@dataclass
class _Record:
    """The content of `metrics.jsonl` so far, and how far the file was read: `offset` bytes of the file `inode`."""

    inode: int = 0
    offset: int = 0
    step: int = 0
    train_step: int = 0
    seconds: float = 0.0
    trained: float = 0.0  # seconds of all steps
    steering: float = 0.0  # seconds of all evaluations during training
    closing: float = 0.0  # seconds of the last evaluation on the test documents
    last: Mapping[str, Any] = field(default_factory=dict)
    loss: list[tuple[int, float]] = field(default_factory=list)
    rates: list[tuple[int, float]] = field(default_factory=list)
    dev: list[EvaluationPoint] = field(default_factory=list)
    result: EvaluationPoint | None = None

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a parsed line of the file."""
        step, split = line["step"], line.get("split", "train")
        self.step = max(self.step, step)
        measured = line.get("evaluation_seconds") or 0.0
        self.seconds += measured
        if split == "dev":
            self.steering += measured
        elif split == "test":
            self.closing = measured
        if split in ("masked", "train"):
            taken = (line.get("step_ms") or 0.0) * (step - self.train_step) / 1000
            self.seconds, self.trained = self.seconds + taken, self.trained + taken
            self.train_step, self.last = step, line
        if split == "train":
            if "loss" in line:
                self.loss.append((step, math.nan if line["loss"] is None else line["loss"]))
            if line.get("learning_rate") is not None:
                self.rates.append((step, line["learning_rate"]))
        elif line.get("f1") is not None:
            point = (step, line["f1"], line.get("f1_low"), line.get("f1_high"))
            if split == "dev":
                self.dev.append(point)
            elif split == "test" and step > 0:
                self.result = point


class WatchedRun:
    """A run folder whose `metrics.jsonl` is read while it grows."""

    def __init__(self, folder: Path):
        self._run = RunFolder(folder)
        self._record = _Record()
        self._recipe: Config | None = None

    def progress(self) -> Progress:
        """Read what was added to the run folder, and return the present state of the run."""
        run, place = self._run, (self._run.path.resolve().name, str(self._run.path))
        try:
            self._recipe = self._recipe or run.config()
            self._read()
            state = run.state
        except (RunError, OSError, UnicodeDecodeError, KeyError, TypeError) as error:
            return Progress(*place, "damaged", problem=str(error))
        record, share = self._record, self._share()
        steps = self._recipe.train.max_steps or (round(record.train_step / share) if share else None)
        left = self._seconds_left(share) if state == "running" else None
        return Progress(
            *place,
            state,
            step=record.step,
            steps=steps,
            seconds=record.seconds,
            seconds_left=left,
            loss=tuple(record.loss),
            learning_rates=tuple(record.rates),
            evaluations=tuple(record.dev),
            result=record.result,
            examples_per_s=record.last.get("examples_per_s"),
            model=self._recipe.model.source,
            data=config.name_of(self._recipe.data.train),
            result_on=self._recipe.data.f1_on,
            lines=_last_lines(run.log_file),
            has_report=run.is_finished,
        )

    def _share(self) -> float:
        """Return the share of the training that is done, in [0, 1]; 0 if it is not known."""
        assert self._recipe is not None
        train, record = self._recipe.train, self._record
        if train.max_steps:
            share = record.train_step / train.max_steps
        else:
            share = (record.last.get("epoch") or 0.0) / train.epochs if train.epochs else 0.0
        if train.max_minutes:
            share = max(share, record.trained / (60 * train.max_minutes))
        return min(1.0, share)

    def _seconds_left(self, share: float) -> float | None:
        """Return the expected time of the remaining steps and evaluations, in seconds, from the time so far.

        None means that it is not known yet or that the final evaluation is done.
        """
        record = self._record
        if not share or record.result:
            return None
        return (record.trained + record.steering) * (1 - share) / share + record.closing

    def _read(self) -> None:
        """Read the lines that were added to the file since the last call. An incomplete last line is read later."""
        try:
            with self._run.metrics_file.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._record.inode or status.st_size < self._record.offset:
                    self._record = _Record(inode=status.st_ino)
                file.seek(self._record.offset)
                added = file.read()
        except FileNotFoundError:
            return
        whole = added[: added.rfind(b"\n") + 1]
        self._record.offset += len(whole)
        for line in whole.splitlines():
            try:
                self._record.add(json.loads(line, parse_constant=lambda _: None))
            except ValueError:  # an incomplete line, which a killed process has left
                continue


class Watch:
    """The runs that a page shows: one run, or all runs in a folder, to which runs may be added.

    Args:
        path: a run folder, or a folder that contains run folders.

    Raises:
        RunError: there is no such folder.
    """

    def __init__(self, path: Path):
        if not path.is_dir():
            raise RunError(
                f"{path}: no such folder; a run has one when its checks have passed. Give a run folder, or the folder "
                "that runs are written to, such as runs, to see new ones come"
            )
        self.path = path
        self._runs: dict[str, WatchedRun] = {}

    @property
    def is_single(self) -> bool:
        """Whether the path is a run folder."""
        return RunFolder(self.path).is_run

    def folder(self, name: str | None) -> Path | None:
        """Return the folder of the run `name`, or of the only run if `name` is None; None if there is no such run."""
        if self.is_single:
            return self.path if name in (None, self.path.resolve().name) else None
        return next((path for path in listing.find([self.path]) if path.name == name), None)

    def state(self, name: str | None = None) -> dict[str, object]:
        """Return the JSON object for which a page polls.

        Its keys are `version`, which changes with the shown content; `title`; `runs`, the figures of each run; `body`,
        the HTML that shows them; and `report`, the path of the report of a single run, or None if there is none yet.

        Args:
            name: the run to show; None for all runs.
        """
        folder = self.folder(name)
        if folder is not None:
            progress = self._progress(folder)
            body = render_part("live_run.html.j2", run=progress, curves=_curves(progress), interval=interval, span=span)
            report = f"/report/{quote(progress.name)}" if progress.has_report else None
            return _state(f"{_short_state(progress)} · {progress.name}", [progress], body, report)
        folders = sorted(listing.find([self.path]), key=_written, reverse=True) if not self.is_single else []
        runs = [self._progress(path) for path in sorted(folders[:MOST_RUNS])]  # sorted to keep places and colours
        body = render_part(
            "live_runs.html.j2",
            runs=runs,
            older=len(folders) - len(runs),
            curves=_compared(runs),
            interval=interval,
            span=span,
            folder=str(self.path),
        )
        return _state(f"{number(len(folders), 'run')} · {self.path.resolve().name}", runs, body, None)

    def page(self, name: str | None = None) -> str:
        """Return the HTML page of the run `name`, or of all runs. The page polls for its state."""
        title = name or self.path.resolve().name
        return render("live.html.j2", "live.js.j2", title=title, single=self.folder(name) is not None)

    def _progress(self, folder: Path) -> Progress:
        return self._runs.setdefault(str(folder), WatchedRun(folder)).progress()


def span(seconds: float) -> str:
    """Format a duration in seconds as hours, minutes and seconds, such as 1:02:03 or 2:03."""
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours}:{minutes:02}:{int(seconds) % 60:02}" if hours else f"{minutes}:{int(seconds) % 60:02}"


def _state(title: str, runs: Sequence[Progress], body: str, report: str | None) -> dict[str, object]:
    version = f"{hash((title, body, report)):x}"
    return {"version": version, "title": title, "runs": [run.as_dict() for run in runs], "report": report, "body": body}


def _short_state(run: Progress) -> str:
    if run.state == "running" and run.steps:
        return f"{100 * run.step // run.steps} %"
    return run.state


def _written(folder: Path) -> float:
    try:
        return RunFolder(folder).metrics_file.stat().st_mtime
    except OSError:
        return 0.0


def _last_lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            tail = file.read()
    except OSError:
        return []
    lines = tail.decode("utf-8", errors="replace").splitlines()
    return lines[1 if size > _TAIL_BYTES else 0 :][-LINES:]


def _curves(run: Progress) -> list[Chart]:
    return list(_drawn(run))


def _drawn(run: Progress) -> Iterator[Chart]:
    if run.loss:
        yield charts.loss_chart(run.loss)
    if run.evaluations:
        yield charts.f1_chart(run.evaluations)
    if run.learning_rates:
        yield charts.progress_chart("Learning rate", {"learning rate": run.learning_rates})


def _compared(runs: Sequence[Progress]) -> list[Chart]:
    loss = {run.name: run.loss for run in runs if run.loss}
    f1 = {run.name: [(step, 100 * f1) for step, f1, *_ in run.evaluations] for run in runs if run.evaluations}
    drawn = [charts.progress_chart("Training loss", loss)] if loss else []
    return drawn + ([charts.progress_chart("Strict F1 on the dev set", f1, 100.0)] if f1 else [])
