"""What a run trains, saved to a folder and given back to a model, whatever it is.

Training, checkpoints and the best evaluation use these functions only, so that they need not know what is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from spantune.core import TaskSpec
from spantune.models.adapter import load_adapter, load_adapter_weights
from spantune.models.interfaces import CausalLM
from spantune.models.span_head import HEAD_NAME, head_of, load_head, load_head_weights, save_head


def save_trained(model: CausalLM, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write what is trained of `model` into `folder`.

    Args:
        model: the model under training, as `attach` returned it.
        folder: an existing folder.
        weights: values by the names of the model's parameters, which are written instead of the model's own.

    Raises:
        OSError, RuntimeError, SafetensorError: the disk refuses it.
    """
    head = head_of(model)
    if head is not None:
        save_head(head, folder, weights and _of_head(weights))
    # PEFT would ask a hub whether the embeddings were trained
    model.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)


def load_trained(model: CausalLM, folder: Path) -> None:
    """Give `model`, under training, what `save_trained` has written into `folder`.

    Raises:
        ModelError: the folder holds nothing of the kind, something that is not finite, or that of another model.
    """
    load_adapter_weights(model, folder)
    head = head_of(model)
    if head is not None:
        load_head_weights(head, folder)


def reload_trained(model: CausalLM, folder: Path, task: TaskSpec, *, merge: bool) -> CausalLM:
    """Turn `model`, under training, into the model that extracts with what is saved in `folder`; see `open_trained`."""
    return open_trained(model.unload(), folder, task, merge=merge)


def open_trained(model: CausalLM, folder: Path, task: TaskSpec, *, merge: bool) -> CausalLM:
    """Make of a base model the one that extracts with what is saved in `folder`: its adapter, and its head if any.

    Raises:
        ModelError: as `load_adapter` and `load_head`.
    """
    adapted = load_adapter(model, folder, merge=merge)
    if task.answer == "spans":
        load_head(adapted, folder, task)
    return adapted


def _of_head(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the head among those of a model, by their names in the head."""
    prefix = f"{HEAD_NAME}."
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
