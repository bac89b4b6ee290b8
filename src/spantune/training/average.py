"""The exponential moving average (EMA) of the trained weights, which evaluations and the saved adapter use.

During the last steps the weights vary around an optimum, and their average is nearer to it (Polyak and Juditsky 1992,
doi 10.1137/0330046). During the first steps the weights change much, and the average covers few steps: after n steps
its decay is at most (1 + n) / (10 + n).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from spantune.core import RunError


class WeightAverage:
    """The moving average of `weights` over the steps.

    Args:
        weights: the tensors that the optimizer changes.
        decay: the share of the old average in the new one, at most.
    """

    def __init__(self, weights: Sequence[Tensor], decay: float):
        self._weights, self._decay = list(weights), decay
        self._averages = [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def begin_again(self) -> None:
        """Set the averages to the present weights."""
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.copy_(weight)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the averages with the weights after step number `step`, from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.lerp_(weight.detach(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Replace the weights by their averages inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> dict[str, list[Tensor]]:
        """Return weights and averages for a checkpoint; the adapter of the checkpoint has the averages only."""
        return {"weights": [weight.detach() for weight in self._weights], "averages": self._averages}

    def restore(self, state: Mapping[str, Sequence[Tensor]]) -> None:
        """Take the weights and averages of a checkpoint.

        Raises:
            RunError: the checkpoint has no averages, since the run began without `train.average`.
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
