"""Forward passes of a decoding batch: the next tokens of all rows as one flat sequence, over a cache of slots.

    pass      row 1 row 1 row 1 row 3 row 4 row 4 …      one sequence of batch size one

A row may feed one token or a whole prompt without delaying the others. So forced tokens need no pass of their own, and
a prompt can join whenever there is room. On a CUDA GPU passes have one of a few fixed widths, and each width is a CUDA
graph, so that a pass is one launch. A model that is being trained, or whose forward pass cannot be captured, runs
without graphs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from subprocess import SubprocessError

import numpy as np
import torch
from torch import Tensor

from spantune.core import ModelError
from spantune.extraction.compiling import compile_checked
from spantune.extraction.fixed_passes import WIDTH, PassGraph, Shape, StaticInputs, fitting
from spantune.extraction.slot_cache import INSTRUCTION, SlotCache, bytes_per_token
from spantune.models import (
    CausalLM,
    ModelConfig,
    RowView,
    Runs,
    Span,
    causal_lm,
    head_size,
    kernel_error,
    kv_heads,
    unread_mask,
    windows,
)

PAGE = 256  # consecutive slots that a row takes at a time on a CPU
TYPICAL = 560  # slots of a row on average; a long row may take more
KERNEL_ERROR = 0.02  # bf16 rounding stays under 0.01; a wrong mask or layout is far above
COMPILED_TOKENS = 24  # tokens of the pass that compares compiled layers with plain ones
WIDER = 0.98  # a wider pass is used if it takes less than this share of the time of the narrower one
MEMORY_SHARE = 0.8  # the largest share of the free GPU memory that the cache takes
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """The tokens `ids` that one row feeds in a pass, at consecutive positions from `position` on."""

    row: int
    position: int
    ids: Sequence[int]


class Forward:
    """The forward passes of one decoding batch.

    Args:
        model: a causal LM of transformers with our attention, with or without PEFT adapters.
        shape: the limits of rows, positions, tokens and slots.
        states: whether `feed` returns last hidden states instead of logits, for a caller that needs only few logits.

    Raises:
        ModelError: the GPU has no memory for the keys and values of twice `shape.longest` tokens.
    """

    def __init__(self, model: CausalLM, shape: Shape, *, states: bool = False):
        assert fitting(shape.tokens) == shape.tokens, "the widest pass is one of the widths"
        self.shape = shape
        self.passes = 0
        self.instruction: list[int] = []
        self._model = causal_lm(model).base_model if states else model
        self.states = states
        self._config = model.config
        self._device: torch.device = next(model.parameters()).device
        self._dtype: torch.dtype = model.get_input_embeddings().weight.dtype
        self._windows = windows(self._config)
        on_cpu = self._device.type == "cpu"
        self._page = PAGE if on_cpu else 1
        kept = torch.promote_types(self._dtype, torch.float32) if on_cpu else None  # the joint attention needs float32
        self.cache = SlotCache(shape.rows, shape.longest, self._capacity(), self._device, self._page, kept)
        usable = _has_kernel(self._device) and _agrees(self._config, self._dtype, self._device)
        self._static = StaticInputs(self._device, shape, self.cache, self._config) if usable else None
        self._graphs: dict[int, PassGraph] | None = {} if self._static and _is_capturable(model) else None
        self._is_compiled = self._has_tried = False
        self._mask = unread_mask(self._config, self._dtype, self._device)

    @property
    def pipelined(self) -> bool:
        """Whether passes run asynchronously, as they do on a GPU."""
        return self._device.type == "cuda"

    def share(self, ids: Sequence[int]) -> None:
        """Compute the instruction, with which every row begins; `ids` are its tokens."""
        self.instruction = list(ids)
        for start in range(0, len(ids), self.shape.tokens):
            self.feed([Part(INSTRUCTION, start, ids[start : start + self.shape.tokens])], [0])
        self.cache.share(len(ids))

    def cut(self, length: int) -> None:
        """Shorten the shared instruction to its first `length` tokens; no row may be open."""
        del self.instruction[length:]
        self.cache.share(length)

    def feed(self, parts: Sequence[Part], output_parts: Sequence[int]) -> Tensor:
        """Run one pass over `parts`, and return the output after the last token of some of them.

        Args:
            parts: the tokens that rows feed.
            output_parts: the indices of the parts whose output is returned.

        Returns:
            Logits [output_parts, vocabulary], or last hidden states [output_parts, size] if `states`. On a GPU they are
            valid until the next call.
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
        last = np.array([firsts[index + 1] - 1 for index in output_parts], np.int64)
        if self._static is None:
            inputs, ends = torch.from_numpy(tokens).to(self._device), torch.from_numpy(last).to(self._device)
            return self._run(inputs, ends, spans, runs=self._runs(spans))
        width = self._width(tokens.shape[1])
        self._static.load(tokens, last, spans, width)
        return self._replay(width)[: len(output_parts)]

    def _runs(self, spans: Sequence[Span]) -> Runs | None:
        """Return where the keys of a pass lie in the cache, on a CPU; None on a GPU."""
        if self._device.type != "cpu":
            return None
        is_first = spans[0].row == INSTRUCTION
        return Runs([] if is_first else self.cache.runs(INSTRUCTION), [self.cache.runs(span.row) for span in spans])

    def _run(
        self,
        tokens: Tensor,
        last: Tensor,
        spans: Sequence[Span],
        blocks: Tensor | None = None,
        runs: Runs | None = None,
    ) -> Tensor:
        """Run one pass.

        Args:
            tokens: token ids, positions, slots, and cells of the flattened slot map [4, tokens].
            last: the indices of the tokens whose output is returned [output_parts].
            spans: where the rows are in the sequence.
            blocks: the kernel's blocks of queries [blocks, 4], on a GPU.
            runs: where the keys of the spans lie in the cache, on a CPU.
        """
        ids, positions, slots, cells = tokens
        self.cache.destination = slots
        self.cache.slots.view(-1).index_copy_(0, cells, slots.to(torch.int32))
        output = self._model(
            input_ids=ids[None],
            position_ids=positions[None],
            attention_mask=self._mask,
            past_key_values=self.cache,
            use_cache=True,
            rows=RowView(self.cache.slots, self._windows, spans, blocks, runs, *self._stores(slots)),
            **({} if self.states else {"logits_to_keep": last}),
        )
        result: Tensor = output.last_hidden_state[0].index_select(0, last) if self.states else output.logits[0]
        return result

    def _stores(self, destination: Tensor) -> tuple[()] | tuple[list[tuple[Tensor, Tensor]], Tensor]:
        return (self.cache.stores, destination) if self._is_compiled else ()

    def compile(self) -> None:
        """Compile the model's layers if passes are CUDA graphs; this is tried once, even if it fails.

        There must be a free row, and slots for COMPILED_TOKENS tokens.
        """
        if self._has_tried or not self._graphs_work():
            return
        self._has_tried = True
        torch.cuda.synchronize()  # the graphs are dropped below
        self._is_compiled = compile_checked(self._model, self._check_pass, COMPILED_TOKENS)
        self._graphs = {}

    def _graphs_work(self) -> bool:
        """Whether passes are CUDA graphs; the first call captures one to find out."""
        if self._graphs is not None and not self._graphs:
            self._width(1)
        return self._graphs is not None

    def _check_pass(self, is_compiled: bool) -> None:
        """Run a pass of arbitrary tokens after the instruction, with compiled or plain layers, without a graph."""
        self._graphs, self._is_compiled = None, is_compiled
        row = self.cache.open()
        ids = [(7 + 31 * number) % self._config.vocab_size for number in range(COMPILED_TOKENS)]
        self.feed([Part(row, len(self.instruction), ids)], [0])
        self.cache.close(row)

    def _width(self, count: int) -> int:
        """Return the width to use for a pass of `count` tokens: the next one, or the one after it if that is faster.

        Passes use the two widths in turns until the GPU has timed REPEATS passes of both.
        """
        width = fitting(count)
        wider = width + WIDTH
        narrow_graph = self._capture(width)
        if narrow_graph is None or width <= WIDTH or wider > self.shape.tokens:
            return width
        wide_graph = self._capture(wider)
        if wide_graph is None:
            return width
        if wide_graph.timed < narrow_graph.timed:
            return wider
        if wide_graph.fastest is None or narrow_graph.fastest is None:
            return width
        return wider if wide_graph.fastest < WIDER * narrow_graph.fastest else width

    def _replay(self, width: int) -> Tensor:
        """Run the loaded pass at a fixed width, as a CUDA graph if graphs can be used."""
        assert self._static is not None
        self._static.ready()
        if self._graphs is None:
            return self._run(*self._static.views(width))
        return self._graphs[width].replay()

    def _capture(self, width: int) -> PassGraph | None:
        """Return the graph of a width, captured now if there is none; None if passes run without graphs."""
        if self._graphs is None:
            return None
        if width in self._graphs:
            return self._graphs[width]
        assert self._static is not None
        self._static.blank()
        views = self._static.views(width)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                self._run(*views)  # compiles kernels and allocates workspaces, which is not possible during a capture
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            pool = next(iter(self._graphs.values())).graph.pool() if self._graphs else None
            with torch.cuda.graph(graph, pool=pool):
                output = self._run(*views)
        except RuntimeError as error:
            torch.cuda.synchronize()
            _LOG.warning("decoding without CUDA graphs, which is slower: %s", str(error).splitlines()[0])
            self._graphs = None
            return None
        self._graphs[width] = made = PassGraph(graph, output)
        return made

    def _capacity(self) -> int:
        shape = self.shape
        slots = shape.slots or min(shape.rows * TYPICAL, shape.rows * shape.longest) + 2 * shape.longest
        if self._device.type != "cuda":
            partial = (shape.rows + 1) * (self._page - 1)  # the last page of each row and of the instruction
            return -(-(slots + partial) // self._page) * self._page
        torch.cuda.empty_cache()  # memory that torch caches would count as used
        size = bytes_per_token(self._config, self._dtype)
        available = int(torch.cuda.mem_get_info(self._device)[0] * MEMORY_SHARE) // size
        if available < 2 * shape.longest:
            needs, has = (tokens * size / 2**30 for tokens in (2 * shape.longest, available))
            raise ModelError(
                f"texts and answers of up to {shape.longest} tokens need {needs:.1f} GiB for keys and values, and the "
                f"GPU has {has:.1f} GiB to give; lower train.max_tokens or extract.max_new_tokens, or free memory"
            )
        return min(slots, available)


def _has_kernel(device: torch.device) -> bool:
    """Whether Triton can compile here, which needs a CUDA GPU and a C compiler."""
    if device.type != "cuda":
        return False
    try:
        from triton.runtime import driver

        driver.active.get_current_device()
    except (ImportError, RuntimeError, OSError, SubprocessError) as error:
        _LOG.warning("decoding without our GPU kernel, which is slower: %s", str(error).splitlines()[0])
        return False
    return True


def _agrees(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernel's attention equals the reference up to rounding, so that a compiler's error is noticed."""
    try:
        error = kernel_error(config.num_attention_heads, kv_heads(config), head_size(config), dtype, device)
    except Exception as exception:  # the errors of a compiler have no common class
        _LOG.warning("decoding without our GPU kernel, which is slower: %s", (str(exception).splitlines() or [""])[0])
        return False
    if not error < KERNEL_ERROR:
        _LOG.warning("decoding without our GPU kernel, which is off by %.1g here and would be faster", error)
        return False
    return True


def _is_capturable(model: CausalLM) -> bool:
    """Whether the model's forward pass can be a CUDA graph.

    It cannot if the weights change, or if the RoPE depends on the positions (`dynamic` and `longrope`).
    """

    def kinds(values: object) -> set[str]:
        if not isinstance(values, dict):
            return set()
        return {str(values.get("rope_type"))}.union(*map(kinds, values.values()))

    depends_on_positions = {"dynamic", "longrope"} & kinds(getattr(model.config, "rope_parameters", None))
    return not depends_on_positions and not any(parameter.requires_grad for parameter in model.parameters())
