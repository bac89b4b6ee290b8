"""Forward passes of a decoding batch: the next tokens of all rows as one flat sequence, over a cache of slots.

    pass      row 1 row 1 row 1 row 3 row 4 row 4 …      one sequence of batch size one

A row feeds one token or a whole prompt without holding up the others, so forced tokens cost no pass of their own and
prompts are taken in whenever there is room. On a CUDA GPU passes have a few fixed widths, and each width is a CUDA
graph: a step is one launch. A model that is being trained, or whose forward cannot be captured, runs without graphs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from subprocess import SubprocessError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spantune.core import ModelError
from spantune.extraction.kv_cache import INSTRUCTION, SlotCache, bytes_per_token
from spantune.models import RowView, Span, blocks_of, causal_lm, head_size, kernel_error, kv_heads, unread_mask, windows

WIDTH = 64  # passes of a graph are filled up to a multiple of this, or to a power of two below it
SMALLEST = 16
TYPICAL = 768  # slots a row is given on average; the longest rows may take more
KERNEL_ERROR = 0.02  # bf16 rounding stays under 0.01; a wrong mask or layout is far above
MEMORY_SHARE = 0.8  # of the GPU memory that is free, at the most
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shape:
    """Most rows at a time, positions of a row, tokens a pass, and slots (as many as make sense when absent)."""

    rows: int
    longest: int
    tokens: int
    slots: int | None = None


@dataclass(frozen=True)
class Part:
    """What one row feeds in a pass: `ids` at the positions from `position` on."""

    row: int
    position: int
    ids: Sequence[int]


class Forward:
    """The passes of one batch of a model.

    Args:
        model: a causal LM of transformers with our attention, with or without PEFT adapters.
        shape: the bounds.
        states: whether `feed` gives last hidden states, for a caller that needs few logits, instead of logits.

    Raises:
        ModelError: not even one row fits into the GPU's memory.
    """

    def __init__(self, model: Any, shape: Shape, *, states: bool = False):
        assert shape.tokens % WIDTH == 0, "the widest pass is one of the widths"
        self.shape = shape
        self.passes = 0
        self.instruction: list[int] = []
        self._model = causal_lm(model).base_model if states else model
        self.states = states
        self._config = model.config
        self._device: torch.device = next(model.parameters()).device
        self._dtype: torch.dtype = model.get_input_embeddings().weight.dtype
        self._windows = windows(self._config)
        self.cache = SlotCache(shape.rows, shape.longest, self._capacity(), self._device)
        usable = _has_kernel(self._device) and _agrees(self._config, self._dtype, self._device)
        self._static = _Static(self._device, shape, self.cache, self._config) if usable else None
        self._graphs: dict[int, tuple[Any, Tensor]] | None = {} if self._static and _is_capturable(model) else None
        self._mask = unread_mask(self._config, self._dtype, self._device)

    @property
    def pipelined(self) -> bool:
        """Whether passes go on by themselves while the caller does something else."""
        return self._device.type == "cuda"

    def share(self, ids: Sequence[int]) -> None:
        """Compute the instruction that every row begins with."""
        self.instruction = list(ids)
        for start in range(0, len(ids), self.shape.tokens):
            self.feed([Part(INSTRUCTION, start, ids[start : start + self.shape.tokens])], [0])
        self.cache.share(len(ids))

    def cut(self, length: int) -> None:
        """Shorten the instruction to its first `length` tokens; no row may be open."""
        del self.instruction[length:]
        self.cache.share(length)

    def feed(self, parts: Sequence[Part], wanted: Sequence[int]) -> Tensor:
        """Feed `parts`; returns logits [wanted, vocabulary], or states, of what follows the parts of these indices.

        On a GPU they are valid until the next call.
        """
        self.passes += 1
        counts = [len(part.ids) for part in parts]
        firsts = [0, *accumulate(counts)]
        spans = [
            Span(part.row, first, count, part.position)
            for part, first, count in zip(parts, firsts, counts, strict=False)
        ]
        taken = [slot for part in parts for slot in self.cache.take(part.row, len(part.ids))]
        ids = np.fromiter((token for part in parts for token in part.ids), np.int64, firsts[-1])
        rows = np.repeat([part.row for part in parts], counts)
        positions = np.arange(firsts[-1]) + np.repeat([s.position - s.first for s in spans], counts)
        tokens = np.stack([ids, positions, np.array(taken), rows * self.shape.longest + positions])
        last = np.array([firsts[index + 1] - 1 for index in wanted], np.int64)
        if self._static is None:
            return self._run(torch.from_numpy(tokens).to(self._device), torch.from_numpy(last).to(self._device), spans)
        width = self._static.load(tokens, last, spans)
        return self._replay(width)[: len(wanted)]

    def _run(self, tokens: Tensor, last: Tensor, spans: Sequence[Span], blocks: Tensor | None = None) -> Tensor:
        """One pass: `tokens` are ids, positions, slots and cells of the slot map [4, tokens]."""
        ids, positions, slots, cells = tokens
        self.cache.destination = slots
        self.cache.slots.view(-1).index_copy_(0, cells, slots.to(torch.int32))
        output = self._model(
            input_ids=ids[None],
            position_ids=positions[None],
            attention_mask=self._mask,
            past_key_values=self.cache,
            use_cache=True,
            rows=RowView(self.cache.slots, self._windows, spans, blocks),
            **({} if self.states else {"logits_to_keep": last}),
        )
        found: Tensor = output.last_hidden_state[0].index_select(0, last) if self.states else output.logits[0]
        return found

    def _replay(self, width: int) -> Tensor:
        """A pass of a fixed width over what was loaded, as a graph where there may be graphs."""
        assert self._static is not None
        if self._graphs is not None and width not in self._graphs:
            self._capture(width)
        if self._graphs is None:
            self._static.ready()
            return self._run(*self._static.views(width))
        graph, logits = self._graphs[width]
        self._static.ready()
        graph.replay()
        return logits

    def _capture(self, width: int) -> None:
        assert self._static is not None and self._graphs is not None
        self._static.blank()
        views = self._static.views(width)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                self._run(*views)  # compiles kernels and makes their workspaces, which a capture may not
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            pool = next(iter(self._graphs.values()))[0].pool() if self._graphs else None
            with torch.cuda.graph(graph, pool=pool):
                logits = self._run(*views)
        except RuntimeError as error:
            torch.cuda.synchronize()
            _LOG.warning("decoding without CUDA graphs, which is slower: %s", str(error).splitlines()[0])
            self._graphs = None
            return
        self._graphs[width] = graph, logits

    def _capacity(self) -> int:
        shape = self.shape
        wanted = shape.slots or min(shape.rows * TYPICAL, shape.rows * shape.longest) + 2 * shape.longest
        if self._device.type != "cuda":
            return wanted
        torch.cuda.empty_cache()  # what is kept for nobody counts as taken
        size = bytes_per_token(self._config, self._dtype)
        there = int(torch.cuda.mem_get_info(self._device)[0] * MEMORY_SHARE) // size
        if there < 2 * shape.longest:
            needs, has = (tokens * size / 2**30 for tokens in (2 * shape.longest, there))
            raise ModelError(
                f"texts and answers of up to {shape.longest} tokens need {needs:.1f} GiB for keys and values, and the "
                f"GPU has {has:.1f} GiB to give; lower train.max_tokens or extract.max_new_tokens, or free memory"
            )
        return min(wanted, there)


class _Static:
    """What a pass reads, at fixed places in GPU memory, and the pinned memory that it is loaded from."""

    def __init__(self, device: torch.device, shape: Shape, cache: SlotCache, config: Any):
        from spantune.models import queries_per_block

        self._per_block = queries_per_block(config.num_attention_heads // kv_heads(config))
        self._shape, self._cache = shape, cache
        self._blocks = shape.rows + shape.tokens // self._per_block + 1
        size = 4 * shape.tokens + shape.rows + 4 * self._blocks
        self._inputs = torch.zeros(size, dtype=torch.long, device=device)
        self._staging = [torch.zeros(size, dtype=torch.long, pin_memory=device.type == "cuda") for _ in range(2)]
        self._events: list[Any] = [_event(device) for _ in range(2)]
        self._turn = 0

    def load(self, tokens: NDArray[np.int64], last: NDArray[np.int64], spans: Sequence[Span]) -> int:
        """Put a pass into pinned memory, filled up to its width, which is returned."""
        self._turn ^= 1
        if event := self._events[self._turn]:
            event.synchronize()  # the pass before the last has read it
        count = tokens.shape[1]
        width = next((w for w in (16, 32) if w >= count), -(-count // WIDTH) * WIDTH)
        staged, ends, blocks = self._split(self._staging[self._turn].numpy())
        staged[:, :count] = tokens
        staged[:, count:width] = self._nobody()
        ends[: len(last)], ends[len(last) :] = last, 0
        cut = blocks_of(spans, self._per_block)
        blocks[: len(cut)] = cut
        blocks[len(cut) :] = 0
        return width

    def blank(self) -> None:
        """Make the pass in GPU memory one of no row, which a capture may run."""
        staged = torch.zeros(len(self._inputs), dtype=torch.long)
        self._split(staged.numpy())[0][:] = self._nobody()
        self._inputs.copy_(staged)

    def ready(self) -> None:
        """Send what was loaded to the GPU."""
        self._inputs.copy_(self._staging[self._turn], non_blocking=True)
        if event := self._events[self._turn]:
            event.record()

    def views(self, width: int) -> tuple[Tensor, Tensor, Sequence[Span], Tensor]:
        """The tokens [4, width], the last ones [rows], no spans, and the blocks [blocks, 4] of a pass."""
        tokens, last, blocks = self._split(self._inputs)
        shown = self._shape.rows + width // self._per_block + 1
        return tokens[:, :width], last[: min(width, self._shape.rows)], (), blocks[:shown]

    def _nobody(self) -> NDArray[np.int64]:
        cell = self._cache.nobody * self._shape.longest
        return np.array([[0], [0], [self._cache.capacity], [cell]])

    def _split(self, inputs: Any) -> tuple[Any, Any, Any]:
        tokens, rows = 4 * self._shape.tokens, self._shape.rows
        return (
            inputs[:tokens].reshape(4, self._shape.tokens),
            inputs[tokens : tokens + rows],
            inputs[tokens + rows :].reshape(self._blocks, 4),
        )


def _event(device: torch.device) -> Any:
    return torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _has_kernel(device: torch.device) -> bool:
    """Whether Triton can compile here: it needs a CUDA GPU, and a C compiler on the machine."""
    if device.type != "cuda":
        return False
    try:
        from triton.runtime import driver

        driver.active.get_current_device()
    except (ImportError, RuntimeError, OSError, SubprocessError) as error:
        _LOG.warning("decoding without our GPU kernel, which is slower: %s", str(error).splitlines()[0])
        return False
    return True


def _agrees(config: Any, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernel gives the plain way's attention here, to rounding: a compiler's fault must not go unseen."""
    try:
        error = kernel_error(config.num_attention_heads, kv_heads(config), head_size(config), dtype, device)
    except Exception as found:  # the boundary to a compiler, whose errors have no common kind
        _LOG.warning("decoding without our GPU kernel, which is slower: %s", (str(found).splitlines() or [""])[0])
        return False
    if not error < KERNEL_ERROR:
        _LOG.warning("decoding without our GPU kernel, which is off by %.1g here and would be faster", error)
        return False
    return True


def _is_capturable(model: Any) -> bool:
    """Whether a CUDA graph can hold the model's forward: not if its weights change or its RoPE looks at positions."""

    def kinds(values: Any) -> set[str]:
        if not isinstance(values, dict):
            return set()
        return {str(values.get("rope_type"))}.union(*map(kinds, values.values()))

    looks = {"dynamic", "longrope"} & kinds(getattr(model.config, "rope_parameters", None))
    return not looks and not any(parameter.requires_grad for parameter in model.parameters())
