"""The exponential moving average (EMA) of the trained weights, which evaluations and the adapter of a run take.

The weights of the last steps vary around a good place, and their average lies nearer to it (Polyak and Juditsky 1992,
doi 10.1137/0330046). In the first steps, when the weights still move far, the average covers few steps: its decay is at
most (1 + n) / (10 + n) after n steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from spantune.core import RunError


class WeightAverage:
    """The average of `weights` over the steps.

    Args:
        weights: what the optimizer changes.
        decay: how much of the average is kept in a step.
    """

    def __init__(self, weights: Sequence[Tensor], decay: float):
        self._weights, self._decay = list(weights), decay
        self._averages = [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def begin_again(self) -> None:
        """Take the weights as they are for the averages."""
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.copy_(weight)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after step number `step`, from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.lerp_(weight.detach(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averages in the place of the weights for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> dict[str, list[Tensor]]:
        """Return weights and averages, as a checkpoint saves them beside the adapter, which has the averages."""
        return {"weights": [weight.detach() for weight in self._weights], "averages": self._averages}

    def restore(self, state: Mapping[str, Sequence[Tensor]]) -> None:
        """Take weights and averages of a checkpoint.

        Raises:
            RunError: it has none, since the run began without an average.
        """
        if len(state.get("averages", ())) != len(self._averages):
            raise RunError(
                "the checkpoint has no averages of these weights, which train.average needs: a run goes on with the "
                "average that it began with, or without one; leave train.average as it was"
            )
        with torch.no_grad():
            for own, saved in ((self._weights, state["weights"]), (self._averages, state["averages"])):
                for tensor, value in zip(own, saved, strict=True):
                    tensor.copy_(value)

    @torch.no_grad()
    def _swap(self) -> None:
        for average, weight in zip(self._averages, self._weights, strict=True):
            kept = weight.detach().clone()
            weight.copy_(average)
            average.copy_(kept)
