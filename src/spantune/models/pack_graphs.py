"""CUDA graphs of packs: the pass of the layers over a pack, and its backward pass, launched as one each.

A pass of forty layers is some thousand small launches, which the host takes longer for than a GPU does for the kernels
of a short pack. So packs are padded to a few sizes, and the passes of a size that has come before are captured once,
and then replayed on copies of the pack's tensors:

    real      [prefix][example 1]…[example E]
    padded    [prefix][example 1]…[example E][filler 1]…[filler F]

A filler is an example that nobody reads: no other example sees it, and since the gradient of its states is 0, it adds
exactly 0 to every gradient. Embedding, layers and the last norm are captured; what comes after them has other shapes in
every pack and is launched as ever. Graphs share one pool of memory, since none keeps anything beyond its own backward
pass, and add to gradients at fixed places.
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
LARGE = 1.5  # the tokens of a large step for those of a usual one
WORK = 9e11  # weights of a layer times tokens, from which on a GPU takes longer for a layer than its host does
EXAMPLES, ROWS = 4, 128  # the numbers of examples and, above 1,024, of tokens of a padded pack are multiples of these
log = logging.getLogger(__name__)


class Shape(NamedTuple):
    """What two packs must have in common to share a graph: sizes, and the numbers that the kernels take."""

    tokens: int
    sequences: int
    keys: int
    prefix: int
    longest: int
    causal: int


@dataclass(frozen=True)
class Padded:
    """A pack with its fillers: `ids` and `positions` [tokens], and its spans."""

    ids: Tensor
    positions: Tensor
    spans: Spans

    @property
    def shape(self) -> Shape:
        """What decides which graph can run it."""
        spans = self.spans
        sequences, prefix = len(spans.queries) - 1, spans.copies.shape[1]
        return Shape(len(self.ids), sequences, len(spans.tokens), prefix, spans.longest, spans.causal)

    @property
    def fields(self) -> tuple[Tensor, Tensor, Spans]:
        """All it holds."""
        return self.ids, self.positions, self.spans

    @property
    def tensors(self) -> list[Tensor]:
        """All its tensors."""
        return [self.ids, self.positions, *(field for field in self.spans if isinstance(field, Tensor))]

    def copied(self) -> Padded:
        """The same in memory of its own."""
        fields = self.spans._asdict()
        copies: dict[str, Any] = {name: field.clone() for name, field in fields.items() if isinstance(field, Tensor)}
        return Padded(self.ids.clone(), self.positions.clone(), self.spans._replace(**copies))


def padded(ids: Tensor, positions: Tensor, spans: Spans, least: int = 0) -> Padded:
    """Add fillers to a pack, so that few sizes are left.

    The number of examples becomes the next multiple of 4, the number of tokens one of 64, or of 128 above 1,024:
    products compute 128 rows at a time. There is at least one filler, of at least one token.

    Args:
        ids: of the pack's tokens [tokens].
        positions: of its tokens [tokens].
        spans: where its sequences are.
        least: the fewest tokens with the fillers.
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
    # one copy to the device for all that is added; the fillers' ids and positions are 0
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
    """The passes of one shape: `pack` is what they read, `given` keeps the other arguments of the forward pass."""

    pack: Padded
    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    given: dict[str, Any]


