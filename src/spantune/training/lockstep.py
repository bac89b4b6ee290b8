"""Extraction by ranks that share a divided base: each computes its own documents, and gathers layers for the others.

A layer that is divided is gathered from all ranks for each pass through it, so that a pass takes all of them.
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
    """Let every rank take as many passes through `model` as it likes inside the block.

    Before a pass each rank says that it takes one. A rank that has none left gathers the layers for the others, until
    no rank has any left; only then the block ends. A signal that one rank got is in `stop` of all by the next pass.

    Raises:
        RunError: a pass failed, such as for want of memory; the other ranks, which wait in its middle, cannot go on.
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
    """The passes of this rank, each of which the other ranks know of."""

    def __init__(self, ranks: Ranks, stop: StopRequest):
        self._ranks, self._stop = ranks, stop
        self._is_within = False

    def begin(self, *_: Any) -> None:
        """Tell the other ranks of a pass."""
        self.require_whole()
        self._is_within = True
        self._tell(1)

    def end(self, *_: Any) -> None:
        """A pass has gone through all layers."""
        self._is_within = False

    def others_take_one(self) -> bool:
        """Tell the other ranks that this one takes no pass; returns whether any of them does."""
        return self._tell(0)

    def require_whole(self) -> None:
        """Check that the last pass has ended.

        Raises:
            RunError: it has failed within the layers.
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
