"""From a recipe to a run folder."""

from __future__ import annotations

from spantune.training import job
from spantune.training.collator import Collator
from spantune.training.fingerprint import environment
from spantune.training.job import Result, train
from spantune.training.loop import TrainingLoop
from spantune.training.loss import PackTensors, pack_loss, tensors
from spantune.training.nan_guard import StepGuard
from spantune.training.plan import Plan, make_plan, plan_recipe
from spantune.training.preparation import DEFAULT_PACK_TOKENS, prepare
from spantune.training.step import StepRunner

__all__ = [
    "DEFAULT_PACK_TOKENS",
    "Collator",
    "PackTensors",
    "Plan",
    "Result",
    "StepGuard",
    "StepRunner",
    "TrainingLoop",
    "environment",
    "job",
    "make_plan",
    "pack_loss",
    "plan_recipe",
    "prepare",
    "tensors",
    "train",
]
