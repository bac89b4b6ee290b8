"""Full fine-tuning: the model's own weights are trained, without an adapter.

The weights of the decoder layers and the last norm are trained. The embeddings, which most small models also use as the
output layer, are not: they are most of a small model's weights, and training them brings little. The weights keep the
type that the model computes in, so the evaluations during training measure the same weights that are saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from spantune.core import ConfigError, ModelError, config, foreign, to_json
from spantune.models.interfaces import CausalLM
from spantune.models.weights import first_difference, require_finite

ABOUT, WEIGHTS = "full.json", "full.safetensors"
MOST_WEIGHTS = 10**9
BYTES = 16
"""The bytes of memory for a trained weight: the weight or its fp32 copy, its gradient, and AdamW's two moments."""


def is_full(folder: Path) -> bool:
    """Whether a folder holds the weights of a full fine-tuning."""
    return (folder / ABOUT).is_file()


def require_full(settings: config.Lora, base: str, weights: int) -> None:
    """Check that full fine-tuning, if the recipe sets it, can be done with a model of this number of weights.

    Raises:
        ConfigError: the base is quantised, or the model is too large.
    """
    if not settings.full:
        return
    if base in config.QUANTIZED:
        raise ConfigError(_quantized(f"model.base={base}"))
    if weights > MOST_WEIGHTS:
        raise ConfigError(
            f"lora.full=true is for models of up to {MOST_WEIGHTS / 1e9:g} B weights, and this one has "
            f"{weights / 1e9:.3g} B: weights, gradients and optimizer would take about {weights * BYTES / 2**30:,.0f} "
            "GiB; train a LoRA adapter instead: leave lora.full out"
        )


def full_weights(model: CausalLM) -> dict[str, nn.Parameter]:
    """Return the weights that full fine-tuning trains, by name: all weights of the base model except embeddings.

    Raises:
        ModelError: the weights are quantised.
    """
    embedded = {
        id(weight) for module in model.modules() if isinstance(module, nn.Embedding) for weight in module.parameters()
    }
    prefix = f"{model.base_model_prefix}."
    found = {
        name: weight
        for name, weight in model.named_parameters()
        if name.startswith(prefix) and id(weight) not in embedded
    }
    if not all(weight.is_floating_point() for weight in found.values()):
        raise ModelError(_quantized("the base model"))
    return found


def attach_full(model: CausalLM) -> None:
    """Freeze all weights of `model` except those that full fine-tuning trains.

    Raises:
        ModelError: the weights are quantised.
    """
    trained = full_weights(model)
    for weight in model.parameters():
        weight.requires_grad_(False)
    for weight in trained.values():
        weight.requires_grad_(True)


def save_full(model: CausalLM, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write the weights that full fine-tuning trains into `folder`; `weights` replaces the model's own ones."""
    from safetensors.torch import save_file

    names = full_weights(model)
    values = {name: (names if weights is None else weights)[name].detach().contiguous() for name in names}
    save_file(values, folder / WEIGHTS, metadata={"format": "pt"})
    about = {
        "kind": "full fine-tuning",
        "base_model": model.name_or_path or None,
        "weights": sum(value.numel() for value in values.values()),
    }
    (folder / ABOUT).write_text(to_json(about, indent=2) + "\n", encoding="utf-8")


def load_full_weights(model: CausalLM, folder: Path) -> None:
    """Load the weights that `save_full` has written into `model`; the types of the model's weights do not change.

    Raises:
        ModelError: the weights are damaged, not finite, or of another model.
    """
    from safetensors.torch import load_file

    with foreign(folder, f"the trained weights are damaged: {WEIGHTS} cannot be read", "restore it"):
        stored: dict[str, Tensor] = load_file(folder / WEIGHTS)
    require_finite(folder, stored)
    own = full_weights(model)
    if difference := first_difference(stored, own):
        raise _of_another_model(folder, difference)
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(stored[name])


def load_full(model: CausalLM, folder: Path) -> CausalLM:
    """Load the weights in `folder` into a base model, or into one under full fine-tuning, and freeze it for extraction.

    Raises:
        ModelError: the weights are damaged, not finite, or of another model.
    """
    load_full_weights(model, folder)
    for weight in model.parameters():
        weight.requires_grad_(False)
    return model.eval()


def _quantized(what: str) -> str:
    return (
        f"lora.full=true trains the weights themselves, and those of {what} are quantised; set model.base=auto, bf16 "
        "or fp32, or train a LoRA adapter: leave lora.full out"
    )


def _of_another_model(folder: Path, difference: str) -> ModelError:
    return ModelError(
        f"{folder}: the trained weights are of another model than model.source of the run's recipe ({difference}); "
        "name the model that was trained"
    )
