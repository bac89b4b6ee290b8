"""Attention of rows that are decoded together in one flat sequence, over a cache of slots.

The queries of a row are consecutive; each attends to the keys of its row up to its own position, within the window of a
sliding layer. On a CUDA GPU one kernel computes all rows (see `rows_triton`), and on a CPU those of few queries are
computed jointly (see `rows_joint`); otherwise the keys of each row are gathered and given to scaled-dot-product
attention, so that the cost is the sum of the rows' costs.

In a compiled layer the kernel is an operator, and the compiler writes the new keys and values into their slots.
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

FEW = 32  # queries of a row, up to which it is computed together with other rows on a CPU


class LayerRows(NamedTuple):
    """What a compiled layer needs of a pass, as tensors and numbers only, so that all layers share one code.

    `keys` and `values` [slots, kv heads, size] are the layer's stores, in which those of the pass's tokens are written
    at `destination` [tokens]; `slots` and `blocks` are those of `RowView`, and `window` is 0 where there is none.
    """

    keys: Tensor
    values: Tensor
    destination: Tensor
    slots: Tensor
    blocks: Tensor
    window: int

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Store keys and values [1, kv heads, tokens, size]; returns the attention [1, tokens, heads, size]."""
        for store, states in ((self.keys, key), (self.values, value)):
            store.index_copy_(0, self.destination, states[0].transpose(0, 1))
        attended: Tensor = torch.ops.spantune.row_attention(
            query[0], self.keys, self.values, self.slots, self.blocks, scale, self.window
        )
        return attended


@dataclass(frozen=True)
class RowView:
    """Which keys the queries of a pass attend to: their spans, and the `slots` [rows, positions] of their keys.

    `blocks` [blocks, 4] are the spans cut into blocks of the kernel's size, as a tensor of a fixed shape; without it
    the spans are computed one after another, except the first ones of few queries where `runs` says where the keys of
    the spans are. `windows` has one entry for each layer. `stores` are the keys and values of each layer, and
    `destination` says where those of the pass go, for layers that are compiled; without them the model's cache does it.
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
        """Return what a compiled layer needs; None where the pass is for layers that are not compiled."""
        if not self.stores or self.blocks is None or self.destination is None:
            return None
        return LayerRows(*self.stores[layer], self.destination, self.slots, self.blocks, self.windows[layer] or 0)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention [1, tokens, heads, size] of queries [1, heads, tokens, size] over slots [slots, kv heads, size]."""
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
        """The first spans, which are computed jointly; none where it is not known where their keys are."""
        return list(takewhile(lambda span: span.queries <= FEW, self.spans)) if self.runs is not None else ()

    # the arguments of transformers' attention functions, and a span
    def _attend_span(
        self, span: Span, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
    ) -> Tensor:
        heads, size = key.shape[1:]
        end = span.position + span.queries
        begin = max(0, span.position - window + 1) if window else 0
        slots = self.slots[span.row, begin:end]
        keys, values = (store.index_select(0, slots).transpose(0, 1) for store in (key, value))
        # the query heads that share a key head are computed together, so that no key is repeated
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
    """Cut the spans into blocks of `size` queries: (row, first query, queries, position of the first)."""
    return [
        (span.row, span.first + done, min(size, span.queries - done), span.position + done)
        for span in spans
        for done in range(0, span.queries, size)
    ]


def queries_per_block(group: int) -> int:
    """Return the queries of a row in a block of the Triton kernel, where `group` query heads share a key head."""
    from spantune.models.kernels import rows_triton

    return rows_triton.queries_per_block(group)


@cache
def kernel_error(heads: int, kv_heads: int, size: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return the relative error of the kernel's attention against the plain computation on a small random batch."""
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).to(device, dtype)

    layouts = ((Span(0, 0, 5, 20), Span(1, 5, 1, 90)), (Span(0, 0, 70, 20), Span(1, 70, 1, 90)))  # narrow and wide
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
    """Return the attention window of each layer in tokens; None where it has none."""
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
