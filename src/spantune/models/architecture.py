"""What a model's config says of its attention: the size of a head, key heads, windows.

Configs leave out what follows from the rest, each in its own way; here every reader gets the same answer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear


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


def causal_lm(model: Any) -> Any:
    """The transformers model, out of its PEFT wrapping where it has one."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def few_logits(model: Any, states: Tensor, ids: Tensor) -> Tensor:
    """The logits [positions, ids] that `model` gives to `ids` after the last hidden `states` [positions, size]."""
    base = causal_lm(model)
    head = base.get_output_embeddings()
    bias = None if head.bias is None else head.bias[ids]
    return capped(linear(states, head.weight[ids], bias), softcap_of(base.config))


def softcap_of(config: Any) -> float | None:
    """The bound of a model's logits, None where it has none."""
    return getattr(config, "final_logit_softcapping", None)


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Logits under their soft cap."""
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


WIDE = 2
"""A product is wide when it has more than this times as many outputs as inputs."""


def decoder_layers(model: Any) -> list[Any]:
    """The modules that a causal LM of transformers repeats."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def is_wide(outputs: int, inputs: int) -> bool:
    """Whether a product's output is dear to keep for what it costs to compute again."""
    return outputs > WIDE * inputs


def vocabulary_size(model: Any) -> int:
    """Width of the model's logits."""
    weight: Tensor = model.get_output_embeddings().weight
    return int(torch.Size(weight.shape)[0])
