"""Train a recipe that reads spans with techniques that spantune does not have, for the study in docs/quality.md.

    SPANTUNE_TRICKS="rdrop=1.0" python bench/quality_tricks.py train recipe.yaml
    SPANTUNE_TRICKS="grid=32,smooth=0.1" python bench/quality_tricks.py train recipe.yaml

Each trick has a number as its value:
- `rdrop`: weight of a second loss term, the squared difference between the probabilities of two passes with different
  dropout (after R-Drop, arXiv 2106.14448);
- `fgm`: a second loss with the embeddings moved along their gradient, by this fraction of their norm (FGM, arXiv
  1605.07725);
- `noise`: fraction of the text's tokens that are replaced by a placeholder in training;
- `mix`: the head reads a learnt mixture of the states of all layers; the value is the last
  layer's initial weight before the softmax;
- `pointers`: each type has its own query and key of this size, instead of one pair for all types;
- `smooth`: fraction of an entity's target that goes to the four spans with the start or the end one character off
  (boundary smoothing, arXiv 2204.12031);
- `grid`: two convolutions with this many channels over the grid of spans, from the features of their first and last
  characters and their scores (after CNN-NER, arXiv 2208.04534);
- `masked_rate`, `masked_batch`: factor for the learning rate, or for the examples, of the steps of
  `train.masked_epochs`;
- `masked_only`: stop after these steps with a checkpoint, as after a signal;
- `order`: a run that is resumed from there takes the examples in another order and has other dropout for each value,
  so that such runs can be averaged (model soups, arXiv 2203.05482; see quality_soup.py).

Each trick replaces functions of spantune; none is part of it. On a GPU `rdrop`, `fgm` and `mix` need
`train.graphs: "off"`: the first two run the model twice before one backward pass, and `mix` reads the states of all
layers.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from spantune.extraction import reading
from spantune.models import causal_lm, span_logits
from spantune.models import span_head as heads
from spantune.models import span_packs as packs
from spantune.training import span_loss as losses
from spantune.training import step as steps
from spantune.training.loop import SEED_STRIDE, TrainingLoop
from spantune.training.masked import mask
from spantune.training.schedule import Schedule


def main() -> None:
    """Apply the tricks that SPANTUNE_TRICKS names, then run the command line of spantune."""
    for trick in filter(None, os.environ.get("SPANTUNE_TRICKS", "").split(",")):
        name, _, value = trick.partition("=")
        TRICKS[name](float(value))
    from spantune.cli import main as command_line

    sys.exit(command_line())


def drop_twice(share: float) -> None:
    """R-Drop: add the squared difference between two passes with different dropout to the loss."""

    def loss(model: Any, pack: Any, dtype: torch.dtype) -> Tensor:
        first, second = (span_logits(model, pack, dtype) for _ in range(2))
        inside = pack.band.inside[:, :, None]
        difference = ((first.sigmoid() - second.sigmoid()) * inside).square().sum() / first.shape[2]
        return (losses.zlpr(first, pack) + losses.zlpr(second, pack)) / 2 + share * difference

    steps.span_loss = loss  # type: ignore[attr-defined]


def perturb(share: float) -> None:
    """FGM: average the loss with that of embeddings moved along their gradient by a fraction of their norm."""
    plain_loss = steps.span_loss

    def loss(model: Any, pack: Any, dtype: torch.dtype) -> Tensor:
        table = causal_lm(model).get_input_embeddings()
        seen: list[Tensor] = []

        def keep(module: Any, inputs: Any, output: Tensor) -> Tensor:
            seen.append(output.detach().requires_grad_())
            return seen[-1]

        hook = table.register_forward_hook(keep)
        plain = plain_loss(model, pack, dtype)
        hook.remove()
        (gradient,) = torch.autograd.grad(plain, seen[0], retain_graph=True)
        moved = seen[0].detach() + (share * seen[0].detach().norm() / (gradient.norm() + 1e-12)) * gradient
        hook = table.register_forward_hook(lambda module, inputs, output: moved)
        other = plain_loss(model, pack, dtype)
        hook.remove()
        return (plain + other) / 2

    steps.span_loss = loss  # type: ignore[attr-defined]


def corrupt(share: float) -> None:
    """Replace a fraction of the texts' tokens by the padding token in training."""

    def loss(model: Any, pack: Any, dtype: torch.dtype) -> Tensor:
        is_replaced = (torch.rand(pack.ids.shape, device=pack.ids.device) < share) & (pack.owner > 0)
        return losses.zlpr(span_logits(model, replace(pack, ids=pack.ids.masked_fill(is_replaced, 0)), dtype), pack)

    steps.span_loss = loss  # type: ignore[attr-defined]


