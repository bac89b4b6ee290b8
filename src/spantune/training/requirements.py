"""Checks of this machine that need no data: packages, a device for the base, and a free run folder.

`train` raises the error of the first check that fails; `plan` shows every check as an audit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from spantune.core import Config, SpantuneError, require_extra
from spantune.models import pick_device, require_base, require_dora
from spantune.runs import require_free, require_trackers


@dataclass(frozen=True)
class Audit:
    """One check of a recipe, with its result.

    Attributes:
        name: what has to hold.
        ok: whether it holds.
        found: what was found.
        remedy: what to do if it does not hold.
        waived: the setting with which the recipe accepts a failure of this check; None without one.
    """

    name: str
    ok: bool
    found: str
    remedy: str
    waived: str | None = None


def require_all(recipe: Config, *, is_new: bool) -> None:
    """Check all requirements of a run.

    Args:
        recipe: the recipe of the run.
        is_new: False for a run that is resumed; its folder exists and is not checked.

    Raises:
        SpantuneError: a requirement is missing, or the folder of a new run exists.
    """
    for check, _ in _checks(recipe, is_new=is_new).values():
        check()


def requirement_audits(recipe: Config, *, is_new: bool) -> list[Audit]:
    """Return the same checks as audits."""
    audits = []
    for name, (check, found) in _checks(recipe, is_new=is_new).items():
        try:
            check()
        except SpantuneError as error:
            problem, _, remedy = str(error).partition("; ")
            audits.append(Audit(name, False, problem, remedy or "mend the recipe"))
        else:
            audits.append(Audit(name, True, found, "mend the recipe"))
    return audits


def _checks(recipe: Config, *, is_new: bool) -> Mapping[str, tuple[Callable[[], object], str]]:
    """Return the checks by their names, each with the text that is shown when it passes."""
    track, optimizer = recipe.track, recipe.train.optimizer
    trackers = ", ".join([*track.also, *(["swanlab"] if track.swanlab != "off" else [])]) or "none but metrics.jsonl"
    checks: dict[str, tuple[Callable[[], object], str]] = {}
    if is_new:
        checks["the run folder is free"] = (partial(require_free, recipe), str(recipe.run_folder))
    return checks | {
        "the trackers can be used": (partial(require_trackers, track), trackers),
        "the optimizer is installed": (partial(_require_optimizer, optimizer), optimizer),
        "this device can compute with the base": (partial(_require_base, recipe), recipe.model.base),
    }


def _require_optimizer(optimizer: str) -> None:
    if optimizer != "adamw":
        require_extra(f"train.optimizer={optimizer}", "bitsandbytes", ["bitsandbytes"])


def _require_base(recipe: Config) -> None:
    device = pick_device(recipe.model.device)
    require_base(recipe.model.base, device)
    require_dora(recipe.lora, recipe.model.base, device.type)
