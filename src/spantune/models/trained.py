"""Saves and loads what a run trains: a LoRA adapter or the model's own weights, and the span head if there is one.

Training, checkpoints and extraction use only these functions, so they need not know which of these a run trains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from spantune.core import ModelError, TaskSpec, config
from spantune.models import adapter
from spantune.models.full import is_full, load_full, load_full_weights, save_full
from spantune.models.interfaces import CausalLM
from spantune.models.span_head import HEAD_NAME, SpanHead, attach_head, head_of, load_head, load_head_weights, save_head


def save_trained(model: CausalLM, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write the trained weights of `model` into `folder`.

    Args:
        model: the model under training, as `attach` returned it.
        folder: an existing folder.
        weights: weights that `copy_trained` returned earlier, which are written instead of the model's own ones.

    Raises:
        OSError, RuntimeError, SafetensorError: the disk refuses the files.
    """
    head = head_of(model)
    if head is not None:
        save_head(head, folder, None if weights is None else _of_head(weights))
    if _is_adapted(model):
        # Without save_embedding_layers=False PEFT would ask a hub whether the embeddings were trained.
        model.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)
    else:
        save_full(model, folder, weights)


def copy_trained(model: CausalLM) -> dict[str, Tensor]:
    """Return copies of the trained weights of `model` in CPU memory, by name, for a later `save_trained`.

    The buffers of a span head, such as its thresholds, are copied too.
    """
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    head = head_of(model)
    if head is not None:
        weights |= head.state_dict(prefix=f"{HEAD_NAME}.")
    return {name: weight.detach().to("cpu", copy=True) for name, weight in weights.items()}


def load_trained(model: CausalLM, folder: Path) -> None:
    """Load the weights that `save_trained` has written into `folder` into `model`, which is under training.

    Raises:
        ModelError: `folder` has no such weights, or they are damaged, not finite, or of another model.
    """
    trains_adapter = _is_adapted(model)
    if is_full(folder) == trains_adapter:
        held, expected = ("full fine-tuning", "LoRA") if trains_adapter else ("LoRA", "full fine-tuning")
        raise ModelError(f"{folder}: holds weights of {held}, expected those of {expected}; restore it, or train again")
    if trains_adapter:
        adapter.load_adapter_weights(model, folder)
    else:
        load_full_weights(model, folder)
    head = head_of(model)
    if head is not None:
        load_head_weights(head, folder)


def load_adapter(model: CausalLM, folder: Path, merge: bool = False) -> CausalLM:
    """Load the trained weights in `folder` into a base model, for extraction; a span head is not loaded.

    Args:
        model: the base model, which is changed.
        folder: the folder of the adapter, or of the weights of full fine-tuning.
        merge: whether an adapter is merged into the model's weights.

    Raises:
        ModelError: `folder` has no trained weights, or they are damaged, not finite, or of another model.
    """
    return load_full(model, folder) if is_full(folder) else adapter.load_adapter(model, folder, merge)


def reload_trained(model: CausalLM, folder: Path, task: TaskSpec, *, merge: bool) -> CausalLM:
    """Turn `model`, which is under training, into the model that extracts with the weights in `folder`.

    Arguments and errors are those of `open_trained`.
    """
    return open_trained(model.unload() if _is_adapted(model) else model, folder, task, merge=merge)


def open_trained(model: CausalLM, folder: Path, task: TaskSpec, *, merge: bool) -> CausalLM:
    """Turn a base model into the model that extracts with the weights in `folder`, its span head included.

    Args:
        model: the base model, which is changed.
        folder: the folder of the trained weights.
        task: the task of the run; its answer says whether there is a span head.
        merge: whether an adapter is merged into the model's weights.

    Raises:
        ModelError: weights or head are missing, damaged, not finite, or of another model; or the head has other labels.
    """
    trained = load_adapter(model, folder, merge=merge)
    if task.reads:
        load_head(trained, folder, task)
    return trained


def is_shareable(folder: Path) -> bool:
    """Whether several runs can share the base model of the run in `folder`, which is so with adapters."""
    return not is_full(folder)


def open_together(
    model: CausalLM, trained: Sequence[tuple[Path, TaskSpec]]
) -> tuple[CausalLM, list[Callable[[], None]]]:
    """Add the adapters and heads of several runs to one base model, without merging.

    Args:
        model: the base model, which is changed.
        trained: the folder and the task of each run; `is_shareable` must hold for each folder.

    Returns:
        The model, and for each run a function. After it is called, the model computes with that run's adapter and head.

    Raises:
        ModelError: an adapter or a head cannot be loaded; see `open_trained`.
    """
    together = adapter.load_adapters(model, [folder for folder, _ in trained])
    heads = [load_head(together, folder, task) if task.reads else None for folder, task in trained]
    together.requires_grad_(False)
    active: list[int] = []

    def activate(index: int, head: SpanHead | None) -> None:
        if active == [index]:
            return
        active[:] = [index]
        adapter.activate_adapter(together, index)
        if head is not None:
            attach_head(together, head.requires_grad_(False))

    return together, [partial(activate, index, head) for index, head in enumerate(heads)]


def read_lora(folder: Path) -> config.Lora:
    """Return the section `lora` of a recipe that trains the weights in `folder` further.

    Raises:
        ModelError: the adapter is damaged, or has an alpha for single modules, which a recipe cannot state.
    """
    return config.Lora(full=True) if is_full(folder) else adapter.read_lora(folder)


def _is_adapted(model: CausalLM) -> bool:
    """Whether `model` has PEFT adapters."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def _of_head(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the head among those of a model, by their names in the head."""
    prefix = f"{HEAD_NAME}."
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
