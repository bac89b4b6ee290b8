"""What a model's config says of its attention: the size of a head, key heads, windows.

Configs leave out what follows from the rest, each in its own way; here every reader gets the same answer.
"""

from __future__ import annotations

from typing import Any


def head_size(config: Any) -> int:
    """Entries of a query, key or value of one head."""
    size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return size


def kv_heads(config: Any) -> int:
    """Heads of keys and values, which groups of query heads share."""
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads


def layer_kinds(config: Any) -> list[str] | None:
    """The kind of each layer, None where the model has no kinds."""
    return getattr(config, "layer_types", None) or None


def window_of(config: Any, kind: str | None = None) -> int | None:
    """Positions that a layer of `kind`, or of a model without kinds, sees back from a token; None where it sees all."""
    window: int | None = getattr(config, "sliding_window", None)
    if kind is not None:
        return window if kind == "sliding_attention" else None
    return None if getattr(config, "use_sliding_window", True) is False else window
