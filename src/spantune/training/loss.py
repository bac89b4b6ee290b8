"""The loss of a pack: the output layer (head) is applied only to the positions that predict an answer token.

The gradient through the frozen head is computed in the forward pass, one chunk of positions at a time. So the logits of
all positions, over a vocabulary of 100k or 262k tokens, never exist at the same time. With the loss on choices, the
cross entropy is over the token ids that the grammar allows, as in extraction; only the few hundred rows of the head for
these ids are used. The loss is a sum and not a mean: the caller divides it by the weight of the whole optimizer step,
so that it does not depend on the packs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from spantune.core import ModelError, Normalize
from spantune.encoding import NO_TARGET, Pack
from spantune.models import (
    CausalLM,
    ModelConfig,
    Places,
    Spans,
    capped,
    causal_lm,
    few_logits,
    moved,
    pack_view,
    softcap_of,
    spans,
)

HEAD_CHUNK = 256  # positions whose logits exist at the same time
CACHED = 1 << 19  # fp32 logits that fit into the cache of a CPU core


@dataclass(frozen=True)
class PackTensors:
    """A pack as tensors; those of integers are of type long.

    Attributes:
        ids: [tokens], the token ids.
        positions: [tokens], the position of each token if the prefix and its own example stood alone.
        owner: [tokens], 0 for the prefix and 1, 2, … for the examples.
        index: [answer tokens], the indices of the tokens that predict an answer token.
        targets: [answer tokens], the token ids to predict; with the loss on choices, their indices in `union`.
        union: [ids], with the loss on choices all token ids that are allowed at some answer token; else None.
        allowed: [answer tokens, ids] bool, with the loss on choices which ids of `union` are allowed; else None.
        weights: [answer tokens] float32, the factor of each target's loss; None for 1.
        spans: the fields of `models.Spans` for the flash kernel; None if attention is computed with a mask.
        reach: [tokens], the last position that each token attends to; None if that is its own (see `models.Places`).
    """

    ids: Tensor
    positions: Tensor
    owner: Tensor
    index: Tensor
    targets: Tensor
    union: Tensor | None = None
    allowed: Tensor | None = None
    weights: Tensor | None = None
    spans: Mapping[str, Any] | None = None
    reach: Tensor | None = None

    def to(self, device: torch.device) -> PackTensors:
        """Return the same pack on `device`."""
        return PackTensors(**moved(vars(self), device))

    def view(self, config: ModelConfig, dtype: torch.dtype) -> dict[str, object]:
        """Return the keyword arguments of a model's `forward` that say which tokens attend to which."""
        places = Places(self.owner, self.positions, self.reach)
        return pack_view(config, places, Spans(**self.spans) if self.spans else None, dtype)


def tensors(pack: Pack, normalize: Normalize = "tokens") -> dict[str, Any]:
    """Return the fields of PackTensors for a pack.

    With `normalize="examples"`, the weights of the targets of an example sum to 1.
    """
    targets = torch.tensor(pack.targets)
    index = (targets != NO_TARGET).nonzero()[:, 0]
    fields: dict[str, Any] = {
        "ids": torch.tensor(pack.ids),
        "positions": torch.tensor(pack.positions),
        "owner": torch.tensor(pack.owner),
        "index": index,
        "targets": targets[index],
        "spans": spans(pack.owner)._asdict(),
    }
    if normalize == "examples":
        owner = fields["owner"][index]
        fields["weights"] = torch.bincount(owner)[owner].reciprocal()
    if not pack.allowed:
        return fields
    union = torch.tensor(sorted({token for allowed in pack.allowed for token in allowed}))
    mask = torch.zeros(len(index), len(union), dtype=torch.bool)
    for row, allowed in zip(mask, pack.allowed, strict=True):
        row[torch.searchsorted(union, torch.tensor(allowed))] = True
    return fields | {"targets": torch.searchsorted(union, fields["targets"]), "union": union, "allowed": mask}


def hidden_states(model: CausalLM, pack: PackTensors, dtype: torch.dtype) -> Tensor:
    """Return the last hidden states [answer tokens, hidden size] of the positions that predict an answer token."""
    base = causal_lm(model)
    output = base.base_model(
        input_ids=pack.ids[None],
        position_ids=pack.positions[None],
        use_cache=False,
        **pack.view(base.config, dtype),
    )
    states: Tensor = output.last_hidden_state[0].index_select(0, pack.index)
    return states