def mix_layers(start: float) -> None:
    """Let the head read a mixture of the normalised states of all layers.

    The weights are a softmax; `start` is the last layer's initial logit, and those of the others are 0.
    """
    make = heads.SpanHead.__init__

    def make_with_weights(self: Any, head_config: Any, *args: Any, **kwargs: Any) -> None:
        make(self, head_config, *args, **kwargs)
        weights = torch.zeros(head_config.layers + 1)
        weights[-1] = start
        self.mixture = torch.nn.Parameter(weights)

    def mixed_logits(model: Any, pack: Any, dtype: torch.dtype) -> Tensor:
        base = causal_lm(model)
        view = packs.pack_view(
            base.config, packs.Places(pack.owner, pack.positions, pack.reach), packs.Spans(**pack.spans), dtype
        )
        output = base.base_model(
            input_ids=pack.ids[None],
            position_ids=pack.positions[None],
            use_cache=False,
            output_hidden_states=True,
            **view,
        )
        head = heads.require_head(model)
        states = [layer_norm(state[0].float(), state.shape[-1:]) for state in output.hidden_states]
        mixture = head.mixture.softmax(0)
        mixed = sum(weight * state for weight, state in zip(mixture, states, strict=True))
        own = base.get_input_embeddings().weight.detach()[pack.own]
        return head(mixed[pack.token], own, pack.band)  # type: ignore[index,no-any-return]

    heads.SpanHead.__init__ = make_with_weights  # type: ignore[method-assign]
    losses.span_logits = reading.span_logits = mixed_logits  # type: ignore[attr-defined]


def point_by_type(size: float) -> None:
    """Give every type its own query and key of `size` features."""
    make = heads.SpanHead.__init__

    def make_with_pointers(self: Any, head_config: Any, *args: Any, **kwargs: Any) -> None:
        make(self, head_config, *args, **kwargs)
        self.pointers = torch.nn.Linear(head_config.size, 2 * int(size) * len(head_config.labels))

    def forward(self: Any, states: Tensor, own: Tensor, where: Any) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            features = self._features(states.float(), own.float(), where)
            first, last = self._edge_scores(features)
            halves = self.pointers(features).view(len(features), len(self.config.labels), 2 * int(size)).chunk(2, -1)
            pointed = torch.stack(
                [
                    heads.band(*(heads._rotated(half[:, label], where.place) for half in halves), where.width)
                    for label in range(len(self.config.labels))
                ],
                -1,
            )
            ends = heads.pad(last, (0, 0, 0, where.width - 1)).unfold(0, where.width, 1).transpose(1, 2)
            return pointed / size**0.5 + first[:, None] + ends + self.bias  # type: ignore[no-any-return]

    heads.SpanHead.__init__ = make_with_pointers  # type: ignore[method-assign]
    heads.SpanHead.forward = forward  # type: ignore[method-assign]


def smooth(share: float) -> None:
    """Boundary smoothing: spread a fraction of each target over the spans with start or end one character off."""

    def smoothed_loss(logits: Tensor, pack: Any) -> Tensor:
        inside, (first, length, label) = pack.band.inside, pack.gold.unbind(1)
        target = torch.zeros_like(logits)
        target[first, length, label] = 1.0
        for move, change in ((-1, 1), (1, -1), (0, -1), (0, 1)):
            start, size = first + move, length + change
            fits = (start >= 0) & (start < len(inside)) & (size >= 0) & (size < pack.width)
            fits[fits.clone()] = inside[start[fits], size[fits]]
            target.index_put_((first[fits], length[fits], label[fits]), target.new_tensor(-share / 4), accumulate=True)
            target.index_put_((start[fits], size[fits], label[fits]), target.new_tensor(share / 4), accumulate=True)
        target.clamp_(0.0, 1.0)
        others = (logits + torch.log1p(-target.clamp(max=1 - 1e-6))).masked_fill(~inside[:, :, None], losses.NOTHING)
        others = others.masked_fill(target == 1, losses.NOTHING)
        gold = (torch.log(target.clamp(min=1e-6)) - logits).masked_fill(target == 0, losses.NOTHING)
        return (losses._summed(others, pack.grid) + losses._summed(gold, pack.grid)).mean(1).sum()

    losses.zlpr = smoothed_loss


