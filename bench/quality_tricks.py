"""Train a recipe of spans with a trick that spantune does not have, for the study in docs/quality.md.

    SPANTUNE_TRICKS="ema=0.999" python bench/quality_tricks.py train recipe.yaml
    SPANTUNE_TRICKS="rdrop=1.0" python bench/quality_tricks.py train recipe.yaml
    SPANTUNE_TRICKS="fgm=0.5" python bench/quality_tricks.py train recipe.yaml

`ema`: evaluations and the best adapter take the exponential moving average of the trained weights, with this decay.
`rdrop`: two passes with different dropout, and this many times the mean squared difference of their probabilities (after
R-Drop, arXiv 2106.14448). `fgm`: a second loss, with the embeddings moved by this norm along their gradient (FGM, arXiv
1605.07725). Each replaces functions of the training package, and none is a part of the product.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import Tensor

from spantune.models import causal_lm, span_logits
from spantune.training import span_loss as losses
from spantune.training import step as steps
from spantune.training.loop import TrainingLoop


def main() -> None:
    """Apply the tricks, and run the command line."""
    for trick in filter(None, os.environ.get("SPANTUNE_TRICKS", "").split(",")):
        name, _, value = trick.partition("=")
        {"ema": average, "rdrop": drop_twice, "fgm": perturb}[name](float(value))
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


def perturb(norm: float) -> None:
    """Add the loss with the embeddings moved along their gradient."""

    def loss(model: Any, pack: Any, dtype: torch.dtype) -> Tensor:
        table = causal_lm(model).get_input_embeddings()
        seen: list[Tensor] = []

        def keep(module: Any, inputs: Any, output: Tensor) -> Tensor:
            seen.append(output.detach().requires_grad_())
            return seen[-1]

        hook = table.register_forward_hook(keep)
        plain = losses.span_loss(model, pack, dtype)
        hook.remove()
        (gradient,) = torch.autograd.grad(plain, seen[0], retain_graph=True)
        moved = seen[0].detach() + norm * gradient / (gradient.norm() + 1e-12)
        hook = table.register_forward_hook(lambda module, inputs, output: moved)
        other = losses.span_loss(model, pack, dtype)
        hook.remove()
        return (plain + other) / 2

    steps.span_loss = loss  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
