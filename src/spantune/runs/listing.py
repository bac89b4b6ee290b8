"""A list of runs with their settings, state, steps, time and F1, which can be filtered and sorted.

Everything is read from the run folders; there is no other store that could disagree with them. The time of a run is the
sum over its steps and evaluations. So pauses between resumes are not counted, and a system clock that was set back does
no harm. A damaged folder is listed as damaged. The list does not say whether a difference in F1 is significant; use
`spantune compare` for this.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

from spantune.core import Config, ConfigError, RunError, config, parse_value
from spantune.runs.folder import MetricsRecord, RunFolder
from spantune.runs.trackers.interface import url_of

log = logging.getLogger(__name__)

COLUMNS = (
    "name", "state", "model", "data", "warm_start", "f1", "f1_low", "f1_high", "f1_on", "f1_before", "step", "seconds",
    "started", "folder", "url",
)  # fmt: skip
_CONDITION = re.compile(r"([\w.]+)\s*(!=|<=|>=|=|<|>)=?\s*(.*)")
_ORDERS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run of the list. A value that is not known is None.

    Args:
        name: the name of the run folder.
        state: `finished`, `running`, `stopped`, `killed` or `damaged`.
        folder: the path of the run folder.
        model: the source of the base model.
        data: the training files.
        warm_start: the run or adapter folder with whose adapter training began.
        f1: strict F1 in [0, 1] on the split `f1_on`: after training, or the best so far of an unfinished run.
        f1_low: the lower bound of its 95 % interval.
        f1_high: the upper bound of its 95 % interval.
        f1_on: `test`, or `dev` if there is no test set or the run is not finished.
        f1_before: F1 before training.
        step: the number of optimizer steps so far.
        seconds: the time of all steps and evaluations.
        started: the time of the first record, in ISO format and UTC.
        url: the page of the run in the cloud of a tracker.
        settings: the values of the recipe by `section.key`.
        problem: why the folder is damaged; "" if it is not.
    """

    name: str
    state: str
    folder: str
    model: str | None = None
    data: str | None = None
    warm_start: str | None = None
    f1: float | None = None
    f1_low: float | None = None
    f1_high: float | None = None
    f1_on: str | None = None
    f1_before: float | None = None
    step: int | None = None
    seconds: float | None = None
    started: str | None = None
    url: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    problem: str = ""

    def get(self, key: str) -> object:
        """Return the value of a column or of a `section.key` of the recipe; None if the run has no such value."""
        return getattr(self, key) if key in COLUMNS else self.settings.get(key)

    @property
    def values(self) -> dict[str, object]:
        """The values of COLUMNS by name."""
        return {column: getattr(self, column) for column in COLUMNS}

    def as_dict(self) -> dict[str, object]:
        """Return the columns and settings as a JSON object."""
        return {**self.values, **({"problem": self.problem} if self.problem else {}), "settings": dict(self.settings)}


def find(folders: Iterable[Path]) -> list[Path]:
    """Return the run folders among `folders`, and those directly inside the other `folders`, each once.

    Raises:
        RunError: one of `folders` does not exist.
    """
    run_folders: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"{folder}: no such folder; give run folders, or one that holds them, such as runs")
        inside = [folder] if _is_run(folder) else sorted(path for path in folder.iterdir() if _is_run(path))
        run_folders.update(dict.fromkeys(inside))
    return list(run_folders)


def read(folder: Path) -> Run:
    """Read a run from its folder. A damaged folder gives a Run with the state `damaged` and a `problem`."""
    run = RunFolder(folder)
    try:
        recipe = run.config()
        listed = Run(
            folder.name,
            run.state,
            str(folder),
            model=recipe.model.source,
            data=config.name_of(recipe.data.train),
            warm_start=recipe.train.from_,
            url=url_of(folder),
            settings=_settings(recipe),
        )
        listed = _with_results(listed, run.metrics())
        return replace(listed, f1_on=recipe.data.f1_on) if listed.f1_on == "test" else listed
    except (RunError, OSError, UnicodeDecodeError, KeyError, TypeError) as error:
        return Run(folder.name, "damaged", str(folder), problem=str(error))


def matching(runs: Sequence[Run], conditions: Iterable[str]) -> list[Run]:
    """Return the runs that meet every condition.

    A condition has the form `KEY=PATTERN`, `KEY!=PATTERN` (both with the wildcards * and ?), `KEY<NUMBER`,
    `KEY<=NUMBER`, `KEY>NUMBER` or `KEY>=NUMBER`. KEY is a column or a `section.key`. Instead of a pattern, a value may
    be written as in a recipe, such as `lora.dora=true` or `train.learning_rate=1e-4`.

    Raises:
        ConfigError: a condition has another form or a key that no run has, or compares a value that is not a number.
    """
    for condition in conditions:
        match = _CONDITION.fullmatch(condition.strip())
        if match is None:
            raise ConfigError(
                f"--where {condition!r}: expected KEY=PATTERN or KEY>NUMBER, such as state=finished or f1>0.7"
            )
        key, sign, expected = match.groups()
        _require_key(runs, key)
        runs = [run for run in runs if _meets(run.get(key), sign, expected)]
    return list(runs)


