"""Attention of rows that are decoded together in one flat sequence, over a cache of slots.

The queries of a row are consecutive. A query attends to the keys of its row up to its own position, within the window
of a sliding layer. On a CUDA GPU one kernel computes all rows (see `rows_triton`). On a CPU rows with few queries are
computed jointly (see `rows_joint`). Otherwise the keys of each row are gathered and passed to scaled-dot-product
attention, so that the cost is the sum of the rows' costs.

In a compiled layer the kernel is an operator, and compiled code writes the new keys and values into their slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from spantune.models.architecture import layer_kinds, window_of
from spantune.models.interfaces import ModelConfig
from spantune.models.kernels.lora_linear import LIBRARY
from spantune.models.kernels.rows_joint import JointAttention, Runs, Span

FEW = 32  # on a CPU, rows with at most this many queries are computed jointly


class LayerRows(NamedTuple):
    """The arguments of a compiled layer for a pass: tensors and numbers only, so that all layers share one code.

    Attributes:
        keys: [slots, kv heads, size], the layer's store of keys.
        values: [slots, kv heads, size], the layer's store of values.
        destination: [tokens], the slots of the tokens of this pass.
        slots: [rows, positions], as in `RowView`.
        blocks: [blocks, 4], as in `RowView`.
        window: the window of the layer in tokens; 0 for no window.
    """

    keys: Tensor
    values: Tensor
    destination: Tensor
    slots: Tensor
    blocks: Tensor
    window: int

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Store the new keys and values, and return the attention [1, tokens, heads, size].

        Args:
            query: [1, heads, tokens, size].
            key: [1, kv heads, tokens, size].
            value: [1, kv heads, tokens, size].
            scale: the factor on the products of queries and keys.
        """
        for store, states in ((self.keys, key), (self.values, value)):
            store.index_copy_(0, self.destination, states[0].transpose(0, 1))
        attended: Tensor = torch.ops.spantune.row_attention(
            query[0], self.keys, self.values, self.slots, self.blocks, scale, self.window
        )
        return attended