def convolve_grid(channels: float) -> None:
    """Add the output of two convolutions over the grid of spans to the scores.

    The convolutions read the scores and the features of the first and last characters.
    """
    make, forward = heads.SpanHead.__init__, heads.SpanHead.forward
    size = int(channels)

    def make_with_grid(self: Any, head_config: Any, *args: Any, **kwargs: Any) -> None:
        make(self, head_config, *args, **kwargs)
        types = len(head_config.labels)
        self.grid_edges, self.grid_scores = torch.nn.Linear(head_config.size, 2 * size), torch.nn.Linear(types, size)
        self.grid_convolutions = torch.nn.ModuleList(torch.nn.Conv2d(size, size, 3, padding=1) for _ in range(2))
        self.grid_types = torch.nn.Linear(size, types)
        torch.nn.init.zeros_(self.grid_types.weight)
        torch.nn.init.zeros_(self.grid_types.bias)

    def forward_with_grid(self: Any, states: Tensor, own: Tensor, where: Any) -> Tensor:
        kept: list[Tensor] = []

        def features_of(*given: Any) -> Tensor:
            kept.append(type(self)._features(self, *given))
            return kept[0]

        self._features = features_of
        try:
            logits = forward(self, states, own, where)
        finally:
            del self._features
        with torch.autocast(states.device.type, enabled=False):
            inside = where.inside[:, :, None]
            first, last = self.grid_edges(kept[0]).chunk(2, -1)
            ends = heads.pad(last, (0, 0, 0, where.width - 1)).unfold(0, where.width, 1).transpose(1, 2)
            cells = gelu(first[:, None] + ends + self.grid_scores(logits / 4)) * inside
            for convolution in self.grid_convolutions:
                cells = cells + gelu(convolution(cells.permute(2, 0, 1)[None])[0].permute(1, 2, 0)) * inside
            return logits + self.grid_types(self.dropout(cells))  # type: ignore[no-any-return]

    heads.SpanHead.__init__ = make_with_grid  # type: ignore[method-assign]
    heads.SpanHead.forward = forward_with_grid  # type: ignore[method-assign]


def raise_masked_rate(factor: float) -> None:
    """Multiply the learning rate of the steps that predict masked tokens by `factor`."""
    plain = Schedule.factor

    def raised(self: Any, step: int, progress: float | None = None) -> float:
        return plain(self, step, progress) * (factor if step < self.masked else 1.0)

    Schedule.factor = raised  # type: ignore[method-assign]


def enlarge_masked_batch(times: float) -> None:
    """Multiply the examples of the steps that predict masked tokens, and so the passes over the data, by `times`."""
    plain = TrainingLoop._batch

    def enlarged(self: Any, step: int) -> Any:
        if step >= self.intervals.masked:
            return plain(self, step)
        count = int(times)
        places = [place for part in range(count) for place in self.order.places(count * step + part)]
        texts = [self.examples[place] for place in places]
        return self.runner.collator(mask(texts, self.services.placeholder, SEED_STRIDE * self.seed + step))

    TrainingLoop._batch = enlarged  # type: ignore[method-assign]


def stop_after_masked(_: float) -> None:
    """Stop the run, with a checkpoint, after the last step that predicts masked tokens."""
    plain = TrainingLoop._after

    def after(self: Any, result: Any) -> None:
        if self.step == self.intervals.masked:
            self.services.stop.number = signal.SIGTERM
        plain(self, result)

    TrainingLoop._after = after  # type: ignore[method-assign]


def reorder(number: float) -> None:
    """Let a resumed run continue with another order of the examples and other dropout."""
    plain = TrainingLoop.resume

    def resume(self: Any, *args: Any) -> None:
        plain(self, *args)
        self.order.seed = self.seed + SEED_STRIDE * int(number)
        torch.manual_seed(self.order.seed)

    TrainingLoop.resume = resume  # type: ignore[method-assign]


TRICKS = {
    "rdrop": drop_twice,
    "fgm": perturb,
    "noise": corrupt,
    "mix": mix_layers,
    "pointers": point_by_type,
    "smooth": smooth,
    "grid": convolve_grid,
    "masked_rate": raise_masked_rate,
    "masked_batch": enlarge_masked_batch,
    "masked_only": stop_after_masked,
    "order": reorder,
}

if __name__ == "__main__":
    main()
