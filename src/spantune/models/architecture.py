"""The structure of a causal LM of transformers: its attention, its decoder layers and its output layer.

Each architecture's configuration omits some values that follow from others; the functions here return them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from spantune.models.interfaces import CausalLM, ModelConfig


def head_size(config: ModelConfig) -> int:
    """Return the size of an attention head: the number of entries of one query, key or value."""
    size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return size


def kv_heads(config: ModelConfig) -> int:
    """Return the number of key and value heads; a group of query heads shares each of them."""
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads


def layer_kinds(config: ModelConfig) -> list[str] | None:
    """Return the kind of each layer, such as "sliding_attention"; None if the configuration names no kinds."""
    return getattr(config, "layer_types", None) or None


def window_of(config: ModelConfig, kind: str | None = None) -> int | None:
    """Return the attention window in tokens of a layer; None without a window.

    Args:
        config: the configuration of the model.
        kind: the kind of the layer; None if the model has one kind only.
    """
    window: int | None = getattr(config, "sliding_window", None)
    if kind is not None:
        return window if kind == "sliding_attention" else None
    return None if getattr(config, "use_sliding_window", True) is False else window


def causal_lm(model: CausalLM) -> CausalLM:
    """Return the transformers model inside a PEFT model; any other model is returned unchanged."""
    from peft import PeftModel

    base: CausalLM = model.get_base_model() if isinstance(model, PeftModel) else model
    return base


def few_logits(model: CausalLM, states: Tensor, ids: Tensor) -> Tensor:
    """Return the logits [positions, ids] of the token `ids` only, for the last hidden `states` [positions, size]."""
    base = causal_lm(model)
    head = base.get_output_embeddings()
    bias = None if head.bias is None else head.bias[ids]
    return capped(linear(states, head.weight[ids], bias), softcap_of(base.config))


def softcap_of(config: ModelConfig) -> float | None:
    """Return the bound of the soft cap on a model's logits; None without a cap."""
    return getattr(config, "final_logit_softcapping", None)


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Return the logits with the soft cap applied: softcap * tanh(logits / softcap)."""
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


WIDE = 2
"""A linear layer is wide if it has more than this many outputs for each input."""


def decoder_layers(model: CausalLM) -> list[nn.Module]:
    """Return the decoder layers of a causal LM of transformers, in order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def is_wide(outputs: int, inputs: int) -> bool:
    """Whether a linear layer is wide: its output takes much memory, compared with the time to compute it again."""
    return outputs > WIDE * inputs


def own_output_weights(model: CausalLM) -> int:
    """Return the number of weights of the output layer; 0 if it shares them with the token embeddings."""
    output = model.get_output_embeddings()
    return 0 if output is None or output.weight is model.get_input_embeddings().weight else output.weight.numel()


def park_output_layer(model: CausalLM) -> None:
    """Move the output layer to the CPU if it has weights of its own, since reading spans does not use it."""
    if own_output_weights(model):
        model.get_output_embeddings().to("cpu")


def vocabulary_size(model: CausalLM) -> int:
    """Return the number of logits of the model, which may be more than its tokenizer's vocabulary."""
    return model.get_output_embeddings().weight.shape[0]
