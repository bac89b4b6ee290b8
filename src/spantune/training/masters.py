"""fp32 copies (master weights) of weights that are trained in bf16, as mixed-precision training keeps them.

AdamW's small updates would be lost if they were added to a bf16 weight. So the optimizer changes an fp32 copy, and the
model gets the copy rounded to its own type. The forward passes of training and extraction do not change.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from spantune.core import RunError


class MasterWeights:
    """The fp32 copies of those parameters of `optimizer` that are not fp32; the optimizer changes them from then on.

    Parameters in fp32, such as LoRA adapters, have no copy.
    """

    def __init__(self, optimizer: Optimizer):
        self._pairs: list[tuple[Tensor, Tensor]] = []  # weight and copy
        for group in optimizer.param_groups:
            group["params"] = [self._master_of(weight) for weight in group["params"]]

    def take_gradients(self) -> None:
        """Move the gradients of the weights to the copies, as fp32."""
        for weight, master in self._pairs:
            if weight.grad is not None:
                master.grad = weight.grad.float()
                weight.grad = None

    def drop_gradients(self) -> None:
        """Drop the gradients of the weights."""
        for weight, _ in self._pairs:
            weight.grad = None

    def give_weights(self) -> None:
        """Set the weights to their copies, rounded to the type of the weights."""
        with torch.no_grad():
            for weight, master in self._pairs:
                weight.copy_(master)

    def state(self) -> list[Tensor]:
        """Return the copies, for a checkpoint."""
        return [master.detach() for _, master in self._pairs]

    def restore(self, state: Sequence[Tensor]) -> None:
        """Take the copies of a checkpoint.

        Raises:
            RunError: the checkpoint has another number of copies, since the model was of another type when it was
                written.
        """
        if len(state) != len(self._pairs):
            raise RunError(
                f"the checkpoint has fp32 copies of {len(state)} weights, and the model as it was loaded now needs "
                f"{len(self._pairs)}: full fine-tuning goes on with the type that it began with; resume on a device of "
                "the same kind, with the same model.base"
            )
        with torch.no_grad():
            for (_, master), saved in zip(self._pairs, state, strict=True):
                master.copy_(saved)

    def _master_of(self, weight: Tensor) -> Tensor:
        """Return the tensor that the optimizer changes for `weight`: a new copy, or the weight itself if it is fp32."""
        if weight.dtype == torch.float32:
            return weight
        master = weight.detach().float().requires_grad_()
        self._pairs.append((weight, master))
        return master
