"""From a recipe to a run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spantune.core import lazy_exports

if TYPE_CHECKING:
    from spantune.training import job
    from spantune.training.collator import Collator
    from spantune.training.fingerprint import environment
    from spantune.training.job import Result, train
    from spantune.training.loop import TrainingLoop
    from spantune.training.loss import PackTensors, pack_loss, tensors
    from spantune.training.nan_guard import StepGuard
    from spantune.training.plan import make_plan
    from spantune.training.preparation import DEFAULT_PACK_TOKENS, prepare
    from spantune.training.step import StepRunner

__all__ = [
    "DEFAULT_PACK_TOKENS",
    "Collator",
    "PackTensors",
    "Result",
    "StepGuard",
    "StepRunner",
    "TrainingLoop",
    "environment",
    "job",
    "make_plan",
    "pack_loss",
    "prepare",
    "tensors",
    "train",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "collator": ("Collator",),
        "fingerprint": ("environment",),
        "job": ("Result", "train"),
        "loop": ("TrainingLoop",),
        "loss": ("PackTensors", "pack_loss", "tensors"),
        "nan_guard": ("StepGuard",),
        "plan": ("make_plan",),
        "preparation": ("DEFAULT_PACK_TOKENS", "prepare"),
        "step": ("StepRunner",),
    },
)
