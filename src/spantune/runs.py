"""The run folder: made once, complete, and never written over.

runs/<name>/  config.yaml  task.json  environment.json  metrics.jsonl  run.log  report.html
              adapter/ (best)  checkpoints/  predictions/<split>-<step>.jsonl  swanlab/
"""

from __future__ import annotations

import itertools
import json
import logging
import platform
import sys
from importlib import metadata
from pathlib import Path

import yaml

from spantune.config import Config, parse_config
from spantune.errors import ConfigError, RunError
from spantune.task import TaskSpec

_PACKAGES = ("spantune", "torch", "transformers", "peft", "accelerate", "llguidance", "swanlab", "modelscope")


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


def create(recipe: Config, task: TaskSpec) -> Path:
    """Make the folder of a new run with its recipe, task and environment."""
    folder = require_free(recipe)
    folder.mkdir(parents=True)
    recipe.save(folder)
    task.save(folder)
    (folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n", encoding="utf-8")
    return folder


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
    if (folder / "report.html").is_file():
        raise RunError(f"{folder} is finished; its report is {folder / 'report.html'}")
    recipe = read_config(folder)
    here = {"name": folder.name, "folder": folder.parent}
    return recipe.model_copy(update={"run": recipe.run.model_copy(update=here)})


def free_name(parent: Path, name: str) -> str:
    """`name`, or the first of name-2, name-3, … that is free in `parent`."""
    taken = (f"{name}-{number}" if number > 1 else name for number in itertools.count(1))
    return next(candidate for candidate in taken if not (parent / candidate).exists())


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; one that was being written when the run was killed is passed over."""
    found = [path for path in (folder / "checkpoints").glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(found, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


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


def environment() -> dict[str, str]:
    """Versions and machine, without names of hosts or users."""
    import torch

    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found["device"] = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    )
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def log_to(folder: Path) -> logging.Handler:
    """Send the log of spantune to `run.log`, and warnings to stderr too; returns the handler to close."""
    logger = logging.getLogger("spantune")
    logger.setLevel(logging.INFO)
    handler = logging.FileHandler(folder / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    if not any(isinstance(other, logging.StreamHandler) and other.stream is sys.stderr for other in logger.handlers):
        shown = logging.StreamHandler()
        shown.setLevel(logging.WARNING)
        logger.addHandler(shown)
    return handler
