"""What passes of fixed widths need on a GPU: inputs at fixed addresses, and CUDA graphs, which are timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spantune.extraction.slot_cache import SlotCache
from spantune.models import ModelConfig, Span, blocks_of, kv_heads

NARROW = (16, 32, 64)  # passes of few tokens are padded to one of these,
WIDTH = 128  # and others to a multiple of this, since matrix products compute 128 rows at a time
REPEATS = 4  # the first passes of each width are timed; the fastest time counts
Inputs = TypeVar("Inputs", Tensor, NDArray[np.int64])


@dataclass(frozen=True)
class Shape:
    """The limits of a Forward: rows at a time, positions of a row, tokens of a pass, slots (None: by the memory)."""

    rows: int
    longest: int
    tokens: int
    slots: int | None = None


def fitting(count: int) -> int:
    """Return the narrowest width that holds `count` tokens."""
    return next((width for width in NARROW if width >= count), -(-count // WIDTH) * WIDTH)


class PassGraph:
    """The CUDA graph of the passes of one width, whose first REPEATS replays are timed.

    Attributes:
        graph: the graph.
        output: what it computes, at a fixed address.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, output: Tensor):
        self.graph, self.output = graph, output
        self._times: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._fastest: float | None = None

    @property
    def timed(self) -> int:
        """The number of timed replays so far, including one that is still running."""
        return len(self._times)

    @property
    def fastest(self) -> float | None:
        """The milliseconds of the fastest of the timed replays; None until all of them have ended."""
        if self._fastest is None and self.timed == REPEATS and self._times[-1][1].query():  # type: ignore[no-untyped-call]
            self._fastest = min(start.elapsed_time(end) for start, end in self._times)
        return self._fastest

    def replay(self) -> Tensor:
        """Launch the graph; return `output`."""
        if self.timed == REPEATS:
            self.graph.replay()
            return self.output
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        self.graph.replay()
        end.record()
        self._times.append((start, end))
        return self.output


class StaticInputs:
    """The inputs of a pass at fixed addresses in GPU memory, and the pinned memory that they are copied from."""

    def __init__(self, device: torch.device, shape: Shape, cache: SlotCache, config: ModelConfig):
        from spantune.models import queries_per_block

        self._per_block = queries_per_block(config.num_attention_heads // kv_heads(config))
        self._shape, self._cache = shape, cache
        self._blocks = shape.rows + shape.tokens // self._per_block + 1
        size = 4 * shape.tokens + shape.rows + 4 * self._blocks
        self._inputs = torch.zeros(size, dtype=torch.long, device=device)
        self._staging = [torch.zeros(size, dtype=torch.long, pin_memory=device.type == "cuda") for _ in range(2)]
        self._events = [_event(device) for _ in range(2)]
        self._turn = 0

    def load(self, tokens: NDArray[np.int64], last: NDArray[np.int64], spans: Sequence[Span], width: int) -> None:
        """Write a pass into pinned memory, padded to `width`."""
        self._turn ^= 1
        if event := self._events[self._turn]:
            event.synchronize()  # this buffer's last copy to the GPU must be done
        count = tokens.shape[1]
        staged, ends, blocks = self._split(self._staging[self._turn].numpy())
        staged[:, :count] = tokens
        staged[:, count:width] = self._padding()
        ends[: len(last)], ends[len(last) :] = last, 0
        cut = blocks_of(spans, self._per_block)
        blocks[: len(cut)] = cut
        blocks[len(cut) :] = 0

    def blank(self) -> None:
        """Make the pass in GPU memory consist of padding only, for a capture."""
        staged = torch.zeros(len(self._inputs), dtype=torch.long)
        self._split(staged.numpy())[0][:] = self._padding()
        self._inputs.copy_(staged)

    def ready(self) -> None:
        """Copy the loaded pass to the GPU."""
        self._inputs.copy_(self._staging[self._turn], non_blocking=True)
        if event := self._events[self._turn]:
            event.record()

    def views(self, width: int) -> tuple[Tensor, Tensor, Sequence[Span], Tensor]:
        """Return the tokens [4, width], the last ones [rows], no spans, and the blocks [blocks, 4] of the pass."""
        tokens, last, blocks = self._split(self._inputs)
        block_count = min(self._shape.rows, width) + width // self._per_block + 1
        return tokens[:, :width], last[: min(width, self._shape.rows)], (), blocks[:block_count]

    def _padding(self) -> NDArray[np.int64]:
        cell = self._cache.padding_row * self._shape.longest
        return np.array([[0], [0], [self._cache.capacity], [cell]])

    def _split(self, inputs: Inputs) -> tuple[Inputs, Inputs, Inputs]:
        tokens, rows = 4 * self._shape.tokens, self._shape.rows
        return (
            inputs[:tokens].reshape(4, self._shape.tokens),
            inputs[tokens : tokens + rows],
            inputs[tokens + rows :].reshape(self._blocks, 4),
        )


def _event(device: torch.device) -> torch.cuda.Event | None:
    return torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
