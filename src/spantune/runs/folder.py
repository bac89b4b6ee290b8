"""The run folder: made once, complete, and never written over.

runs/<name>/  config.yaml  task.json  environment.json  metrics.jsonl  run.log  calibration.json
              adapter/ (best)  checkpoints/  predictions/<split>-<step>.jsonl  swanlab/
              scores.json  report.md  report.html (the last that is written)
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from spantune.core import Config, ConfigError, RunError, TaskSpec, parse_config
from spantune.runs.journal import Journal

REPORT = "report.html"


def require_free(recipe: Config) -> Path:
    """The folder that a new run will be written to.

    Raises:
        RunError: it exists.
    """
    folder = recipe.run_folder
    if folder.exists():
        raise RunError(
            f"{folder} exists; give another run.name, remove it, or go on with spantune train --resume {folder}"
        )
    return folder


class Claim:
    """A run folder that this process alone works on, until the block ends.

    A new folder has a hidden name, `.<name>.part`, until `create` gives it its own with all that belongs into it; one
    that is never created leaves nothing behind.

    Raises:
        RunError: the folder exists, another process works on it, or it cannot be written.
    """

    def __init__(self, folder: Path, *, resume: bool = False):
        self.folder = folder
        self._part = None if resume else folder.with_name(f".{folder.name}.part")
        self._made: list[Path] = []

    def __enter__(self) -> Claim:
        if self._part is None:
            self._lock = hold(self.folder)
            if is_finished(self.folder):  # since it was looked at last
                let_go(self._lock, self.folder)
                raise RunError(f"{self.folder} is finished; its report is {self.folder / REPORT}")
            return self
        missing = (self._part, *self._part.parents)
        self._made = [path for path in missing if not path.exists()]
        try:
            self._part.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"{self.folder.parent}: no run folder can be made here ({error.strerror}); set run.folder to a place "
                "that can be written"
            ) from None
        taken = RunError(f"{self.folder} exists since a moment ago; give another run.name")
        try:
            self._lock = hold(self._part, self.folder)
        except RunError as error:
            raise taken if self.folder.exists() else error from None
        if self.folder.exists():  # another process was faster
            self.__exit__()
            raise taken
        return self

    def create(self, recipe: Config, task: TaskSpec, environment: Mapping[str, str]) -> Path:
        """Write recipe, task and environment, and give the folder its name."""
        assert self._part is not None
        recipe.save(self._part)
        task.save(self._part)
        text = json.dumps(environment, indent=2) + "\n"
        (self._part / "environment.json").write_text(text, encoding="utf-8")
        try:
            self._part.rename(self.folder)
        except OSError as error:
            raise RunError(f"{self.folder}: cannot be made ({error.strerror}); give another run.name") from None
        self._part = None
        return self.folder

    def __exit__(self, *_: object) -> None:
        let_go(self._lock, self._part or self.folder)
        if self._part is not None:
            shutil.rmtree(self._part, ignore_errors=True)
            for path in self._made[1:]:
                with suppress(OSError):  # not empty: others have begun to use it
                    path.rmdir()


def read_config(folder: Path) -> Config:
    """The resolved recipe of a run.

    Raises:
        RunError: the folder is no run, or its recipe is damaged.
    """
    path = folder / "config.yaml"
    try:
        return parse_config(yaml.safe_load(path.read_text(encoding="utf-8")), where=str(path))
    except OSError:
        raise RunError(f"{folder}: no config.yaml here; expected a run folder such as runs/demo") from None
    except (yaml.YAMLError, UnicodeDecodeError, ConfigError) as error:
        raise RunError(f"{path} is damaged: {error}; restore it, or train again") from None


def read_adapter(folder: Path) -> tuple[Path, TaskSpec]:
    """The adapter folder of a run and the task that it was trained for.

    Raises:
        RunError: there is no adapter yet, or the run's own task is another.
    """
    adapter = folder / "adapter"
    if not adapter.is_dir():
        raise RunError(f"{folder}: no adapter here yet; finish the run with spantune train --resume {folder}")
    task, own = TaskSpec.load(adapter), TaskSpec.load(folder)
    if task.codes != own.codes:
        differing = sorted(set(task.codes) ^ set(own.codes)) or ["their order"]
        raise RunError(
            f"{folder / 'task.json'}: its labels ({', '.join(own.codes)}) are not those that the adapter was trained "
            f"for ({', '.join(task.codes)}); they differ in {', '.join(differing)}. Restore it from "
            f"{adapter / 'task.json'}, or train a run with these labels"
        )
    return adapter, task


def resume_recipe(folder: Path) -> Config:
    """The recipe of a run to go on with.

    Raises:
        RunError: the folder is no run, or is finished.
    """
    if is_finished(folder):
        raise RunError(f"{folder} is finished; its report is {folder / REPORT}")
    recipe = read_config(folder)
    here = {"name": folder.name, "folder": folder.parent}
    return recipe.model_copy(update={"run": recipe.run.model_copy(update=here)})


def is_finished(folder: Path) -> bool:
    """Whether a run has come to its end: the report is written last."""
    return (folder / REPORT).is_file()


def free_name(parent: Path, name: str) -> str:
    """`name`, or the first of name-2, name-3, … that is free in `parent`."""
    taken = (f"{name}-{number}" if number > 1 else name for number in itertools.count(1))
    return next(candidate for candidate in taken if not (parent / candidate).exists())


def last_predictions(folder: Path, split: str) -> Path:
    """The newest `predictions/<split>-<step>.jsonl` of a run.

    Raises:
        RunError: there is none.
    """
    found = {path: path.stem.removeprefix(f"{split}-") for path in (folder / "predictions").glob("*.jsonl")}
    steps = {path: int(step) for path, step in found.items() if step.isdecimal() and step != path.stem}
    if not steps:
        raise RunError(
            f"{folder}: no predictions/{split}-<step>.jsonl here; is the run finished, and the split its own?"
        )
    return max(steps, key=steps.__getitem__)


@contextmanager
def logging_to(folder: Path) -> Iterator[None]:
    """Send the log of spantune to `run.log` inside the block, and warnings to stderr too."""
    logger = logging.getLogger("spantune")
    logger.setLevel(logging.INFO)
    handler = _RunLog(folder / "run.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    if not any(isinstance(other, logging.StreamHandler) and other.stream is sys.stderr for other in logger.handlers):
        shown = logging.StreamHandler()
        shown.setLevel(logging.WARNING)
        logger.addHandler(shown)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


class _RunLog(logging.Handler):
    """`run.log`, which a full disk delays and does not break."""

    def __init__(self, path: Path):
        super().__init__()
        self._journal = Journal(path)

    def emit(self, record: logging.LogRecord) -> None:
        """Append the record's line."""
        self._journal.append(self.format(record))

    def close(self) -> None:
        """Close the file; what it could not take was on stderr too."""
        with suppress(OSError):
            self._journal.close()
        super().close()


