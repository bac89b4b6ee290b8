"""The run folder: the paths of its files, and reading them.

runs/<name>/  config.yaml  task.json  environment.json  metrics.jsonl  run.log  run.lock  calibration.json
              adapter/ (the best)  start/ (the initial adapter of a warm start)  checkpoints/
              predictions/<split>-<step>.jsonl  trackers/  swanlab/ …  scores.json  report.md
              report.html (written last)
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import logging
import math
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from spantune.core import (
    Config,
    ConfigError,
    Locked,
    RunError,
    TaskSpec,
    closest,
    expect,
    file_lock,
    foreign,
    lost_credentials,
    parse_config,
    yaml_problem,
)
from spantune.core import config as sections
from spantune.runs.manifest import MANIFEST, change_since

HEAD = "head.safetensors"
"""The file of the span head in the adapter folder of a run that reads spans."""
METRICS_FILE = "metrics.jsonl"
REPORT = "report.html"
MetricsRecord = dict[str, Any]
"""A line of `metrics.jsonl`: `step`, `time`, `split`, and figures by name. A figure that was not finite is None."""
State = Literal["finished", "running", "stopped", "killed"]

log = logging.getLogger(__name__)


class _Part:
    """A descriptor for an attribute of RunFolder: the path of the file or folder `name` in the run folder."""

    def __init__(self, name: str):
        self._name = name

    def __get__(self, run: RunFolder, owner: type[RunFolder]) -> Path:
        return run.path / self._name


@dataclass(frozen=True)
class RunFolder:
    """The run folder `path`: the paths of its parts, and methods that read them. The folder need not exist.

    Raises:
        ConfigError: `path` is not a path.
    """

    path: Path

    def __post_init__(self) -> None:
        path = expect(self.path, (str, Path), "run folder", "the path of a run folder, such as runs/demo")
        object.__setattr__(self, "path", Path(path))

    config_file = _Part("config.yaml")
    task_file = _Part("task.json")
    environment_file = _Part("environment.json")
    metrics_file = _Part(METRICS_FILE)
    log_file = _Part("run.log")
    lock_file = _Part("run.lock")
    adapter = _Part("adapter")
    start = _Part("start")
    evaluation_file = _Part("adapter/evaluation.json")
    checkpoints = _Part("checkpoints")
    predictions_folder = _Part("predictions")
    calibration_file = _Part("calibration.json")
    report_html = _Part(REPORT)
    trackers = _Part("trackers")
    swanlab = _Part("swanlab")
    tensorboard = _Part("tensorboard")
    mlflow = _Part("mlflow")

    @property
    def parts(self) -> list[Path]:
        """The existing files and folders that belong to the run itself.

        Reports and other files that the user keeps in the run folder are not among them, except `report.html`.
        """
        own = [self.config_file, self.task_file, self.environment_file, self.metrics_file, self.log_file]
        own += [self.lock_file, self.adapter, self.start, self.checkpoints, self.predictions_folder]
        own += [self.calibration_file, self.trackers, self.swanlab, self.tensorboard, self.mlflow, self.report_html]
        return [path for path in own if path.exists()]

    def predictions(self, split: str, step: int) -> Path:
        """Return the file of the predictions on `split` after `step`, such as `predictions/dev-100.jsonl`."""
        return self.predictions_folder / f"{split}-{step}.jsonl"

    def last_predictions(self, split: str) -> Path:
        """Return the file of the predictions on `split` after the last step for which there are some.

        Raises:
            RunError: there is no such file.
        """
        names = {path: path.stem.removeprefix(f"{split}-") for path in self.predictions_folder.glob("*.jsonl")}
        steps = {path: int(step) for path, step in names.items() if step.isdecimal() and step != path.stem}
        if not steps:
            raise RunError(
                f"{self.path}: no predictions/{split}-<step>.jsonl here; is the run finished, and the split its own?"
            )
        return max(steps, key=steps.__getitem__)

    def _similar(self) -> str:
        """Return the end of an error message that names a run folder which may be meant.

        It is a run folder inside this folder, or one beside it with a similar name.
        """
        inside = sorted(path.parent for path in self.path.glob("*/config.yaml"))
        beside = {path.parent.name: path.parent for path in self.path.parent.glob("*/config.yaml")}
        name = closest(self.path.name, beside)
        if inside:
            return f"in it, such as {inside[0]}"
        return f"such as runs/demo; did you mean {beside[name]}?" if name else "such as runs/demo"

    def config(self) -> Config:
        """Read the resolved recipe, `config.yaml`.

        Raises:
            RunError: the folder is not a run folder, or its recipe is damaged.
        """
        path = self.config_file
        try:
            return parse_config(yaml.safe_load(path.read_text(encoding="utf-8")), where=str(path))
        except OSError:
            raise RunError(f"{self.path}: no config.yaml here; expected a run folder {self._similar()}") from None
        except ConfigError as error:
            problem = str(error).replace(f"{path}: ", "")
            raise RunError(f"{path} is damaged: {problem}; restore it, or train again") from None
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise RunError(f"{path} is damaged: {yaml_problem(error)}; restore it, or train again") from None

    def data(self) -> sections.Data:
        """Return the section `data` of the recipe, with paths that are valid from the present working folder.

        A relative path in a recipe counts from the folder in which the run was trained. If it does not exist from the
        present folder, the training folder is derived from the place of the run folder, whose path in the recipe is
        relative too. Example: the run folder `/a/runs/demo` with the recipe's path `runs/demo` was trained in `/a`.

        Raises:
            RunError: as `config`.
        """
        recipe = self.config()
        files = {name: getattr(recipe.data, name) for name in ("train", "dev", "test")}
        found = {name: tuple(map(self._found(recipe), sections.files_of(paths))) for name, paths in files.items()}
        return recipe.data.model_copy(
            update={name: paths[0] if len(paths) == 1 else paths or None for name, paths in found.items()}
        )

    def model(self) -> sections.Model:
        """Return the section `model` of the recipe, with a source that is valid from the present folder, as in `data`.

        Raises:
            RunError: as `config`.
        """
        recipe = self.config()
        return recipe.model.model_copy(update={"source": self._found(recipe)(recipe.model.source)})

    def _found(self, recipe: Config) -> Callable[[str], str]:
        """Return a function that turns a path of the recipe into one that is valid from the present working folder."""
        parts, place = recipe.run_folder.parts, self.path.resolve()
        is_told = not recipe.run_folder.is_absolute() and ".." not in parts and len(parts) <= len(place.parents)
        origin = place.parents[len(parts) - 1] if is_told else place

        def found(path: str) -> str:
            there = origin / path
            return path if not is_told or Path(path).exists() or not there.exists() else str(there)

        return found

    def resume_config(self, overrides: Sequence[str] = ()) -> Config:
        """Return the recipe with which the run is resumed. It has the present name and place of the run folder.

        Args:
            overrides: texts of the form `section.key=value`. They are allowed only for values that held a credential,
                which the saved recipe has as `***`, and give the whole value again.

        Raises:
            RunError: the folder is not a run folder, or the run is finished.
            ConfigError: a value with a credential is not given again, or an override is for another key.
        """
        if self.is_finished:
            raise RunError(f"{self.path} is finished; its report is {self.report_html}")
        config = self.config()
        lost = lost_credentials(config)
        for override in overrides:
            if override.partition("=")[0] not in lost:
                raise ConfigError(
                    f"{override}: a run goes on with the recipe that it began with, {self.config_file}; leave it out"
                )
        if overrides:
            config = parse_config(config.model_dump(mode="json"), str(self.config_file), list(overrides))
        if missing := [key for key in lost if key in lost_credentials(config)]:
            raise ConfigError(
                f"{self.config_file}: {', '.join(missing)} held a credential, which is not saved; give the value "
                f"again: spantune train --resume {self.path} {missing[0]}=VALUE"
            )
        place = {"name": self.path.name, "folder": self.path.parent}
        found = {} if lost else {"data": self.data(), "model": self.model()}
        return config.model_copy(update={"run": config.run.model_copy(update=place), **found})

    def task(self) -> TaskSpec:
        """Read the task of the run, `task.json`.

        Raises:
            RunError: the file is missing or damaged.
        """
        return TaskSpec.load(self.path)

    def head_thresholds(self) -> dict[str, float]:
        """Return label to threshold of the span head: the lowest score in [0, 1] with which a span is an entity.

        The result is empty for a run that writes answers.

        Raises:
            ModelError: the file of the head cannot be read.
        """
        path = self.adapter / HEAD
        if not path.is_file():
            return {}
        with foreign(path, "the head cannot be read", "restore it"), path.open("rb") as file:
            # the header of the safetensors format is read here, since the library need not be installed
            (size,) = struct.unpack("<Q", file.read(8))
            begin, end = json.loads(file.read(size))["thresholds"]["data_offsets"]
            file.seek(begin, io.SEEK_CUR)
            logits = [logit for (logit,) in struct.iter_unpack("<f", file.read(end - begin))]
            return {label: 1 / (1 + math.exp(-logit)) for label, logit in zip(self.task().codes, logits, strict=True)}

    def adapter_task(self, *, accept_changes: bool = False) -> TaskSpec:
        """Check the files of the adapter, and return the task that it was trained for.

        Args:
            accept_changes: only warn, instead of raising an error, if the files were changed after training.

        Raises:
            RunError: there is no adapter yet, its files were changed, or its labels are not those of the run's task.
        """
        if not self.adapter.is_dir():
            raise RunError(f"{self.path}: no adapter here yet; finish the run with spantune train --resume {self.path}")
        self._verify_adapter(accept_changes)
        task, own_task = TaskSpec.load(self.adapter), self.task()
        if task.codes != own_task.codes:
            differing = sorted(set(task.codes) ^ set(own_task.codes)) or ["their order"]
            raise RunError(
                f"{self.task_file}: its labels ({', '.join(own_task.codes)}) are not those that the adapter was "
                f"trained for ({', '.join(task.codes)}); they differ in {', '.join(differing)}. Restore it from "
                f"{self.adapter / 'task.json'}, or train a run with these labels"
            )
        return task

    def _verify_adapter(self, accept_changes: bool) -> None:
        """Compare the files of the adapter with its manifest. An adapter of release 0.1 has no manifest.

        Raises:
            RunError: the files were changed, and `accept_changes` is False.
        """
        if not (self.adapter / MANIFEST).exists():
            log.warning("%s has no %s: whether it was changed after training is not known", self.adapter, MANIFEST)
            return
        change = change_since(self.adapter)
        if change is None:
            return
        if not accept_changes:
            raise RunError(
                f"{self.adapter} was changed after training: {change}; restore it, or accept what it is now with "
                "--accept-changes (in Python accept_changes=True)"
            )
        log.warning("%s was changed after training, which is accepted: %s", self.adapter, change)

    def environment(self) -> dict[str, str]:
        """Read `environment.json`: the versions, device and hashes with which the run was started, by name.

        Raises:
            RunError: the file is missing or damaged.
        """
        path = self.environment_file
        try:
            environment: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{path} cannot be read: {error}; restore it, or write {{}} into it") from None
        if not isinstance(environment, dict):
            raise RunError(f"{path} is damaged: expected an object; restore it, or write {{}} into it")
        return environment

    def metrics(self) -> list[MetricsRecord]:
        """Read the records of `metrics.jsonl`; an empty list if there is no such file.

        Incomplete lines are left out with a warning. The result is cached until the file changes.

        Raises:
            OSError: the file cannot be read.
        """
        try:
            status = self.metrics_file.stat()
        except FileNotFoundError:
            return []
        return list(_parse_metrics(self.metrics_file, (status.st_ino, status.st_size, status.st_mtime_ns)))

    @property
    def is_run(self) -> bool:
        """Whether the folder is a run folder, which has a `config.yaml`."""
        return self.config_file.is_file()

    @property
    def is_finished(self) -> bool:
        """Whether the run is complete. Its `report.html` is written last, so it marks a finished run."""
        return self.report_html.is_file()

    def require_finished(self) -> Config:
        """Check that the run is finished, and return its recipe.

        Raises:
            RunError: the folder is not a run folder, or the run is not finished.
        """
        recipe = self.config()
        if not self.is_finished:
            raise RunError(
                f"{self.path} is not finished, and training on would undo this; first spantune train --resume "
                f"{self.path}"
            )
        return recipe

    def require_writable(self) -> None:
        """Check that results can be saved in the run folder, before they are computed.

        Raises:
            RunError: the folder or its `predictions/` cannot be written.
        """
        for place in (self.path, self.predictions_folder):
            if place.exists() and not os.access(place, os.W_OK | os.X_OK):
                raise RunError(f"{place}: cannot be written by this user; make it writable, or copy the run")

    @property
    def is_running(self) -> bool:
        """Whether a process works on the run now, which holds a lock on `run.lock`."""
        if not self.lock_file.is_file():
            return False
        try:
            with file_lock(self.lock_file):
                return False
        except Locked:
            return True
        except OSError:  # the disk is read-only, so no process can work on the run
            return False

    @property
    def was_killed(self) -> bool:
        """Whether the id of a process is still in the lock file. If no process works on the run, it was killed."""
        try:
            return bool(self.lock_file.read_text(encoding="utf-8"))
        except OSError:
            return False

    @property
    def state(self) -> State:
        """The state of the run: `finished`, `running`, `killed`, or `stopped` if its process ended without a kill."""
        if self.is_finished:
            return "finished"
        if self.is_running:
            return "running"
        return "killed" if self.was_killed else "stopped"


@functools.lru_cache(maxsize=8)
def _parse_metrics(path: Path, version: tuple[int, int, int]) -> tuple[MetricsRecord, ...]:
    """Return the records of a metrics file.

    Args:
        path: the file.
        version: its inode, size and modification time, which are part of the key of the cache.
    """
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            records.append(json.loads(line, parse_constant=lambda _: None))
        except json.JSONDecodeError:
            log.warning("%s:%d: a torn line is left out", path, number)
    return tuple(records)


def free_name(parent: Path, name: str) -> str:
    """Return `name`, or the first of `name-2`, `name-3`, … that does not exist in the folder `parent`."""
    candidates = (f"{name}-{number}" if number > 1 else name for number in itertools.count(1))
    return next(candidate for candidate in candidates if not (parent / candidate).exists())


def require_free(recipe: Config) -> Path:
    """Check that the run folder of a new run can be created, and return it.

    Raises:
        RunError: it exists already, or it cannot be created there.
    """
    folder = recipe.run_folder
    if place := next((parent for parent in folder.parents if parent.exists() and not parent.is_dir()), None):
        raise RunError(f"{place} is a file, so that no run folder can be in it; give another run.folder")
    place = next(parent for parent in folder.absolute().parents if parent.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        raise RunError(f"{place} cannot be written by this user; give another run.folder")
    if folder.exists():
        raise RunError(
            f"{folder} exists; give another run.name, remove it, or go on with spantune train --resume {folder}"
        )
    return folder


def read_metrics(folder: Path) -> list[MetricsRecord]:
    """Read the records of `metrics.jsonl` of a run folder; see `RunFolder.metrics`."""
    return RunFolder(folder).metrics()


def resume_recipe(folder: Path) -> Config:
    """Return the recipe with which a run is resumed; see `RunFolder.resume_config`."""
    return RunFolder(folder).resume_config()