class PackGraphs:
    """The forward of a base model (embedding to last norm) that replays graphs for packs in training.

    The first pack of all runs plainly, so that everything is compiled and loaded; then each shape is captured when it
    comes for the first time. Padded are all, so that what a step computes does not depend on when its graph was
    captured. With a larger pack than any before, all are captured anew, so that their pool stays as small as that pack
    allows; so a larger one than usual is captured first. A shape that cannot be captured at once runs plainly and is
    tried once more. Memory that runs out while a graph is captured, or a second failure, ends the use of graphs for the
    rest of the run, and nothing else.

    Args:
        plain: the forward that is captured; it is called with transformers' arguments by name.
        weights: what is trained of the base model.
        tokens: the most tokens of a pack that is padded and captured.
        first: tokens of what is captured before all else, so that what comes later fits into its memory; 0: nothing.
    """

    def __init__(self, plain: Callable[..., Any], weights: Sequence[Tensor], tokens: int, first: int = 0):
        self.plain, self.tokens, self._first = plain, tokens, first
        self.graphs: dict[Shape, _Graph] = {}
        self.captures = 0
        """How many graphs were captured so far."""
        self._weights = list(weights)
        self._failed: set[Shape] = set()
        self._is_off = False
        self._shared: _Shared | None = None
        self._like: Tensor | None = None  # a state of the first pack
        self._ahead: tuple[Tensor, Padded] | None = None  # the ids of a pack that comes next, and the pack

    def __call__(self, **given: Any) -> Any:
        """Run the forward pass; where a pack's `spans` are given, with its fillers, whose states are cut off again."""
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
        """Pad a pack that comes next, while the GPU still computes; of several, the first."""
        if self._ahead is None and self._like is not None and not self._is_off and len(ids) <= self.tokens:
            self._ahead = ids, padded(ids, positions, spans)

    def release(self) -> None:
        """Give back the memory of all graphs; what comes again is captured again."""
        if self._shared is not None:
            self.graphs.clear()
            self._shared = None
            torch.cuda.empty_cache()

    def end(self, reason: str) -> None:
        """Go on without graphs, and give back their memory."""
        self._is_off = True
        self.release()
        log.warning("training goes on without CUDA graphs, and may be slower: %s", reason)

    def _replayed(self, graph: _Graph, pack: Padded, count: int) -> Tensor:
        """The states [1, count, hidden] of the pack by its graph."""
        shared = self._shared
        assert shared is not None
        torch._foreach_copy_(graph.pack.tensors, pack.tensors)
        states: Tensor = _Replay.apply(shared.anchor, shared, graph, count)  # type: ignore[no-untyped-call]
        return states

    def _run(self, pack: Padded, given: dict[str, Any]) -> Any:
        """The plain pass; a cast that autocast remembers would be in the memory of a graph."""
        kind = pack.ids.device.type
        autocast = torch.autocast(
            kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False
        )
        with autocast:
            return self.plain(input_ids=pack.ids[None], position_ids=pack.positions[None], spans=pack.spans, **given)

    def _graph(self, pack: Padded, given: dict[str, Any]) -> _Graph | None:
        """The graph of the pack's shape; None where it has none, yet or at all."""
        shape = pack.shape
        if shape in self.graphs or self._like is None or len(self.graphs) == MOST_GRAPHS:
            return self.graphs.get(shape)
        if self._first > shape.tokens and not self.graphs:
            self._capture(padded(*pack.copied().fields, least=self._first + EXAMPLES), given, is_needed=False)
        if shape.tokens > max((other.tokens for other in self.graphs), default=0):
            self.release()  # each tensor of a larger pack would need a larger block, beside that of the smaller ones
        self._capture(pack.copied(), given)
        return self.graphs.get(shape)

    def _capture(self, pack: Padded, given: dict[str, Any], *, is_needed: bool = True) -> None:
        """Capture `pack`, which is the graph's own, if it can be; without graphs where it is needed and cannot."""
        shape = pack.shape
        assert self._like is not None
        try:
            with torch.cuda.stream(torch.cuda.current_stream()):  # which a capture that fails may not give back
                self.graphs[shape] = self._captured(pack, given, self._like)
        except torch.OutOfMemoryError:
            self._first = 0
            self.end("memory is short") if is_needed else self.release()
        except (RuntimeError, AssertionError) as error:
            log.debug("%s cannot be captured", shape, exc_info=True)
            self.release()  # the pool is not usable after a capture that failed
            if shape in self._failed:
                self.end(str(error).splitlines()[0])
            self._failed.add(shape)

    def _captured(self, pack: Padded, given: dict[str, Any], like: Tensor) -> _Graph:
        """Capture both passes over `pack`, which is the graph's own; `like` is a state [hidden]."""
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
    """What all graphs share: their pool of memory, and the places that they read and write outside of it.

    `states` [tokens, hidden] are the last hidden states of the graph that ran last, `gradient` is theirs.
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
        """Return the context in which launches go into `graph`; other threads may use the GPU meanwhile."""
        return torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local")

    @contextmanager
    def adding(self) -> Iterator[None]:
        """Add the gradients of the backward pass inside to those that there are, all at once and not one by one."""
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
        """Let every weight have its gradient at the place that the graphs add to, with what it has so far."""
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
    """The last hidden states of a pack from its forward graph, whose backward pass is the backward graph.

    The gradients of the weights are added by the graph itself, so that no input but an anchor has one here.
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
    """Let the training packs of `model`, of up to `tokens` tokens each, be replayed as CUDA graphs.

    Args:
        model: with what is trained of it, on its GPU, with its layers compiled or as they are.
        tokens: the most tokens of a pack.
        usual: the tokens of a usual step; few have more than half as many again.
    """
    base = causal_lm(model).base_model
    weights = [weight for weight in base.parameters() if weight.requires_grad]
    base.forward = PackGraphs(base.forward, weights, tokens, min(tokens, int(LARGE * usual)))


def pad_ahead(model: CausalLM, ids: Tensor, positions: Tensor, spans: Mapping[str, Any] | None) -> None:
    """Pad a pack that comes next, where `model` replays packs as CUDA graphs."""
    forward = causal_lm(model).base_model.forward
    if isinstance(forward, PackGraphs) and spans is not None:
        forward.pad_ahead(ids, positions, Spans(**spans))


def graph_limit(model: CausalLM) -> float:
    """Return the tokens of a pack from which on the GPU, and not the host, is what a pass waits for."""
    layers = decoder_layers(model)
    return WORK * len(layers) / sum(weight.numel() for layer in layers for weight in layer.parameters())


def release_graphs(model: CausalLM) -> None:
    """Give back the memory that the graphs of `model` hold, where it has some."""
    forward = causal_lm(model).base_model.forward
    if isinstance(forward, PackGraphs):
        forward.release()


def end_graphs(model: CausalLM) -> bool:
    """Let `model` go on without graphs, since memory is short; whether it had any."""
    forward = causal_lm(model).base_model.forward
    had_graphs = isinstance(forward, PackGraphs) and bool(forward.graphs)
    if had_graphs:
        forward.end("memory is short")
    return had_graphs
