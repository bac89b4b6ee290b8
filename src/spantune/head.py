"""A causal LM's output layer, apart from its body, for those who need few of its logits.

The logits are the head's product and, where the model has one, its soft cap. A model that scales them in another way is
told by `loss.check_head`, before it is trained on anything that relies on this.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear


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
