"""Which tokens attend to which, as additive float masks for scaled-dot-product attention.

Training packs and the decoding batch have the same layout: every token has an owner, a position and a reach, and a
query attends to a key of the prefix or of its own owner at a position not after its reach, within the window of a
sliding layer to both sides. The reach is the token's own position, or the end of the text where a text is read as a
whole (a prefix-LM mask). The window is counted in positions inside the example, not in indices of the pack. A mask is
always given: `attention_mask=None` does not mean packed to transformers, and a bool mask is wrong in eager attention.
On a GPU, packs go to the variable-length flash kernel (see `kernels.packs`). On a CPU, the queries of each owner are
multiplied with the keys of the prefix and of that owner only, so that the cost is the sum of the examples' costs (or of
the rows of a decoding batch), and not the square of their total length.
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
    """Owner and position of each token, and the last position that it attends to (None: its own); long [tokens]."""

    owner: Tensor
    position: Tensor
    reach: Tensor | None = None


def check_attention(config: ModelConfig) -> None:
    """Check that spantune's attention can compute a model's, and that its layers keep the examples of a pack apart.

    Raises:
        ModelError: a kind of layer is unknown, or the attention logits have a soft cap.
    """
    unknown = set(layer_kinds(config) or ()) - {"full_attention", "sliding_attention"}
    if unknown:
        raise ModelError(
            f"model type {config.model_type!r} has layers of kind {', '.join(sorted(unknown))}, in which examples of a "
            "pack would mix; use a model with full or sliding-window attention"
        )
    # transformers 5.17 ignores the cap without a warning, 5.23 refuses
    if getattr(config, "attn_logit_softcapping", None) is not None:
        raise ModelError(
            f"model type {config.model_type!r} caps its attention logits, which our attention cannot do; "
            "use another model"
        )


def attention_mask(config: ModelConfig, query: Places, key: Places, dtype: torch.dtype) -> Mask:
    """Return the mask [1, 1, queries, keys] for the model's `forward`, or one for each kind of its layers."""
    kinds = layer_kinds(config)
    if kinds:
        return {kind: _mask(query, key, window_of(config, kind), dtype) for kind in sorted(set(kinds))}
    return _mask(query, key, window_of(config), dtype)


def pack_view(config: ModelConfig, places: Places, spans: Spans | None, dtype: torch.dtype) -> dict[str, object]:
    """Return the keyword arguments of a model's `forward` that say which tokens of a pack attend to which.

    Where the flash kernel computes the pack from its spans, the mask that transformers needs is one number, never read.
    """
    if spans is not None and can_flash(config, places.owner.device, dtype):
        return {"attention_mask": unread_mask(config, dtype, places.owner.device), "spans": spans}
    return {"attention_mask": attention_mask(config, places, places, dtype), "segments": segments(places, places)}


def unread_mask(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Mask:
    """Return a placeholder mask: transformers needs one even where our attention does not read it."""
    unread = torch.zeros(1, 1, 1, 1, dtype=dtype, device=device)
    kinds = layer_kinds(config)
    return dict.fromkeys(kinds, unread) if kinds else unread


@dataclass(frozen=True)
class Segment:
    """The consecutive queries of one owner, and the indices of the keys that they attend to."""

    queries: slice
    keys: Tensor


def segments(query: Places, key: Places) -> list[Segment] | None:
    """Return the segment of each owner, in the order of the queries; None on a GPU, where one dense mask is faster."""
    if query.owner.device.type != "cpu":  # the launches cost 4.5 times what the dense mask does
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
    """Attention with transformers' interface that, given `segments` or `spans`, skips what the mask hides.

    Shapes: query [1, heads, queries, size], key and value [1, kv heads, keys, size], mask [1, 1, queries, keys];
    returns [1, queries, heads, size]. Given `rows`, keys and values are, or go into, a cache of slots (`RowView`).
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
