"""The loss of a pack: the head is applied only to the positions that predict an answer token.

The gradient through the frozen head is computed chunk by chunk in the forward pass, so that the logits of a vocabulary
of 100k or 262k never exist all at once. Where the loss is on choices, it is over the ids that the grammar allows, which
is the distribution that extraction chooses from, with a head of a few hundred rows. The sum is returned and not the
mean: the caller divides by the weight of the whole optimizer step, so that the packs make no difference.
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

HEAD_CHUNK = 256  # positions whose logits exist at a time
CACHED = 1 << 19  # logits in fp32 that a core of a CPU keeps near it


@dataclass(frozen=True)
class PackTensors:
    """A pack as tensors: `ids`, `positions`, `owner` [tokens]; `index`, `targets` [answer tokens], all long.

    `weights` [answer tokens] float32 are the factors of each target's loss; 1 where there are none. `reach` [tokens] is
    the last position that a token sees, where that is not its own (see `Places`). `spans` are the fields of `Spans`.
    Where the loss is on choices, `union` [ids] are all ids that are allowed somewhere, `targets` are indices into it,
    and `allowed` [answer tokens, ids] says which are allowed at each answer token.
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
        """The same pack on `device`."""
        return PackTensors(**moved(vars(self), device))

    def view(self, config: ModelConfig, dtype: torch.dtype) -> dict[str, object]:
        """Return the keyword arguments of a model's `forward` that say which tokens attend to which."""
        places = Places(self.owner, self.positions, self.reach)
        return pack_view(config, places, Spans(**self.spans) if self.spans else None, dtype)


def tensors(pack: Pack, normalize: Normalize = "tokens") -> dict[str, Any]:
    """Make the fields of PackTensors from a pack, as a collator returns them."""
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
        fields["weights"] = torch.bincount(owner)[owner].reciprocal()  # those of an example sum to 1
    if not pack.allowed:
        return fields
    union = torch.tensor(sorted({token for allowed in pack.allowed for token in allowed}))
    mask = torch.zeros(len(index), len(union), dtype=torch.bool)
    for row, allowed in zip(mask, pack.allowed, strict=True):
        row[torch.searchsorted(union, torch.tensor(allowed))] = True
    return fields | {"targets": torch.searchsorted(union, fields["targets"]), "union": union, "allowed": mask}


def hidden_states(model: CausalLM, pack: PackTensors, dtype: torch.dtype) -> Tensor:
    """Return the last hidden states [answer tokens, size] of the positions that predict an answer token."""
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
    """Return the weighted sum of the cross entropies of a pack's answer tokens, with or without PEFT adapters."""
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
    """Compare our logits with the model's own on a pack, so that no scaling of logits is overlooked.

    Raises:
        ModelError: the model computes its logits in a way that spantune does not.
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
    if not difference < 0.05:  # bf16 rounding stays under 0.02; any scaling is far above
        raise ModelError(
            f"model type {base.config.model_type!r} scales its logits in a way that spantune does not know; "
            "train with train.pack=none, which uses the model's own loss"
        )


class _HeadLoss(torch.autograd.Function):
    """Weighted sum of cross entropies of `head(hidden)` that stores only the gradient with respect to `hidden`."""

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

    A few rows at a time: on a CPU, logits of a whole chunk in fp32 would go through the memory several times.
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
