"""All runs side by side: their settings, how far they came and what they reached; filtered and sorted.

Everything is read from the run folders: nothing is stored elsewhere that could disagree with them. Time is summed over
steps and evaluations, so that neither pauses between resumes nor a machine's clock that was set back count. A damaged
folder is listed as damaged. Whether a difference in F1 is significant is not shown here: `spantune compare` does.
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
    """A run as it is listed: the columns of COLUMNS, its `settings` by `section.key`, and what is wrong with it.

    `warm_start` is the run or adapter that training began with; `f1`, its 95 % interval and `f1_before` are shares of
    1; `f1_on` is the split that F1 was measured on; `seconds` is the time of steps and evaluations; `started` is in ISO
    format; `url` is its page in the cloud of a tracker.
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
        """The value of a column or setting; None where the run has none."""
        return getattr(self, key) if key in COLUMNS else self.settings.get(key)

    @property
    def values(self) -> dict[str, object]:
        """The columns by name."""
        return {column: getattr(self, column) for column in COLUMNS}

    def as_dict(self) -> dict[str, object]:
        """Columns and settings for JSON."""
        return {**self.values, **({"problem": self.problem} if self.problem else {}), "settings": dict(self.settings)}


def find(folders: Iterable[Path]) -> list[Path]:
    """The run folders among `folders` and directly inside them, each once.

    Raises:
        RunError: a folder does not exist.
    """
    run_folders: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"{folder}: no such folder; give run folders, or one that holds them, such as runs")
        inside = [folder] if _is_run(folder) else sorted(path for path in folder.iterdir() if _is_run(path))
        run_folders.update(dict.fromkeys(inside))
    return list(run_folders)


def read(folder: Path) -> Run:
    """What a run folder records of its run; a damaged one has the state `damaged` and a `problem`."""
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
    """The runs that meet every condition: `KEY=PATTERN` (with * and ?), `KEY!=PATTERN`, or `KEY<NUMBER` and its like.

    A value matches too where it is written as in a recipe, such as `lora.dora=true` or `train.learning_rate=1e-4`.

    Raises:
        ConfigError: a condition has no such form, or a key that no run has.
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
    own_keys = ("run.name", "run.folder")
    return [key for key in keys if key not in own_keys and len({repr(run.settings.get(key)) for run in runs}) > 1]


def _is_run(path: Path) -> bool:
    try:
        return RunFolder(path).is_run and not path.name.startswith(".")
    except PermissionError:
        log.warning("%s: cannot be read by this user, so it is left out", path)
        return False


def _with_results(run: Run, records: Sequence[MetricsRecord]) -> Run:
    """The run with F1, time and steps from the records of `metrics.jsonl`."""
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
    """The time of all steps and evaluations."""
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
    """Whether a value is what a recipe would make of `expected`, or its text has the pattern."""
    shown = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if fnmatch.fnmatchcase(shown, expected):
        return True
    try:
        wanted = parse_value(expected)
    except ConfigError:  # a pattern
        return False
    if isinstance(value, bool):
        return wanted is value or str(wanted).lower() in (_TRUE if value else _FALSE)
    if value is None:
        return wanted is None
    if isinstance(value, int | float):  # YAML takes 1e-4 for a word, a recipe for a number
        return not isinstance(wanted, bool) and _number(wanted) == value
    if isinstance(value, str):
        return value == (("on" if wanted else "off") if isinstance(wanted, bool) else wanted)
    codes = [part.get("code") for part in value if isinstance(part, dict)] if isinstance(value, list) else None
    return wanted in (value, codes) or [wanted] in (value, codes)


_TRUE, _FALSE = ("yes", "on"), ("no", "off")  # as a recipe reads them where it expects a switch


def _number(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, int | float | str) else None
    except ValueError:
        return None


def _sortable(value: object) -> tuple[int, float, str]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 1, 0.0, str(value)
    return 0, value if math.isfinite(value) else math.inf, ""
