"""All runs side by side: what each was made of, how far it came and what it reached; filtered and sorted.

Everything is read from the run folders: nothing is kept elsewhere that could disagree with them. Time is summed over
steps and evaluations, so that neither pauses between resumes nor a machine's clock that was set back count. A folder
that is damaged is listed as that. Whether a difference in F1 is real is not said here: `spantune compare` does.
"""

from __future__ import annotations

import fnmatch
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from spantune.core import Config, ConfigError, RunError
from spantune.runs.folder import is_finished, is_held, read_config, was_let_go
from spantune.runs.journal import read_metrics

COLUMNS = (
    "name", "state", "model", "data", "f1", "f1_low", "f1_high", "f1_on", "f1_before", "step", "seconds", "started",
    "folder",
)  # fmt: skip
_TEST = re.compile(r"([\w.]+)\s*(!=|<=|>=|=|<|>)\s*(.*)")
_ORDERS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run as it is listed: `values` by the names of COLUMNS, `settings` by `section.key`, and what is wrong."""

    values: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    def get(self, key: str) -> Any:
        """The value of a column or setting; None where the run has none."""
        return self.values.get(key, self.settings.get(key))

    def as_dict(self) -> dict[str, Any]:
        """Columns and settings for JSON."""
        return {**self.values, **({"problem": self.problem} if self.problem else {}), "settings": dict(self.settings)}


def find(folders: Iterable[Path]) -> list[Path]:
    """The run folders among `folders` and directly inside them, each once.

    Raises:
        RunError: a folder does not exist.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"{folder}: no such folder; give run folders, or one that holds them, such as runs")
        inside = [folder] if _is_run(folder) else sorted(path for path in folder.iterdir() if _is_run(path))
        found.update(dict.fromkeys(inside))
    return list(found)


def read(folder: Path) -> Run:
    """What a run folder says of itself."""
    try:
        recipe = read_config(folder)
        records = read_metrics(folder)
        return Run({**_recipe_values(folder, recipe), **_reached(records)}, _flat(recipe))
    except (RunError, OSError, UnicodeDecodeError, KeyError, TypeError) as error:
        values = dict.fromkeys(COLUMNS) | {"name": folder.name, "state": "damaged", "folder": str(folder)}
        return Run(values, problem=str(error))


def state(folder: Path) -> str:
    """`finished`; `running`; `stopped`, where its process ended in order; or `killed`."""
    if is_finished(folder):
        return "finished"
    if is_held(folder):
        return "running"
    return "stopped" if was_let_go(folder) else "killed"


def matching(runs: Sequence[Run], tests: Iterable[str]) -> list[Run]:
    """The runs that pass every test: `KEY=PATTERN` (with * and ?), `KEY!=PATTERN`, or `KEY<NUMBER` and its like.

    Raises:
        ConfigError: a test has no such form, or a key that no run has.
    """
    for test in tests:
        match = _TEST.fullmatch(test.strip())
        if match is None:
            raise ConfigError(f"--where {test!r}: expected KEY=PATTERN or KEY>NUMBER, such as state=finished or f1>0.7")
        key, sign, wanted = match.groups()
        _require_key(runs, key)
        runs = [run for run in runs if _passes(run.get(key), sign, wanted)]
    return list(runs)


def in_order(runs: Sequence[Run], key: str) -> list[Run]:
    """The runs by a column or setting, largest first after a dash; those without a value come last.

    Raises:
        ConfigError: no run has such a key.
    """
    name = key.removeprefix("-")
    _require_key(runs, name)
    known = [run for run in runs if run.get(name) is not None]
    known.sort(key=lambda run: _sortable(run.get(name)), reverse=key.startswith("-"))
    return known + [run for run in runs if run.get(name) is None]


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings that are not the same in all runs, but for the run's own name and folder."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    own = ("run.name", "run.folder")
    return [key for key in keys if key not in own and len({repr(run.settings.get(key)) for run in runs}) > 1]


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() and not path.name.startswith(".")


def _recipe_values(folder: Path, recipe: Config) -> dict[str, Any]:
    values = {"name": folder.name, "state": state(folder), "model": recipe.model.source, "data": recipe.data.train}
    return {**dict.fromkeys(COLUMNS), **values, "folder": str(folder)}


def _reached(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """F1, time and steps from the lines of `metrics.jsonl`."""
    values: dict[str, Any] = {"step": max((record["step"] for record in records), default=0), "seconds": 0.0}
    if records:
        values["started"] = datetime.fromtimestamp(records[0]["time"], UTC).isoformat(timespec="seconds")
    measured = [record for record in records if record.get("f1") is not None]
    before = [record for record in measured if record["split"] == "test" and record["step"] == 0]
    after = [record for record in measured if record["split"] == "test" and record["step"] > 0]
    dev = sorted((record for record in measured if record["split"] == "dev"), key=lambda record: record["f1"])
    if before:
        values["f1_before"] = before[-1]["f1"]
    for record in (after or dev)[-1:]:
        values |= {key: record.get(key) for key in ("f1", "f1_low", "f1_high")} | {"f1_on": record["split"]}
    last = 0
    for record in records:
        values["seconds"] += record.get("evaluation_seconds") or 0.0
        if record["split"] == "train":
            values["seconds"] += (record.get("step_ms") or 0.0) * (record["step"] - last) / 1000
            last = record["step"]
    return {**values, "seconds": round(values["seconds"], 1)}


def _flat(recipe: Config) -> dict[str, Any]:
    tree = recipe.model_dump(mode="json")
    return {f"{section}.{key}": value for section, keys in tree.items() for key, value in keys.items()}


def _require_key(runs: Sequence[Run], key: str) -> None:
    keys = {*COLUMNS, *(key for run in runs for key in run.settings)}
    if runs and key not in keys:
        near = get_close_matches(key, keys, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"runs have no {key!r}; {hint}valid: {', '.join(COLUMNS)}, and the keys of recipes, such as train.epochs"
        )


def _passes(value: Any, sign: str, wanted: str) -> bool:
    if sign in _ORDERS:
        try:
            return value is not None and _ORDERS[sign](float(value), float(wanted))
        except ValueError:
            raise ConfigError(f"{sign} compares numbers, found {value!r} and {wanted!r}; use = or !=") from None
    found = fnmatch.fnmatchcase("" if value is None else str(value), wanted)
    return found == (sign == "=")


def _sortable(value: Any) -> tuple[int, float, str]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 1, 0.0, str(value)
    return 0, value if math.isfinite(value) else math.inf, ""
