"""Train a recipe of spans with a trick that spantune does not have, for the study in docs/quality.md.

    SPANTUNE_TRICKS="ema=0.999" python bench/quality_tricks.py train recipe.yaml
    SPANTUNE_TRICKS="rdrop=1.0" python bench/quality_tricks.py train recipe.yaml
    SPANTUNE_TRICKS="fgm=0.02" python bench/quality_tricks.py train recipe.yaml

`ema`: evaluations and the best adapter take the exponential moving average of the trained weights, with this decay.
`rdrop`: two passes with different dropout, and this many times the squared difference of their probabilities (after
R-Drop, arXiv 2106.14448). `fgm`: a second loss, with the embeddings moved along their gradient by this share of their
norm (FGM, arXiv 1605.07725). `teacher`: targets are mixed with the scores of SPANTUNE_TEACHER by this share: native
JSONL of the training documents, each with the candidates of models that were not trained on it (as knowledge
distillation, arXiv 1503.02531). `noise`: this share of the tokens of a text is replaced by a placeholder in training.
`mix`: the head reads a learnt mixture of the states of all layers. `pointers`: a query and a key of this size for each
type, instead of one of all types. `masked`: before the first step the adapter is trained for so many passes to predict
masked tokens of the training texts, seen from both sides (after LLM2Vec, arXiv 2404.05961). `order`: the order of the
examples and the dropout of another seed, from the same first weights, so that the weights of such runs can be averaged
(model soups, arXiv 2203.05482; see quality_soup.py). Each replaces functions of the product, and none is a part of it.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, layer_norm

from spantune.data import read
from spantune.encoding import SpanEncoder
from spantune.extraction import reading
from spantune.models import capped, causal_lm, softcap_of, span_logits
from spantune.models import span_head as heads
from spantune.models import span_packs as packs
from spantune.training import span_loss as losses
from spantune.training import step as steps
from spantune.training.average import WeightAverage
from spantune.training.loop import TrainingLoop
from spantune.training.schedule import ExampleOrder

MASK, MASKED = 4, 0.3
"""The id of the embedded model's token `<mask>`, and the share of tokens that it stands for."""
SCALE = 10_000
"""Targets are kept as whole numbers of this."""


def main() -> None:
    """Apply the tricks, and run the command line."""
    for trick in filter(None, os.environ.get("SPANTUNE_TRICKS", "").split(",")):
        name, _, value = trick.partition("=")
        TRICKS[name](float(value))
    from spantune.cli import main as command_line

    sys.exit(command_line())


def average(decay: float) -> None:
    """Evaluate and keep the moving average of the weights."""
    shadows: dict[int, Tensor] = {}
    run, evaluate = steps.StepRunner.run, TrainingLoop._evaluate

    def weights(runner: Any) -> list[Tensor]:
        return [parameter for group in runner.optimizer.param_groups for parameter in group["params"]]

    def run_and_average(self: Any, batch: Any, step: int, *args: Any, **kwargs: Any) -> Any:
        result = run(self, batch, step, *args, **kwargs)
        current = min(decay, (1 + step) / (10 + step))
        for weight in weights(self):
            shadow = shadows.setdefault(id(weight), weight.detach().clone())
            shadow.lerp_(weight.detach(), 1 - current)
        return result

    def evaluate_average(self: Any) -> Any:
        own = [(weight, weight.detach().clone()) for weight in weights(self.runner)]
        for weight, _ in own:
            weight.data.copy_(shadows[id(weight)])
        try:
            return evaluate(self)
        finally:
            for weight, value in own:
                weight.data.copy_(value)

    steps.StepRunner.run, TrainingLoop._evaluate = run_and_average, evaluate_average  # type: ignore[method-assign]


def drop_twice(share: float) -> None:
    """Add the difference between two passes with different dropout to the loss."""

    def loss(model: Any, pack: Any, dtype: torch.dtype) -> Tensor:
        first, second = (span_logits(model, pack, dtype) for _ in range(2))
        inside = pack.band.inside[:, :, None]
        difference = ((first.sigmoid() - second.sigmoid()) * inside).square().sum() / first.shape[2]
        return (losses.zlpr(first, pack) + losses.zlpr(second, pack)) / 2 + share * difference

    steps.span_loss = loss  # type: ignore[attr-defined]


def perturb(share: float) -> None:
    """Add the loss with the embeddings moved along their gradient by a share of their norm."""
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


