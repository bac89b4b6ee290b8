"""The loss of reading: ZLPR, a multi-label loss over all spans of a text (Su et al., arXiv 2208.02955).

For each text and type the loss is log(1 + sum of exp(logit) over the spans that are no entity) + log(1 + sum of
exp(-logit) over the spans that are entities). It needs no class weights, although most spans are no entity, and every
type has the same weight, however rare it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spantune.models import CausalLM, SpanPack, span_logits

NOTHING = -1e4
"""A logit whose exponential is 0, and which, unlike minus infinity, has the gradient 0 and not NaN."""


def span_loss(model: CausalLM, pack: SpanPack, dtype: torch.dtype) -> Tensor:
    """Return the sum of the losses of a pack's examples, a scalar; the loss of an example is the mean over types.

    Args:
        model: a model with a span head.
        pack: the pack, on the model's device.
        dtype: the type that the model computes in.
    """
    return zlpr(span_logits(model, pack, dtype), pack)


def zlpr(logits: Tensor, pack: SpanPack) -> Tensor:
    """Return the sum of the losses of a pack's examples, given the logits [characters, width, types] of its spans."""
    is_gold = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    # A plain True would be copied to the GPU, and the host would wait until the GPU has done the whole forward pass.
    is_gold[pack.gold.unbind(1)] = is_gold.new_ones(())
    others = logits.masked_fill(is_gold | ~pack.band.inside[:, :, None], NOTHING)
    gold = (-logits).masked_fill(~is_gold, NOTHING)
    return (_summed(others, pack.grid) + _summed(gold, pack.grid)).mean(1).sum()


def _summed(values: Tensor, grid: Tensor) -> Tensor:
    """Return log(1 + sum of exp(value)) over the spans of each example, [examples, types].

    Args:
        values: [characters, width, types].
        grid: [examples, longest text], the index of each character of each example; the number of `characters` where a
            shorter text has no more of them.
    """
    by_character = torch.logsumexp(values, dim=1)
    none = by_character.new_full((1, by_character.shape[1]), NOTHING)
    by_example = torch.cat((by_character, none))[grid]
    zero = by_example.new_zeros(len(grid), 1, by_example.shape[2])
    return torch.logsumexp(torch.cat((by_example, zero), dim=1), dim=1)
