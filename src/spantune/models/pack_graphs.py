"""CUDA graphs of packs: the forward pass and the backward pass over a pack are each launched as one graph.

A pass through forty layers consists of about a thousand small kernel launches. For a short pack the host takes longer
to launch them than the GPU to compute them. So packs are padded to a few sizes; for each size the passes are captured
once as graphs, and then replayed on copies of a pack's tensors:

    real      [prefix][example 1]…[example E]
    padded    [prefix][example 1]…[example E][filler 1]…[filler F]

A filler is an example without meaning: no other example attends to it, and the gradient of its hidden states is 0, so
it adds exactly 0 to every gradient. The embedding, the layers and the last norm are captured. The operations after them
have other shapes in every pack and are launched one by one. All graphs share one pool of memory, since a graph keeps
nothing after its backward pass. They add to gradients at fixed addresses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from spantune.models.architecture import causal_lm, decoder_layers
from spantune.models.interfaces import CausalLM
from spantune.models.kernels.packs import STEP, Spans
from spantune.models.span_packs import moved

MOST_GRAPHS = 32
LARGE = 1.5  # the tokens of a large step, divided by those of a usual step
WORK = 1.5e12  # from this product of a layer's weights and tokens on, an H200 takes longer for a layer than its host
EXAMPLES, ROWS = 4, 128  # a padded pack has a multiple of EXAMPLES examples and, above 1,024, of ROWS tokens
log = logging.getLogger(__name__)


class Shape(NamedTuple):
    """The sizes of a pack, and the numbers that kernels get as arguments; packs with equal ones can share a graph."""

    tokens: int
    sequences: int
    keys: int
    prefix: int
    longest: int
    causal: int


@dataclass(frozen=True)
class Padded:
    """A pack with its fillers: `ids` and `positions` [tokens], and the layout of its sequences."""

    ids: Tensor
    positions: Tensor
    spans: Spans

    @property
    def shape(self) -> Shape:
        """The shape of the pack, by which its graph is found."""
        spans = self.spans
        sequences, prefix = len(spans.queries) - 1, spans.copies.shape[1]
        return Shape(len(self.ids), sequences, len(spans.tokens), prefix, spans.longest, spans.causal)

    @property
    def fields(self) -> tuple[Tensor, Tensor, Spans]:
        """The three fields."""
        return self.ids, self.positions, self.spans

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of all fields."""
        return [self.ids, self.positions, *(field for field in self.spans if isinstance(field, Tensor))]

    def copied(self) -> Padded:
        """Return a copy of the pack in new memory."""
        fields = self.spans._asdict()
        copies: dict[str, Any] = {name: field.clone() for name, field in fields.items() if isinstance(field, Tensor)}
        return Padded(self.ids.clone(), self.positions.clone(), self.spans._replace(**copies))