LOCK_FILE = "run.lock"
PATIENCE = 1.0  # seconds: who looks whether a run is running holds its lock for a moment


def hold(folder: Path, run: Path | None = None) -> FileLock:
    """Take the lock of the run in `folder` (which is to become `run`); release it, or end.

    Raises:
        RunError: another process has it, or the folder cannot be written.
    """
    path = folder / LOCK_FILE
    lock = FileLock(path, timeout=PATIENCE)
    try:
        lock.acquire()
        path.write_text(f"{os.getpid()}\n", encoding="utf-8")
    except Timeout:
        raise RunError(
            f"{run or folder}: {holder(folder)} is working on this run; wait for it, stop it, or give another run.name"
        ) from None
    except OSError as error:
        lock.release()
        raise RunError(
            f"{run or folder}: cannot be written ({error.strerror}); make it writable, or copy the run elsewhere"
        ) from None
    return lock


def holder(folder: Path) -> str:
    """Who holds the lock, in words."""
    try:
        number = (folder / LOCK_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        number = ""
    return f"process {number}" if number.isdecimal() else "another process"


def let_go(lock: FileLock, folder: Path) -> None:
    """Release the lock of the run that is in `folder` now, and say there that its process ended in order."""
    with suppress(OSError):
        (folder / LOCK_FILE).write_text("", encoding="utf-8")
    lock.release()


def was_let_go(folder: Path) -> bool:
    """Whether the last process that worked on a run ended in order; one that was killed still stands in the file."""
    try:
        return not (folder / LOCK_FILE).read_text(encoding="utf-8")
    except OSError:
        return True


def is_held(folder: Path) -> bool:
    """Whether a process is working on the run now."""
    path = folder / LOCK_FILE
    if not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    except OSError:  # a disk that is read-only: nobody is writing there
        return False
    lock.release()
    return False
