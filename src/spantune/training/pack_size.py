"""The maximum number of tokens in a pack, if the recipe leaves it open: a step gets few packs of about equal size.

Every pack has a fixed cost, so one pack is faster than two packs of half its size. The size is raised above the default
of the device only if the device's memory is predicted to hold larger packs and a step has enough tokens for them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from spantune.core import config
from spantune.models import CausalLM, pick_device
from spantune.training.memory import GIB, available_bytes, head_load, of_a_rank, predict_memory
from spantune.training.preparation import Prepared
from spantune.training.ranks import is_divided

MOST = {"cpu": 2048, "cuda": 8192}
"""The largest size that is chosen for a pack, in tokens; larger packs are hardly faster."""
ROOM = {"cpu": 0.5, "cuda": 0.85}
"""The share of the free memory that a step may take with packs above the default size.

On a GPU predictions are within 10 %, and a step that does not fit is split; neither holds on a CPU."""
DEVIATIONS = 2
"""Packs are sized for a step whose tokens are this many standard deviations above the mean."""
MULTIPLE = 256
"""The size of a pack is a multiple of this, in tokens."""


@dataclass(frozen=True)
class Load:
    """The tokens that the packs of a step have to hold.

    Args:
        lengths: the number of tokens of each training example, without the shared prefix.
        prefix: the number of tokens of the shared prefix, which each pack holds once.
        examples: the number of examples in a step, over all ranks.
        ranks: the number of processes that share a step evenly.
    """

    lengths: Sequence[int]
    prefix: int
    examples: int
    ranks: int = 1

    @property
    def tokens(self) -> float:
        """The tokens of one rank's examples in a large step: DEVIATIONS standard deviations above the mean."""
        spread = DEVIATIONS * statistics.pstdev(self.lengths) * math.sqrt(self.examples)
        return (self.examples * statistics.fmean(self.lengths) + spread) / self.ranks

    def packs_of(self, most: int) -> int:
        """Return the size of packs with which a step has as few packs as with the size `most`, all of equal size."""
        packs = math.ceil(self.tokens / max(1, most - self.prefix))
        even = self.prefix + math.ceil(self.tokens / packs)
        return min(most, -(-even // MULTIPLE) * MULTIPLE)


def largest_packs(load: Load, least: int, fits: Callable[[int], bool], device: str = "cuda") -> int:
    """Return the size of packs for a load, in tokens.

    Args:
        load: the tokens of a step.
        least: the smallest size, which is returned if a step has no more tokens or no larger size fits.
        fits: whether packs of a given size fit into memory.
        device: "cpu" or "cuda".
    """
    if load.prefix + load.tokens > least:
        for most in range(MOST[device], least, -1024):
            size = load.packs_of(most)
            if size > least and fits(size):
                return size
    return least


def pack_size(prepared: Prepared, model: CausalLM, ranks: int = 1) -> int:
    """Return the maximum number of tokens in a pack for a recipe on this device.

    A size that the recipe names is kept. If the base is divided over ranks, the device's default is returned, since a
    step that does not fit into memory cannot be split then.

    Args:
        prepared: the recipe and its examples.
        model: its model on the meta device.
        ranks: the number of processes that train together.
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
    """Return `prepared` with `tokens` as the size of packs, if its recipe leaves the size open.

    The default of a CPU is not written into the recipe, so that a run that is resumed on a GPU gets the GPU's size.
    """
    recipe, device = prepared.recipe, pick_device(prepared.recipe.model.device)
    if not _is_open(recipe, device) or (device.type == "cpu" and tokens <= prepared.pack_tokens("cpu")):
        return prepared
    train = recipe.train.model_copy(update={"pack_tokens": tokens})
    return replace(prepared, recipe=recipe.model_copy(update={"train": train}))


def _is_open(recipe: config.Config, device: torch.device) -> bool:
    """Whether the recipe leaves the size of packs open, so that it is chosen by the memory of the device."""
    return device.type in MOST and recipe.train.pack == "shared" and recipe.train.pack_tokens is None