def padded(ids: Tensor, positions: Tensor, spans: Spans, least: int = 0) -> Padded:
    """Add fillers to a pack, so that packs have few different sizes.

    There are one to four fillers, each of at least one token. With them the number of examples is a multiple of 4, and
    the number of tokens a multiple of 64, or of 128 above 1,024, since matrix products compute 128 rows at a time.

    Args:
        ids: [tokens], the token ids of the pack.
        positions: [tokens], the positions of the tokens.
        spans: the layout of its sequences.
        least: the least number of tokens, fillers included.
    """
    tokens, (copies, prefix) = len(ids), spans.copies.shape
    examples = copies if prefix else len(spans.queries) - 1
    fillers = EXAMPLES - examples % EXAMPLES
    step = ROWS // 2 if tokens < 1024 else ROWS
    extra = -(-max(tokens + fillers, least) // step) * step - tokens
    lengths = [extra // fillers + (number < extra % fillers) for number in range(fillers)]
    queries = list(accumulate(lengths, initial=tokens))
    keys = list(accumulate((prefix + length for length in lengths), initial=len(spans.tokens)))
    shared = list(range(prefix))
    index: list[int] = []
    own: list[int] = []
    copied: list[int] = []
    for start, place, length in zip(queries, keys, lengths, strict=False):
        index += [*shared, *range(start, start + length)]
        own += range(place + prefix, place + prefix + length)
        copied += range(place, place + prefix)
    added = [queries[1:], keys[1:], index, own, copied]
    sizes = [extra, *map(len, added)]
    # All added numbers are copied to the device at once. The ids and positions of fillers are 0.
    numbers = moved(torch.tensor([0] * extra + [number for numbers in added for number in numbers]), ids.device)
    parts = torch.split(numbers, sizes)
    longest = max(spans.longest, -(-(prefix + max(lengths)) // STEP) * STEP)
    return Padded(
        torch.cat((ids, parts[0])),
        torch.cat((positions, parts[0])),
        Spans(
            torch.cat((spans.queries, parts[1].int())),
            torch.cat((spans.keys, parts[2].int())),
            torch.cat((spans.tokens, parts[3])),
            torch.cat((spans.own, parts[4])),
            torch.cat((spans.copies, parts[5].view(-1, prefix))) if prefix else spans.copies,
            longest,
            spans.causal,
        ),
    )


@dataclass(frozen=True)
class _Graph:
    """The graphs of one shape: they read `pack`; `given` keeps the other arguments of the forward pass in memory."""

    pack: Padded
    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    given: dict[str, Any]


class PackGraphs:
    """The forward of a base model (embedding to last norm) that replays graphs for packs in training.

    The first pack runs without a graph, so that all kernels are compiled and loaded. After it, each shape is captured
    when it occurs for the first time. All packs are padded, with a graph or without one, so that a step's result does
    not depend on when its graph was captured.

    If a pack is larger than all captured ones, all graphs are dropped, and captured again when they are needed.
    Otherwise the memory pool would hold blocks for the smaller packs beside those for the larger one. So that this
    happens rarely, a pack of `first` tokens, more than usual, is captured before all others.

    A shape that cannot be captured runs without a graph, and is tried once more. If this fails too, or memory runs out
    during a capture, training goes on without graphs.

    Args:
        plain: the forward that is captured; it is called with transformers' arguments by name.
        weights: the trained weights of the base model.
        tokens: packs with more tokens are neither padded nor captured.
        first: the tokens of the pack that is captured before all others; 0 for no such pack.
    """

    def __init__(self, plain: Callable[..., Any], weights: Sequence[Tensor], tokens: int, first: int = 0):
        self.plain, self.tokens, self._first = plain, tokens, first
        self.graphs: dict[Shape, _Graph] = {}
        self.captures = 0
        """The number of captures so far."""
        self._weights = list(weights)
        self._failed: set[Shape] = set()
        self._is_off = False
        self._shared: _Shared | None = None
        self._like: Tensor | None = None  # a hidden state of the first pack, for its type and device
        self._ahead: tuple[Tensor, Padded] | None = None  # the ids of the next pack, and this pack with fillers

    def __call__(self, **given: Any) -> Any:
        """Run the forward pass with transformers' arguments by name.

        A pack, which has `spans`, is computed with fillers; their states are not returned.
        """
        spans: Spans | None = given.get("spans")
        if spans is None or self._is_off or not torch.is_grad_enabled() or given["input_ids"].shape[1] > self.tokens:
            return self.plain(**given)
        count = given["input_ids"].shape[1]
        ids, positions, spans = given.pop("input_ids")[0], given.pop("position_ids")[0], given.pop("spans")
        ahead, self._ahead = self._ahead, None
        is_ready = ahead is not None and ahead[0].data_ptr() == ids.data_ptr()
        pack = ahead[1] if is_ready and ahead else padded(ids, positions, spans)
        graph = self._graph(pack, given)
        if graph is not None:
            return BaseModelOutputWithPast(last_hidden_state=self._replayed(graph, pack, count))
        output = self._run(pack, given)
        self._like = output.last_hidden_state.detach()[0, 0].clone()
        output.last_hidden_state = output.last_hidden_state[:, :count]
        return output

    def pad_ahead(self, ids: Tensor, positions: Tensor, spans: Spans) -> None:
        """Add the fillers to the next pack while the GPU still computes; if called for several packs, to the first."""
        if self._ahead is None and self._like is not None and not self._is_off and len(ids) <= self.tokens:
            self._ahead = ids, padded(ids, positions, spans)

    def release(self) -> None:
        """Drop all graphs and give back their memory; a shape that occurs again is captured again."""
        if self._shared is not None:
            self.graphs.clear()
            self._shared = None
            torch.cuda.empty_cache()

    def end(self, reason: str) -> None:
        """Use no graphs from now on, and give back their memory; `reason` is logged."""
        self._is_off = True
        self.release()
        log.warning("training goes on without CUDA graphs, and may be slower: %s", reason)

    def _replayed(self, graph: _Graph, pack: Padded, count: int) -> Tensor:
        """Return the hidden states [1, count, hidden] of the pack, computed by its graph."""
        shared = self._shared
        assert shared is not None
        torch._foreach_copy_(graph.pack.tensors, pack.tensors)
        states: Tensor = _Replay.apply(shared.anchor, shared, graph, count)  # type: ignore[no-untyped-call]
        return states

    def _run(self, pack: Padded, given: dict[str, Any]) -> Any:
        """Run the forward pass without a graph.

        Autocast does not cache casted weights: a cached one would be in the memory of a graph.
        """
        kind = pack.ids.device.type
        autocast = torch.autocast(
            kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False
        )
        with autocast:
            return self.plain(input_ids=pack.ids[None], position_ids=pack.positions[None], spans=pack.spans, **given)

    def _graph(self, pack: Padded, given: dict[str, Any]) -> _Graph | None:
        """Return the graph of the pack's shape, captured now if needed; None if the pack has to run without one."""
        shape = pack.shape
        if shape in self.graphs or self._like is None or len(self.graphs) == MOST_GRAPHS:
            return self.graphs.get(shape)
        if self._first > shape.tokens and not self.graphs:
            self._capture(padded(*pack.copied().fields, least=self._first + EXAMPLES), given, is_needed=False)
        if shape.tokens > max((other.tokens for other in self.graphs), default=0):
            self.release()  # otherwise the pool would hold larger blocks beside those of the smaller packs
        self._capture(pack.copied(), given)
        return self.graphs.get(shape)

    def _capture(self, pack: Padded, given: dict[str, Any], *, is_needed: bool = True) -> None:
        """Try to capture `pack`, whose tensors the graph then owns.

        If memory runs out and `is_needed`, training goes on without graphs.
        """
        shape = pack.shape
        assert self._like is not None
        try:
            with torch.cuda.stream(torch.cuda.current_stream()):  # restores the stream, also if the capture fails
                self.graphs[shape] = self._captured(pack, given, self._like)
        except torch.OutOfMemoryError:
            self._first = 0
            self.end("memory is short") if is_needed else self.release()
        except (RuntimeError, AssertionError) as error:
            log.debug("%s cannot be captured", shape, exc_info=True)
            self.release()  # the pool cannot be used after a failed capture
            if shape in self._failed:
                self.end(str(error).splitlines()[0])
            self._failed.add(shape)

    def _captured(self, pack: Padded, given: dict[str, Any], like: Tensor) -> _Graph:
        """Capture both passes over `pack`, whose tensors the graph then owns.

        Args:
            pack: the pack with its fillers.
            given: the other arguments of the forward pass.
            like: a hidden state [hidden] of the model's type and device.
        """
        self.captures += 1
        shared = self._shared = self._shared or _Shared(self._weights, like, self.tokens)
        shared.bind_gradients()
        forward, backward, count = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph(), len(pack.ids)
        with shared.capture(forward):
            states = self._run(pack, given).last_hidden_state
            shared.states[:count].copy_(states[0].detach())
        with shared.capture(backward), shared.adding():
            torch.autograd.backward(states, shared.gradient[None, :count])
        return _Graph(pack, forward, backward, given)


class _Shared:
    """The memory that all graphs share: their pool, and the tensors outside of it that they read and write.

    Attributes:
        states: [tokens, hidden], the last hidden states of the graph that ran last.
        gradient: [tokens, hidden], the gradient of `states`.
        anchor: a scalar that requires a gradient, so that autograd runs the backward graph.
    """

    def __init__(self, weights: Sequence[Tensor], like: Tensor, tokens: int):
        self._weights = weights
        self._gradients = [torch.zeros_like(weight) for weight in weights]
        rows = -(-(tokens + EXAMPLES) // ROWS) * ROWS
        self.states, self.gradient = (like.new_zeros((rows, len(like))) for _ in range(2))
        self.anchor = torch.zeros((), device=like.device, requires_grad=True)
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(like.device)  # type: ignore[no-untyped-call]

    def capture(self, graph: torch.cuda.CUDAGraph) -> torch.cuda.graph:
        """Return the context in which kernel launches are captured into `graph`; other threads may use the GPU."""
        return torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local")

    @contextmanager
    def adding(self) -> Iterator[None]:
        """Add the gradients of the backward pass inside the block to the existing ones, with one launch for all."""
        for weight in self._weights:
            weight.grad = None
        try:
            yield
            pairs = zip(self._gradients, self._weights, strict=True)
            added = [(place, weight.grad) for place, weight in pairs if weight.grad is not None]
            torch._foreach_add_([place for place, _ in added], [gradient for _, gradient in added])
        finally:
            for weight, place in zip(self._weights, self._gradients, strict=True):
                weight.grad = place

    def bind_gradients(self) -> None:
        """Move the gradients of all weights to the addresses that the graphs add to; a missing gradient becomes 0."""
        empty = []
        for weight, place in zip(self._weights, self._gradients, strict=True):
            if weight.grad is place:
                continue
            if weight.grad is None:
                empty.append(place)
            else:
                place.copy_(weight.grad)
            weight.grad = place
        if empty:
            torch._foreach_zero_(empty)


class _Replay(torch.autograd.Function):
    """The last hidden states of a pack by its forward graph; the backward pass is the backward graph.

    The graph itself adds the gradients of the weights. So autograd sees no input except `anchor`.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, shared: _Shared, graph: _Graph, count: int) -> Tensor:
        ctx.run = shared, graph
        graph.forward.replay()
        return shared.states[None, :count]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None, None]:
        shared, graph = ctx.run
        count = grad.shape[1]
        shared.gradient[:count].copy_(grad[0])
        shared.gradient[count : len(graph.pack.ids)].zero_()
        shared.bind_gradients()
        graph.backward.replay()
        return None, None, None, None


def graph_packs(model: CausalLM, tokens: int, usual: float = 0.0) -> None:
    """Replay the training packs of `model` as CUDA graphs from now on.

    Args:
        model: the model with its adapter, on a GPU; its layers may be compiled.
        tokens: packs with more tokens run without graphs.
        usual: the tokens of a pack in a usual step; few packs should have more than LARGE times as many.
    """
    base = causal_lm(model).base_model
    weights = [weight for weight in base.parameters() if weight.requires_grad]
    base.forward = PackGraphs(base.forward, weights, tokens, min(tokens, int(LARGE * usual)))


def pad_ahead(model: CausalLM, ids: Tensor, positions: Tensor, spans: Mapping[str, Any] | None) -> None:
    """Add the fillers to the next pack, if `model` replays packs as CUDA graphs.

    Args:
        model: the model.
        ids: [tokens], the token ids of the pack.
        positions: [tokens], the positions of the tokens.
        spans: the fields of `Spans`; None for a pack without them, for which nothing is done.
    """
    forward = causal_lm(model).base_model.forward
    if isinstance(forward, PackGraphs) and spans is not None:
        forward.pad_ahead(ids, positions, Spans(**spans))


def graph_limit(model: CausalLM) -> float:
    """Return the number of tokens of a pack above which graphs save no time, since the GPU is slower than the host."""
    layers = decoder_layers(model)
    return WORK * len(layers) / sum(weight.numel() for layer in layers for weight in layer.parameters())


def release_graphs(model: CausalLM) -> None:
    """Give back the memory of the graphs of `model`, if it has any."""
    forward = causal_lm(model).base_model.forward
    if isinstance(forward, PackGraphs):
        forward.release()


def end_graphs(model: CausalLM) -> bool:
    """Stop the use of graphs in `model`, since memory is short; returns whether it had any."""
    forward = causal_lm(model).base_model.forward
    had_graphs = isinstance(forward, PackGraphs) and bool(forward.graphs)
    if had_graphs:
        forward.end("memory is short")
    return had_graphs