def in_order(runs: Sequence[Run], key: str) -> list[Run]:
    """Return the runs sorted by a column or setting; runs without a value come last.

    Args:
        runs: the runs.
        key: a column or `section.key`; with a dash before it, such as `-f1`, the largest value comes first.

    Raises:
        ConfigError: no run has this key.
    """
    name = key.removeprefix("-")
    _require_key(runs, name)
    known = [run for run in runs if run.get(name) is not None]
    known.sort(key=lambda run: _sortable(run.get(name)), reverse=key.startswith("-"))
    return known + [run for run in runs if run.get(name) is None]


def differing(runs: Sequence[Run]) -> list[str]:
    """Return the settings, as `section.key`, whose values differ between runs, except run.name and run.folder."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    own_keys = ("run.name", "run.folder")
    return [key for key in keys if key not in own_keys and len({repr(run.settings.get(key)) for run in runs}) > 1]


def _is_run(path: Path) -> bool:
    try:
        return RunFolder(path).is_run and not path.name.startswith(".")
    except PermissionError:
        log.warning("%s: cannot be read by this user, so it is left out", path)
        return False


def _with_results(run: Run, records: Sequence[MetricsRecord]) -> Run:
    """Return `run` with F1, time and steps filled from the records of `metrics.jsonl`."""
    if records:
        started = datetime.fromtimestamp(records[0]["time"], UTC).isoformat(timespec="seconds")
        run = replace(run, started=started)
    measured = [record for record in records if record.get("f1") is not None]
    before = [record for record in measured if record["split"] == "test" and record["step"] == 0]
    after = [record for record in measured if record["split"] == "test" and record["step"] > 0]
    dev = sorted((record for record in measured if record["split"] == "dev"), key=lambda record: record["f1"])
    if before:
        run = replace(run, f1_before=before[-1]["f1"])
    for record in (after or dev)[-1:]:
        low, high = record.get("f1_low"), record.get("f1_high")
        run = replace(run, f1=record["f1"], f1_low=low, f1_high=high, f1_on=record["split"])
    step = max((record["step"] for record in records), default=0)
    return replace(run, step=step, seconds=_seconds(records))


def _seconds(records: Sequence[MetricsRecord]) -> float:
    """Return the time of all steps and evaluations, in seconds."""
    seconds, last_step = 0.0, 0
    for record in records:
        seconds += record.get("evaluation_seconds") or 0.0
        if record["split"] in ("masked", "train"):
            seconds += (record.get("step_ms") or 0.0) * (record["step"] - last_step) / 1000
            last_step = record["step"]
    return round(seconds, 1)


def _settings(recipe: Config) -> dict[str, object]:
    tree = recipe.model_dump(mode="json")
    return {f"{section}.{key}": value for section, values in tree.items() for key, value in values.items()}


def _require_key(runs: Sequence[Run], key: str) -> None:
    keys = {*COLUMNS, *(key for run in runs for key in run.settings)}
    if runs and key not in keys:
        near = get_close_matches(key, keys, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"runs have no {key!r}; {hint}valid: {', '.join(COLUMNS)}, and the keys of recipes, such as train.epochs"
        )


def _meets(value: object, sign: str, expected: str) -> bool:
    if sign not in _ORDERS:
        return _equals(value, expected) == (sign == "=")
    if value is None:
        return False
    try:
        number = float(value if isinstance(value, int | float) else str(value))
        return _ORDERS[sign](number, float(expected))
    except ValueError:
        raise ConfigError(f"{sign} compares numbers, found {value!r} and {expected!r}; use = or !=") from None


def _equals(value: object, expected: str) -> bool:
    """Whether `value` matches the pattern `expected`, or equals the value that a recipe would read from `expected`."""
    shown = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if fnmatch.fnmatchcase(shown, expected):
        return True
    try:
        wanted = parse_value(expected)
    except ConfigError:  # `expected` is not a value, but a pattern, which did not match
        return False
    if isinstance(value, bool):
        return wanted is value or str(wanted).lower() in (_TRUE if value else _FALSE)
    if value is None:
        return wanted is None
    if isinstance(value, int | float):  # YAML reads 1e-4 as a text, and a recipe as a number
        return not isinstance(wanted, bool) and _number(wanted) == value
    if isinstance(value, str):
        return value == (("on" if wanted else "off") if isinstance(wanted, bool) else wanted)
    codes = [part.get("code") for part in value if isinstance(part, dict)] if isinstance(value, list) else None
    return wanted in (value, codes) or [wanted] in (value, codes)


_TRUE, _FALSE = ("yes", "on"), ("no", "off")  # words that a recipe accepts for a boolean


def _number(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, int | float | str) else None
    except ValueError:
        return None


def _sortable(value: object) -> tuple[int, float, str]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 1, 0.0, str(value)
    return 0, value if math.isfinite(value) else math.inf, ""
