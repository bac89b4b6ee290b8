"""Extraction by ranks with a divided base: each computes its own documents, and gathers layers with the others.

Before a pass through a divided layer the layer is gathered from all ranks. So all ranks must take part in each pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from spantune.core import RunError, StopRequest
from spantune.models import CausalLM, causal_lm, gather_layers
from spantune.training.ranks import Ranks


@contextmanager
def in_lockstep(model: CausalLM, ranks: Ranks, stop: StopRequest) -> Iterator[None]:
    """Let the ranks take different numbers of passes through `model` inside the block.

    Before each pass a rank tells the others that it takes one. A rank that has finished its passes takes part in
    gathering the layers until all ranks have finished; then the block ends. A signal that one rank got is in `stop` on
    all ranks by the next pass.

    Raises:
        RunError: a pass failed, for example for want of memory. The other ranks wait in the middle of it and cannot go
            on.
    """
    passes = _Passes(ranks, stop)
    base = causal_lm(model).base_model
    hooks = [
        base.register_forward_pre_hook(passes.begin, prepend=True),  # before the hooks that gather
        base.register_forward_hook(passes.end),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    passes.require_whole()
    while passes.others_take_one():
        gather_layers(model)


class _Passes:
    """Tells the other ranks of each pass of this rank."""

    def __init__(self, ranks: Ranks, stop: StopRequest):
        self._ranks, self._stop = ranks, stop
        self._is_within = False

    def begin(self, *_: Any) -> None:
        """Tell the other ranks that this one begins a pass."""
        self.require_whole()
        self._is_within = True
        self._tell(1)

    def end(self, *_: Any) -> None:
        """Note that the pass has gone through all layers."""
        self._is_within = False

    def others_take_one(self) -> bool:
        """Tell the other ranks that this one takes no pass; returns whether another rank takes one."""
        return self._tell(0)

    def require_whole(self) -> None:
        """Check that the last pass of this rank has ended.

        Raises:
            RunError: it has failed inside the layers.
        """
        if self._is_within:
            raise RunError(
                "a pass of an evaluation failed on this rank, probably for want of memory, and with "
                "distributed.strategy=fsdp it cannot be repeated; set a lower extract.batch_size in the config.yaml of "
                "the run, and resume from the last checkpoint"
            )

    def _tell(self, passes: int) -> bool:
        rows = self._ranks.table([passes, self._stop.number or 0])
        if number := int(max(row[1] for row in rows)):
            self._stop.number = number
        return any(row[0] for row in rows)
