"""Training: a recipe is made for a corpus, and a recipe is trained to a run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spantune.core import lazy_exports

if TYPE_CHECKING:
    from spantune.training.collator import Collator
    from spantune.training.draft import Choices, Draft, init
    from spantune.training.fingerprint import environment
    from spantune.training.job import Result, train
    from spantune.training.loop import TrainingLoop
    from spantune.training.loss import PackTensors, pack_loss, tensors
    from spantune.training.nan_guard import StepGuard
    from spantune.training.plan import Plan, make_plan, plan_recipe
    from spantune.training.preparation import DEFAULT_PACK_TOKENS, prepare
    from spantune.training.ranks import Ranks, first_failure, join
    from spantune.training.recommendation import READ_TABLE as READ_RECOMMENDATIONS
    from spantune.training.recommendation import TABLE as RECOMMENDATIONS
    from spantune.training.recommendation import Recommendation, recommend
    from spantune.training.step import StepRunner
    from spantune.training.survey import Reading, find_splits

__all__ = [
    "DEFAULT_PACK_TOKENS",
    "READ_RECOMMENDATIONS",
    "RECOMMENDATIONS",
    "Choices",
    "Collator",
    "Draft",
    "PackTensors",
    "Plan",
    "Ranks",
    "Reading",
    "Recommendation",
    "Result",
    "StepGuard",
    "StepRunner",
    "TrainingLoop",
    "environment",
    "find_splits",
    "first_failure",
    "init",
    "join",
    "make_plan",
    "pack_loss",
    "plan_recipe",
    "prepare",
    "recommend",
    "tensors",
    "train",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "collator": ("Collator",),
        "draft": ("Choices", "Draft", "init"),
        "fingerprint": ("environment",),
        "job": ("Result", "train"),
        "loop": ("TrainingLoop",),
        "loss": ("PackTensors", "pack_loss", "tensors"),
        "nan_guard": ("StepGuard",),
        "plan": ("Plan", "make_plan", "plan_recipe"),
        "preparation": ("DEFAULT_PACK_TOKENS", "prepare"),
        "ranks": ("Ranks", "first_failure", "join"),
        "recommendation": (
            "READ_TABLE as READ_RECOMMENDATIONS",
            "TABLE as RECOMMENDATIONS",
            "Recommendation",
            "recommend",
        ),
        "step": ("StepRunner",),
        "survey": ("Reading", "find_splits"),
    },
)
