"""The loss of reading: ZLPR, a multi-label loss in which every entity competes with every other span of its text.

For each text and type it is log(1 + sum of exp(logit) over spans that are no entity) + log(1 + sum of exp(-logit) over
those that are one) (Su et al., arXiv 2208.02955). It needs no weights against the many spans that are none, and every
type counts the same, however rare it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spantune.models import CausalLM, SpanPack, span_logits

NOTHING = -1e4
"""A logit that adds nothing to a sum of exponentials, and whose gradient is 0 and not NaN."""


def span_loss(model: CausalLM, pack: SpanPack, dtype: torch.dtype) -> Tensor:
    """Return the summed loss of the examples of a pack; that of an example is the mean over types."""
    return zlpr(span_logits(model, pack, dtype), pack)


def zlpr(logits: Tensor, pack: SpanPack) -> Tensor:
    """Return the summed loss for the logits [characters, width, types] of a pack."""
    is_gold = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    # a plain True would be copied to the GPU, and the host would wait there for the whole forward pass
    is_gold[pack.gold.unbind(1)] = is_gold.new_ones(())
    others = logits.masked_fill(is_gold | ~pack.band.inside[:, :, None], NOTHING)
    gold = (-logits).masked_fill(~is_gold, NOTHING)
    return (_summed(others, pack.grid) + _summed(gold, pack.grid)).mean(1).sum()


def _summed(values: Tensor, grid: Tensor) -> Tensor:
    """Return log(1 + sum of exp) [examples, types] over the spans of each example.

    Those of a character are summed first, and then those of the characters of an example.
    """
    by_character = torch.logsumexp(values, dim=1)
    none = by_character.new_full((1, by_character.shape[1]), NOTHING)
    by_example = torch.cat((by_character, none))[grid]
    zero = by_example.new_zeros(len(grid), 1, by_example.shape[2])
    return torch.logsumexp(torch.cat((by_example, zero), dim=1), dim=1)
