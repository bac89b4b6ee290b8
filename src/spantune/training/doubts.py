"""Warnings about recipes that can be trained but are unlikely to give a good model.

A warning stops nothing. It says what was found, and which settings to change.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from spantune.core import config, number
from spantune.training.estimate import Estimate
from spantune.training.preparation import Prepared
from spantune.training.recommendation import READ_FROM, entities_a_label

FEW_STEPS = 50
"""With fewer optimizer steps than this an adapter learns next to nothing."""
ENOUGH_STEPS = 200
"""The number of steps that is proposed where there are too few."""
FEW_DOCUMENTS, FEW_ENTITIES = 5, 10
"""With fewer dev documents, or fewer entities in them, an F1 says little."""
RATES = (1e-5, 5e-3)
"""The lowest and the highest usual learning rate of LoRA: below it hardly learns, above it the loss is likely to jump.
"""
FULL_RATES = (1e-6, 5e-4)
"""The same for full fine-tuning."""


@dataclass(frozen=True)
class PlanWarning:
    """One warning: the name of what is in doubt, what was found and what to do."""

    name: str
    found: str
    remedy: str

    def __str__(self) -> str:
        """The warning as a sentence."""
        return f"{self.found}; {self.remedy}"


def doubts(prepared: Prepared, predicted: Estimate) -> list[PlanWarning]:
    """Return the warnings about a prepared recipe, given its predicted steps and time."""
    found = [
        _steps(prepared, predicted),
        _rate(prepared),
        _few_to_read(prepared),
        _dev(prepared),
        _test(prepared),
        _labels(prepared),
    ]
    return [warning for warning in found if warning is not None]


def _steps(prepared: Prepared, predicted: Estimate) -> PlanWarning | None:
    settings, examples = prepared.recipe.train, len(prepared.examples)
    steps = predicted.steps - predicted.masked_steps
    name = "enough optimizer steps"
    if steps < FEW_STEPS:
        if settings.max_steps is not None:
            return PlanWarning(name, _too_few(steps), f"set train.max_steps={ENOUGH_STEPS}")
        batch = config.filled(settings.batch_examples)
        epochs = math.ceil(ENOUGH_STEPS / -(-examples // batch))
        remedy = f"set train.epochs={epochs}"
        smaller = int(examples * config.filled(settings.epochs)) // ENOUGH_STEPS
        if 0 < smaller < batch:
            remedy += f" or train.batch_examples={smaller}"
        return PlanWarning(name, _too_few(steps), remedy)
    if settings.max_minutes is not None:
        reached = int(60 * settings.max_minutes / predicted.step_seconds)
        if reached < FEW_STEPS:
            fit = f"about {number(reached, 'optimizer step')} in train.max_minutes={settings.max_minutes:g}"
            found = f"{fit}: too few to learn from"
            minutes = math.ceil(ENOUGH_STEPS * predicted.step_seconds / 60)
            return PlanWarning(name, found, f"set train.max_minutes={minutes}, or train on a faster device")
    return None


def _too_few(steps: int) -> str:
    return f"{number(steps, 'optimizer step')}: too few to learn from"


def _rate(prepared: Prepared) -> PlanWarning | None:
    full, rate = prepared.recipe.lora.full, config.filled(prepared.recipe.train.learning_rate)
    low, high = FULL_RATES if full else RATES
    if low <= rate <= high:
        return None
    why = "so low that hardly anything is learnt" if rate < low else "so high that the loss is likely to jump"
    usual = "1e-5 and 2e-4" if full else "1e-4 and 1e-3"
    return PlanWarning(
        "a learning rate for full fine-tuning" if full else "a learning rate for LoRA",
        f"train.learning_rate={rate:g} is {why}",
        f"set one between {usual}, or leave it out, so that it is chosen",
    )


def _few_to_read(prepared: Prepared) -> PlanWarning | None:
    """Warn that a new head has too few entities to learn its types from."""
    entities = entities_a_label(prepared.splits.train)
    if not prepared.task.reads or prepared.start is not None or entities >= READ_FROM:
        return None
    return PlanWarning(
        "entities enough to read",
        f"a head learns its types from nothing, and a label has {entities} training entities on average: under "
        f"{READ_FROM}, entities that are written are usually better",
        "set task.answer=jsonl, or annotate more",
    )


def _dev(prepared: Prepared) -> PlanWarning | None:
    dev = prepared.splits.dev
    entities = sum(len(document.entities) for document in dev)
    if len(dev) >= FEW_DOCUMENTS and entities >= FEW_ENTITIES:
        return None
    counted = f"{number(len(dev), 'document')} with {number(entities, 'entity', 'entities')}"
    source = "raise data.holdout, or name a corpus with data.dev"
    return PlanWarning(
        "a dev set that says something",
        f"the dev set has {counted}: its F1 says little, and it chooses the adapter",
        "name more documents with data.dev" if prepared.recipe.data.dev else source,
    )


def _test(prepared: Prepared) -> PlanWarning | None:
    if prepared.recipe.data.f1_on == "test":
        return None
    chosen = "the adapter and the thresholds" if prepared.task.reads else "the adapter"
    return PlanWarning(
        "a test set",
        f"there is no test set: the final figures are on the dev documents, which choose {chosen}, and so a little too "
        "good",
        "name a corpus that is used for nothing else with data.test",
    )


def _labels(prepared: Prepared) -> PlanWarning | None:
    counts = Counter(entity.label for document in prepared.splits.train for entity in document.entities)
    absent = [code for code in prepared.task.codes if not counts[code]]
    if not absent:
        return None
    found = f"the training documents have no entity of {', '.join(absent)}: a model cannot learn them"
    return PlanWarning("entities of every label", found, "annotate some, or take the labels out of task.labels")
