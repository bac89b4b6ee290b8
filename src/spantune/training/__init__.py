"""From a recipe to a run folder."""

from __future__ import annotations

from spantune.training import job, trainer
from spantune.training.collator import Collator
from spantune.training.fingerprint import environment
from spantune.training.job import Result, train
from spantune.training.loss import PackTensors, pack_loss, tensors
from spantune.training.plan import make_plan
from spantune.training.preparation import DEFAULT_PACK_TOKENS, prepare

__all__ = [
    "DEFAULT_PACK_TOKENS",
    "Collator",
    "PackTensors",
    "Result",
    "environment",
    "job",
    "make_plan",
    "pack_loss",
    "prepare",
    "tensors",
    "train",
    "trainer",
]