def pack_loss(model: CausalLM, pack: PackTensors, dtype: torch.dtype) -> Tensor:
    """Return the weighted sum of the cross entropies of a pack's answer tokens, a float32 scalar.

    Args:
        model: a causal LM, with or without PEFT adapters.
        pack: the pack, on the model's device.
        dtype: the type that the model computes in.
    """
    states = hidden_states(model, pack, dtype)
    if pack.union is not None:
        assert pack.allowed is not None
        logits = few_logits(model, states, pack.union).float().masked_fill(~pack.allowed, float("-inf"))
        return _summed(logits, pack.targets, pack.weights)
    base = causal_lm(model)
    head, softcap = base.get_output_embeddings(), softcap_of(base.config)
    loss: Tensor = _HeadLoss.apply(states, pack.targets, pack.weights, head, softcap)  # type: ignore[no-untyped-call]
    return loss


def check_head(model: CausalLM, pack: PackTensors, dtype: torch.dtype) -> None:
    """Compare the logits of spantune on a pack with those of the model's own `forward`.

    Raises:
        ModelError: they differ, since the model scales its logits in a way that spantune does not know.
    """
    base = causal_lm(model)
    few = pack.index[:4]
    with torch.no_grad():
        states = hidden_states(model, pack, dtype)[:4]
        ours = capped(base.get_output_embeddings()(states), softcap_of(base.config))
        theirs = base(
            input_ids=pack.ids[None],
            position_ids=pack.positions[None],
            use_cache=False,
            logits_to_keep=few,
            **pack.view(base.config, dtype),
        ).logits[0]
    difference = torch.linalg.norm(ours.float() - theirs.float()) / torch.linalg.norm(theirs.float())
    if not difference < 0.05:  # rounding to bf16 makes less than 0.02, a scaling of the logits far more
        raise ModelError(
            f"model type {base.config.model_type!r} scales its logits in a way that spantune does not know; "
            "train with train.pack=none, which uses the model's own loss"
        )


class _HeadLoss(torch.autograd.Function):
    """The weighted sum of the cross entropies of `head(hidden)`; only the gradient of `hidden` is stored."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, weights: Tensor | None, head: nn.Linear, softcap: float | None
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradients = []
        by_rows = hidden.device.type == "cpu" and softcap is None
        for states, labels, weight in _chunks(hidden, targets, weights):
            with torch.enable_grad():
                states = states.detach().requires_grad_()
                logits = head(states)
                loss = None if by_rows else _summed(capped(logits, softcap).float(), labels, weight)
            if loss is None:
                total += _to_gradient(logits.detach(), labels, weight)
                gradients.append(torch.autograd.grad(logits, states, logits.detach())[0])
            else:
                total += loss.detach()
                gradients.append(torch.autograd.grad(loss, states)[0])
        ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.to(gradient.dtype), None, None, None, None


def _to_gradient(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """Replace logits [positions, vocabulary] by their gradient, and return the weighted sum of their cross entropies.

    A few rows are computed at a time, so that their fp32 logits stay in the CPU's cache.
    """
    total = torch.zeros((), dtype=torch.float32)
    rows = max(1, CACHED // logits.shape[1])
    for part, labels, factors in _chunks(logits, targets, weights, rows):
        values, labels = part.float(), labels[:, None]
        peaks = values.amax(1, keepdim=True)
        below = peaks - values.gather(1, labels)
        sums = values.sub_(peaks).exp_().sum(1, keepdim=True)
        losses = sums.log() + below
        values.mul_(sums.reciprocal())
        values.scatter_add_(1, labels, torch.full_like(losses, -1.0))
        if factors is not None:
            losses *= factors[:, None]
            values *= factors[:, None]
        part.copy_(values)
        total += losses.sum()
    return total


def _chunks(
    hidden: Tensor, targets: Tensor, weights: Tensor | None, size: int = HEAD_CHUNK
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    states, labels = torch.split(hidden, size), torch.split(targets, size)
    factors = [None] * len(states) if weights is None else torch.split(weights, size)
    return zip(states, labels, factors, strict=True)


def _summed(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return cross_entropy(logits, targets, reduction="sum")
    return cross_entropy(logits, targets, reduction="none") @ weights