def teach(share: float) -> None:
    """Mix the targets with the scores of a teacher."""
    scores: dict[str, dict[tuple[int, int, str], float]] = {}
    labels: list[str] = []
    for document in read(Path(os.environ["SPANTUNE_TEACHER"])).documents:
        scores[document.text] = {(e.start, e.end, e.label): e.score or 0.0 for e in document.entities}
    encode, layout = SpanEncoder.example, packs.layout_spans
    texts: dict[int, str] = {}

    def example(self: Any, document: Any) -> Any:
        labels[:] = self.task.codes
        encoded = encode(self, document)
        texts[id(encoded)] = document.text
        kept.append(encoded)
        return encoded

    def layout_with_scores(examples: Any, *args: Any) -> Any:
        pack = layout(examples, *args)
        rows = []
        for item, start in zip(examples, pack.starts.tolist(), strict=True):
            candidates = scores.get(texts[id(item)])
            targets = dict.fromkeys(item.gold, 1.0 if candidates is None else 1 - share)
            for (first, end, label), score in (candidates or {}).items():
                if end - first <= pack.width:
                    place = (first, end - 1, labels.index(label))
                    targets[place] = targets.get(place, 0.0) + share * score
            rows += [(start + a, b - a, label, round(target * SCALE)) for (a, b, label), target in targets.items()]
        return replace(pack, gold=torch.tensor(rows, dtype=torch.long).reshape(-1, 4))

    def loss(model: Any, pack: Any, dtype: torch.dtype) -> Tensor:
        logits = span_logits(model, pack, dtype)
        target = torch.zeros_like(logits)
        target[pack.gold[:, :3].unbind(1)] = (pack.gold[:, 3] / SCALE).to(target)
        inside = pack.band.inside[:, :, None]
        others = (logits + torch.log1p(-target.clamp(max=1 - 1e-6))).masked_fill(~inside, losses.NOTHING)
        gold = (torch.log(target.clamp(min=1e-6)) - logits).masked_fill(target == 0, losses.NOTHING)
        return (losses._summed(others, pack.grid) + losses._summed(gold, pack.grid)).mean(1).sum()

    kept: list[Any] = []
    SpanEncoder.example = example  # type: ignore[method-assign]
    packs.layout_spans = layout_with_scores
    steps.span_loss = loss  # type: ignore[attr-defined]


def corrupt(share: float) -> None:
    """Replace some tokens of the texts by the token that pads, in training."""

    def loss(model: Any, pack: Any, dtype: torch.dtype) -> Tensor:
        is_replaced = (torch.rand(pack.ids.shape, device=pack.ids.device) < share) & (pack.owner > 0)
        return losses.zlpr(span_logits(model, replace(pack, ids=pack.ids.masked_fill(is_replaced, 0)), dtype), pack)

    steps.span_loss = loss  # type: ignore[attr-defined]


def mix_layers(start: float) -> None:
    """Let the head read a mixture of the normalised states of all layers; the last has `start` more weight at first."""
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
    """Give every type a query and a key of its own."""
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


def predict_masked(passes: float) -> None:
    """Train what the run trains, but the head, to predict masked tokens; then begin the run with fresh averages."""
    run = TrainingLoop.run

    def run_after(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.step == 0:
            runner, span_loss = self.runner, steps.span_loss
            average, runner._average, steps.span_loss = runner._average, None, masked_loss  # type: ignore[attr-defined]
            total = round(passes * self.order.steps_per_epoch)
            for step in range(total):
                batch = runner.collator([self.examples[place] for place in self.order.places(step)])
                factor = min((step + 1) / 20, (total - step) / total)
                result = runner.run(batch, step + 1, factor)
                if step % 50 == 0:
                    print(f"masked tokens, step {step}: loss {result.loss.item():.3f}", flush=True)
            steps.span_loss = span_loss  # type: ignore[attr-defined]
            runner.optimizer.state.clear()
            if average is not None:
                weights = [weight for group in runner.optimizer.param_groups for weight in group["params"]]
                runner._average = WeightAverage(weights, runner.settings.average)
        run(self, *args, **kwargs)

    TrainingLoop.run = run_after  # type: ignore[method-assign]


def masked_loss(model: Any, pack: Any, dtype: torch.dtype) -> Tensor:
    """The mean cross entropy of masked tokens, each predicted where the token before it is, times the examples."""
    base = causal_lm(model)
    follows = torch.zeros_like(pack.owner, dtype=torch.bool)
    follows[1:] = (pack.owner[1:] == pack.owner[:-1]) & (pack.owner[1:] > 0)
    is_masked = follows & (torch.rand(pack.ids.shape, device=pack.ids.device) < MASKED)
    view = packs.pack_view(
        base.config, packs.Places(pack.owner, pack.positions, pack.reach), packs.Spans(**pack.spans), dtype
    )
    output = base.base_model(
        input_ids=pack.ids.masked_fill(is_masked, MASK)[None],
        position_ids=pack.positions[None],
        use_cache=False,
        **view,
    )
    places = is_masked.nonzero()[:, 0]
    states = output.last_hidden_state[0][places - 1]
    logits = capped(base.get_output_embeddings()(states).float(), softcap_of(base.config))
    return cross_entropy(logits, pack.ids[places]) * len(pack.starts)


def reorder(seed: float) -> None:
    """Take the examples in the order of another seed, and drop out other values."""
    make, run = ExampleOrder.__init__, TrainingLoop.run

    def make_other(self: Any, examples: int, batch: int, own: int) -> None:
        make(self, examples, batch, own + 1000 * int(seed))

    def run_other(self: Any, *args: Any, **kwargs: Any) -> None:
        torch.manual_seed(int(seed))
        run(self, *args, **kwargs)

    ExampleOrder.__init__ = make_other  # type: ignore[method-assign]
    TrainingLoop.run = run_other  # type: ignore[method-assign]


TRICKS = {
    "masked": predict_masked,
    "order": reorder,
    "ema": average,
    "rdrop": drop_twice,
    "fgm": perturb,
    "teacher": teach,
    "noise": corrupt,
    "mix": mix_layers,
    "pointers": point_by_type,
}

if __name__ == "__main__":
    main()