@dataclass(frozen=True)
class RowView:
    """The keys that the queries of a pass attend to.

    With `blocks`, the kernel computes all spans. Without them the spans are computed one after another, except the
    first ones with at most FEW queries if `runs` is given, which are computed jointly. With `stores` and `destination`,
    compiled layers store the new keys and values; without them the model's cache does it.

    Attributes:
        slots: [rows, positions], the slot of the key at each position of each row.
        windows: the window of each layer in tokens; None for no window.
        spans: the queries of each row.
        blocks: [blocks, 4], the spans cut into blocks of the kernel's size (see `blocks_of`), as a tensor of a fixed
            shape.
        runs: the consecutive slots of the keys of each span.
        stores: the keys and values of each layer, [slots, kv heads, size] each.
        destination: [tokens], the slots of the tokens of this pass.
    """

    slots: Tensor
    windows: Sequence[int | None]
    spans: Sequence[Span] = ()
    blocks: Tensor | None = None
    runs: Runs | None = None
    stores: Sequence[tuple[Tensor, Tensor]] = ()
    destination: Tensor | None = None
    _joint: dict[int | None, JointAttention] = field(default_factory=dict)

    def of_layer(self, layer: int) -> LayerRows | None:
        """Return the arguments of a compiled layer; None if the pass is for layers that are not compiled."""
        if not self.stores or self.blocks is None or self.destination is None:
            return None
        return LayerRows(*self.stores[layer], self.destination, self.slots, self.blocks, self.windows[layer] or 0)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return the attention [1, tokens, heads, size] of a layer.

        Args:
            layer: the index of the layer.
            query: [1, heads, tokens, size].
            key: [slots, kv heads, size], the keys of all slots.
            value: [slots, kv heads, size], the values of all slots.
            scale: the factor on the products of queries and keys.
        """
        window = self.windows[layer]
        if self.blocks is not None:
            from spantune.models.kernels.rows_triton import attend_blocks

            return attend_blocks(query[0], key, value, self.slots, self.blocks, scale, window)
        queries, spans = query[0].to(key.dtype), self._first_of_few()
        outputs = [self._attend_span(span, queries, key, value, scale, window) for span in self.spans[len(spans) :]]
        if spans and self.runs is not None:
            if window not in self._joint:
                runs = Runs(self.runs.shared, self.runs.own[: len(spans)])
                self._joint[window] = JointAttention(spans, runs, window, query.shape[1] // key.shape[1])
            tokens = spans[-1].first + spans[-1].queries
            outputs.insert(0, self._joint[window].attend(queries[:, :tokens], key, value, scale))
        return torch.cat(outputs)[None].to(query.dtype)

    def _first_of_few(self) -> Sequence[Span]:
        """Return the spans that are computed jointly: the first ones with few queries; none without `runs`."""
        return list(takewhile(lambda span: span.queries <= FEW, self.spans)) if self.runs is not None else ()

    # It takes the arguments of transformers' attention functions, and a span.
    def _attend_span(
        self, span: Span, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
    ) -> Tensor:
        heads, size = key.shape[1:]
        end = span.position + span.queries
        begin = max(0, span.position - window + 1) if window else 0
        slots = self.slots[span.row, begin:end]
        keys, values = (store.index_select(0, slots).transpose(0, 1) for store in (key, value))
        # The query heads that share a key head are computed together, so that no key is repeated.
        queries = query[:, span.first : span.first + span.queries].reshape(heads, -1, size)
        group = queries.shape[1] // span.queries
        mask = None
        if span.queries > 1:
            distance = torch.arange(span.position, end)[:, None] - torch.arange(begin, end)[None, :]
            visible = (distance >= 0) & (distance < window) if window else distance >= 0
            mask = visible.to(query.device).repeat(group, 1)
        attended = scaled_dot_product_attention(queries[None], keys[None], values[None], attn_mask=mask, scale=scale)
        return attended[0].view(heads, group, span.queries, size).permute(2, 0, 1, 3).flatten(1, 2)


def blocks_of(spans: Sequence[Span], size: int) -> list[tuple[int, int, int, int]]:
    """Cut the spans into blocks of at most `size` queries.

    Returns:
        For each block its row, the index of its first query, its number of queries, and the position of the first one.
    """
    return [
        (span.row, span.first + done, min(size, span.queries - done), span.position + done)
        for span in spans
        for done in range(0, span.queries, size)
    ]


def queries_per_block(group: int) -> int:
    """Return the most queries of a row in a block of the Triton kernel, if `group` query heads share a key head."""
    from spantune.models.kernels import rows_triton

    return rows_triton.queries_per_block(group)


@cache
def kernel_error(heads: int, kv_heads: int, size: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return the largest relative error of the kernel's attention on small random batches.

    It is compared with the plain computation.

    Args:
        heads: the number of query heads.
        kv_heads: the number of key and value heads.
        size: the size of a head.
        dtype: the type of queries, keys and values.
        device: a GPU.
    """
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).to(device, dtype)

    layouts = ((Span(0, 0, 5, 20), Span(1, 5, 1, 90)), (Span(0, 0, 70, 20), Span(1, 70, 1, 90)))  # few, many queries
    slots = torch.randperm(192, generator=draw).view(2, 96).to(device, torch.int32)
    key, value = random(192, kv_heads, size), random(192, kv_heads, size)
    worst = 0.0
    for spans in layouts:
        query = random(1, heads, sum(span.queries for span in spans), size)
        blocks = torch.tensor(blocks_of(spans, queries_per_block(heads // kv_heads)), device=device)
        for window in (None, 7):
            plain = RowView(slots, (window,), spans).attend(0, query, key, value, size**-0.5).float()
            fast = RowView(slots, (window,), blocks=blocks).attend(0, query, key, value, size**-0.5).float()
            worst = max(worst, float((fast - plain).norm() / plain.norm()))
    return worst


def windows(config: ModelConfig) -> list[int | None]:
    """Return the attention window of each layer in tokens; None for a layer without a window."""
    kinds: Sequence[str | None] = layer_kinds(config) or [None] * config.num_hidden_layers
    return [window_of(config, kind) for kind in kinds]


def _attend_blocks(
    query: Tensor, key: Tensor, value: Tensor, slots: Tensor, blocks: Tensor, scale: float, window: int
) -> Tensor:
    from spantune.models.kernels.rows_triton import attend_blocks

    return attend_blocks(query, key, value, slots, blocks, scale, window)


def _attended_shape(query: Tensor, *_: object) -> Tensor:
    heads, tokens, size = query.shape
    return query.new_empty(1, tokens, heads, size)


LIBRARY.define(  # type: ignore[no-untyped-call]
    "row_attention(Tensor query, Tensor key, Tensor value, Tensor slots, Tensor blocks, float scale, SymInt window)"
    " -> Tensor"
)
LIBRARY.impl("row_attention", _attend_blocks, "CUDA")  # type: ignore[no-untyped-call]
torch.library.register_fake("spantune::row_attention", _attended_shape)
