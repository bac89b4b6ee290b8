"""What a run trains, saved to a folder and given back to a model, whatever it is.

Training, checkpoints and the best evaluation use these functions only, so that they need not know what is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from spantune.models.adapter import load_adapter, load_adapter_weights
from spantune.models.interfaces import CausalLM


def save_trained(model: CausalLM, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write what is trained of `model` into `folder`.

    Args:
        model: the model under training, as `attach` returned it.
        folder: an existing folder.
        weights: values by the names of the model's parameters, which are written instead of the model's own.

    Raises:
        OSError, RuntimeError, SafetensorError: the disk refuses it.
    """
    # PEFT would ask a hub whether the embeddings were trained
    model.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)


def load_trained(model: CausalLM, folder: Path) -> None:
    """Give `model`, under training, what `save_trained` has written into `folder`.

    Raises:
        ModelError: the folder holds nothing of the kind, something that is not finite, or that of another model.
    """
    load_adapter_weights(model, folder)


def reload_trained(model: CausalLM, folder: Path, *, merge: bool) -> CausalLM:
    """Turn `model`, under training, into the model that extracts with what is saved in `folder`; see `load_adapter`."""
    return load_adapter(model.unload(), folder, merge=merge)
