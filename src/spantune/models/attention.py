"""Attention of packs and decoding batches: which tokens attend to which.

Packs and decoding batches have the same layout: each token has an owner (the prefix, or an example), a position and a
reach. A query attends to a key if three conditions hold:

    owner     the key belongs to the prefix or to the owner of the query
    position  the key's position is not after the query's reach
    window    in a sliding layer, both positions are less than the window apart

The reach is the token's own position, or the last position of the text if a text is read as a whole (a prefix-LM mask).
Positions are counted inside the example, not inside the pack.

The masks are additive and of a float type. One is always passed: transformers does not understand
`attention_mask=None` as packed, and its eager attention computes wrong values with a bool mask. On a GPU, packs are
computed by the variable-length flash kernel (see `kernels.packs`). On a CPU, the queries of each owner are multiplied
only with the keys of the prefix and of this owner. So the cost is the sum of the costs of the examples (or rows of a
decoding batch), and not the square of their total length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from spantune.core import ModelError
from spantune.encoding import PREFIX
from spantune.models.architecture import layer_kinds, window_of
from spantune.models.interfaces import ModelConfig
from spantune.models.kernels.packs import Spans, can_flash, pack_attention
from spantune.models.kernels.rows import LayerRows, RowView

NAME = "spantune"  # the attention implementation to load models with
Mask = Tensor | dict[str, Tensor]


@dataclass(frozen=True)
class Places:
    """The layout of tokens: three tensors [tokens] of type long.

    Attributes:
        owner: 0 for the prefix, and 1, 2, … for the examples or rows.
        position: the position in the example, counted from the beginning of the prefix.
        reach: the last position that the token attends to; None if that is its own position.
    """

    owner: Tensor
    position: Tensor
    reach: Tensor | None = None


def check_attention(config: ModelConfig) -> None:
    """Check that spantune's attention can replace a model's, and that no layer mixes the examples of a pack.

    Raises:
        ModelError: the model has a kind of layer that is unknown, or its attention logits have a soft cap.
    """
    unknown = set(layer_kinds(config) or ()) - {"full_attention", "sliding_attention"}
    if unknown:
        raise ModelError(
            f"model type {config.model_type!r} has layers of kind {', '.join(sorted(unknown))}, in which examples of a "
            "pack would mix; use a model with full or sliding-window attention"
        )
    # transformers 5.17 ignores the cap without a warning, and 5.23 refuses the model
    if getattr(config, "attn_logit_softcapping", None) is not None:
        raise ModelError(
            f"model type {config.model_type!r} caps its attention logits, which our attention cannot do; "
            "use another model"
        )


def attention_mask(config: ModelConfig, query: Places, key: Places, dtype: torch.dtype) -> Mask:
    """Return the mask [1, 1, queries, keys] for the model's `forward`; a dict of masks if layers are of several kinds.

    The mask is 0 where the query attends to the key, and else the lowest number of `dtype`.

    Args:
        config: the configuration of the model.
        query: the layout of the queries.
        key: the layout of the keys.
        dtype: the type of the mask, which is that of the queries.
    """
    kinds = layer_kinds(config)
    if kinds:
        return {kind: _mask(query, key, window_of(config, kind), dtype) for kind in sorted(set(kinds))}
    return _mask(query, key, window_of(config), dtype)


def pack_view(config: ModelConfig, places: Places, spans: Spans | None, dtype: torch.dtype) -> dict[str, object]:
    """Return the keyword arguments of a model's `forward` that say which tokens of a pack attend to which.

    The flash kernel computes a pack from its `spans` and reads no mask; transformers then gets a mask of one number.
    """
    if spans is not None and can_flash(config, places.owner.device, dtype):
        return {"attention_mask": unread_mask(config, dtype, places.owner.device), "spans": spans}
    return {"attention_mask": attention_mask(config, places, places, dtype), "segments": segments(places, places)}


def unread_mask(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Mask:
    """Return a placeholder mask, which transformers needs even if spantune's attention does not read it."""
    unread = torch.zeros(1, 1, 1, 1, dtype=dtype, device=device)
    kinds = layer_kinds(config)
    return dict.fromkeys(kinds, unread) if kinds else unread


@dataclass(frozen=True)
class Segment:
    """The consecutive queries of one owner, and the indices of the keys of the prefix and of this owner."""

    queries: slice
    keys: Tensor


def segments(query: Places, key: Places) -> list[Segment] | None:
    """Return the segment of each owner, in the order of the queries; None on a GPU, where one dense mask is faster."""
    if query.owner.device.type != "cpu":  # launching kernels for each segment takes 4.5 times as long as the dense mask
        return None
    owners, lengths = torch.unique_consecutive(query.owner, return_counts=True)
    parts: list[Segment] = []
    start = 0
    for owner, length in zip(owners.tolist(), lengths.tolist(), strict=True):
        visible = (key.owner == owner) | (key.owner == PREFIX)
        parts.append(Segment(slice(start, start + length), visible.nonzero()[:, 0]))
        start += length
    return parts


def segmented_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **options: Any
) -> tuple[Tensor, None]:
    """Attention with the interface of transformers' attention functions.

    With `segments` or `spans`, only pairs of queries and keys that the mask allows are computed. With `rows`, a
    `RowView` or `LayerRows`, the keys and values are in a cache of slots.

    Args:
        module: the attention module of the layer.
        query: [1, heads, queries, size].
        key: [1, kv heads, keys, size].
        value: [1, kv heads, keys, size].
        attention_mask: [1, 1, queries, keys].
        options: `scaling`, and what `pack_view` or the decoding batch adds.

    Returns:
        The attended values [1, queries, heads, size], and None for the weights.
    """
    spans: Spans | None = options.pop("spans", None)
    if spans is not None:
        queries, keys, values = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
        window = options.get("sliding_window")
        return pack_attention(queries, keys, values, spans, options["scaling"], window)[None], None
    rows: RowView | LayerRows | None = options.pop("rows", None)
    if isinstance(rows, LayerRows):
        return rows.attend(query, key, value, options["scaling"]), None
    if rows is not None:
        return rows.attend(module.layer_idx, query, key, value, options["scaling"]), None
    parts: list[Segment] | None = options.pop("segments", None)
    if parts is None:
        attended: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return attended
    outputs = [
        sdpa_attention_forward(
            module,
            query[:, :, part.queries],
            key.index_select(2, part.keys),
            value.index_select(2, part.keys),
            attention_mask[:, :, part.queries].index_select(3, part.keys),
            **options,
        )[0]
        for part in parts
    ]
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(NAME, segmented_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def _mask(query: Places, key: Places, window: int | None, dtype: torch.dtype) -> Tensor:
    distance = query.position[:, None] - key.position[None, :]
    visible = (key.owner[None, :] == PREFIX) | (key.owner[None, :] == query.owner[:, None])
    visible &= key.position[None, :] <= (query.position if query.reach is None else query.reach)[:, None]
    if window is not None:
        visible &= distance.abs() < window
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[None, None]
