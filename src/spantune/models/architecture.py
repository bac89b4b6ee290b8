"""What a causal LM of transformers looks like: its attention, its decoder layers and its head.

Configurations leave out what follows from their other values, each in its own way; the functions here fill it in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from spantune.models.interfaces import CausalLM, ModelConfig


def head_size(config: ModelConfig) -> int:
    """Return the size of a head: the entries of one query, key or value."""
    size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return size


def kv_heads(config: ModelConfig) -> int:
    """Return the number of key and value heads, each of which a group of query heads shares."""
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads


def layer_kinds(config: ModelConfig) -> list[str] | None:
    """Return the kind of each layer; None where the model has only one kind."""
    return getattr(config, "layer_types", None) or None


def window_of(config: ModelConfig, kind: str | None = None) -> int | None:
    """Return the window in tokens of a layer of `kind`, or of any layer of a model without kinds; None: no window."""
    window: int | None = getattr(config, "sliding_window", None)
    if kind is not None:
        return window if kind == "sliding_attention" else None
    return None if getattr(config, "use_sliding_window", True) is False else window


def causal_lm(model: CausalLM) -> CausalLM:
    """Return the transformers model inside a PEFT model; another model is returned as it is."""
    from peft import PeftModel

    base: CausalLM = model.get_base_model() if isinstance(model, PeftModel) else model
    return base


def few_logits(model: CausalLM, states: Tensor, ids: Tensor) -> Tensor:
    """Return the logits [positions, ids] of only these `ids` for the last hidden `states` [positions, size]."""
    base = causal_lm(model)
    head = base.get_output_embeddings()
    bias = None if head.bias is None else head.bias[ids]
    return capped(linear(states, head.weight[ids], bias), softcap_of(base.config))


def softcap_of(config: ModelConfig) -> float | None:
    """Return the bound that a model's logits are softly capped at; None where there is none."""
    return getattr(config, "final_logit_softcapping", None)


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Return the logits under their soft cap."""
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


WIDE = 2
"""A product is wide when it has more than this many outputs for each input."""


def decoder_layers(model: CausalLM) -> list[nn.Module]:
    """Return the decoder layers of a causal LM of transformers, in order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def is_wide(outputs: int, inputs: int) -> bool:
    """Whether a product's output takes much memory for the time that computing it again takes."""
    return outputs > WIDE * inputs


def own_output_weights(model: CausalLM) -> int:
    """Return the number of weights of an output layer that is not the table of token embeddings; 0 where it is."""
    output = model.get_output_embeddings()
    return 0 if output is None or output.weight is model.get_input_embeddings().weight else output.weight.numel()


def park_output_layer(model: CausalLM) -> None:
    """Move an output layer with weights of its own to the CPU, since reading spans does not use it."""
    if own_output_weights(model):
        model.get_output_embeddings().to("cpu")


def vocabulary_size(model: CausalLM) -> int:
    """Return the number of logits of the model, which may be more than its tokenizer's vocabulary."""
    return model.get_output_embeddings().weight.shape[0]
