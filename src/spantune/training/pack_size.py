"""The most tokens of a pack, where the recipe leaves it open: so many that a step is few packs, and even ones.

A pack takes a time of its own, whatever it holds, so that one pack is faster than two halves. A device whose memory is
predicted to hold larger packs gets them, if a step fills them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from spantune.core import config
from spantune.models import CausalLM, pick_device
from spantune.training.estimate import GIB, available_bytes, head_load, of_a_rank, predict_memory
from spantune.training.preparation import Prepared
from spantune.training.ranks import is_divided

MOST = {"cpu": 2048, "cuda": 8192}
"""Tokens of a pack at the most; longer ones are hardly faster."""
ROOM = {"cpu": 0.5, "cuda": 0.85}
"""Share of the free memory that a step with packs over the default may take. On a GPU predictions are within a tenth,
and a step that does not fit is split; on a CPU neither is so."""
DEVIATIONS = 2
"""Steps with so many standard deviations more tokens than the mean are still as few packs."""
MULTIPLE = 256


@dataclass(frozen=True)
class Load:
    """What the packs of a step hold.

    Args:
        lengths: of all examples, without the tokens that a pack holds once.
        prefix: of these tokens.
        examples: of a step, over all ranks.
        ranks: the processes that share a step evenly.
    """

    lengths: Sequence[int]
    prefix: int
    examples: int
    ranks: int = 1

    @property
    def tokens(self) -> float:
        """Tokens of a rank's examples in a step that is larger than nearly all others."""
        spread = DEVIATIONS * statistics.pstdev(self.lengths) * math.sqrt(self.examples)
        return (self.examples * statistics.fmean(self.lengths) + spread) / self.ranks

    def packs_of(self, most: int) -> int:
        """Return the size with which a step is as few packs as with `most`, and even ones."""
        packs = math.ceil(self.tokens / max(1, most - self.prefix))
        even = self.prefix + math.ceil(self.tokens / packs)
        return min(most, -(-even // MULTIPLE) * MULTIPLE)


def largest_packs(load: Load, least: int, fits: Callable[[int], bool], device: str = "cuda") -> int:
    """Return the size of packs for a load: `least`, or a larger one that `fits` where a step has more tokens."""
    if load.prefix + load.tokens > least:
        for most in range(MOST[device], least, -1024):
            size = load.packs_of(most)
            if size > least and fits(size):
                return size
    return least


def pack_size(prepared: Prepared, model: CausalLM, ranks: int = 1) -> int:
    """Return the most tokens of a pack of a recipe on this device; `model` is its model on the meta device.

    A recipe that names a size gets it. A base that is divided over ranks gets the default of the device, since there a
    step that does not fit into memory cannot be split.
    """
    recipe, device = prepared.recipe, pick_device(prepared.recipe.model.device)
    least = prepared.pack_tokens(device.type)
    if not _is_open(recipe, device) or recipe.distributed.strategy == "fsdp" or is_divided(recipe):
        return least
    prefix, head, free = len(prepared.prefix), head_load(prepared, model), available_bytes(device) / GIB
    lengths = [len(example.ids) - prefix for example in prepared.examples]

    def fits(tokens: int) -> bool:
        memory = predict_memory(model, recipe, device, tokens, head)
        return of_a_rank(memory, model, recipe, ranks).total_gib < ROOM[device.type] * free

    examples = min(config.filled(recipe.train.batch_examples), len(lengths))
    return largest_packs(Load(lengths, prefix, examples, ranks), least, fits, device.type)


def with_pack_tokens(prepared: Prepared, tokens: int) -> Prepared:
    """Return the run with this size of packs where its recipe leaves it open; the default of a CPU stays open, so that
    a GPU that goes on with the run has its own.
    """
    recipe, device = prepared.recipe, pick_device(prepared.recipe.model.device)
    if not _is_open(recipe, device) or (device.type == "cpu" and tokens <= prepared.pack_tokens("cpu")):
        return prepared
    train = recipe.train.model_copy(update={"pack_tokens": tokens})
    return replace(prepared, recipe=recipe.model_copy(update={"train": train}))


def _is_open(recipe: config.Config, device: torch.device) -> bool:
    """Whether the size of packs is chosen by what the device can hold."""
    return device.type in MOST and recipe.train.pack == "shared" and recipe.train.pack_tokens is None
