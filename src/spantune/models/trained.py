"""What a run trains, saved to a folder and given back to a model: a LoRA adapter, or the model's own weights; and the
head that reads spans, where the model has one.

Training, checkpoints, the best evaluation and extraction use these functions only, so that they need not know which.
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
    """Write what is trained of `model` into `folder`.

    Args:
        model: the model under training, as `attach` returned it.
        folder: an existing folder.
        weights: what `copy_trained` returned earlier, which is written instead of the model's own weights.

    Raises:
        OSError, RuntimeError, SafetensorError: the disk refuses it.
    """
    head = head_of(model)
    if head is not None:
        save_head(head, folder, None if weights is None else _of_head(weights))
    if _is_adapted(model):
        # PEFT would ask a hub whether the embeddings were trained
        model.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)
    else:
        save_full(model, folder, weights)


def copy_trained(model: CausalLM) -> dict[str, Tensor]:
    """Return copies in CPU memory of what is trained of `model`, by name, to be given to `save_trained` later.

    The buffers of a head, among them its thresholds, are copied too.
    """
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    head = head_of(model)
    if head is not None:
        weights |= head.state_dict(prefix=f"{HEAD_NAME}.")
    return {name: weight.detach().to("cpu", copy=True) for name, weight in weights.items()}


def load_trained(model: CausalLM, folder: Path) -> None:
    """Give `model`, under training, what `save_trained` has written into `folder`.

    Raises:
        ModelError: the folder holds nothing of the kind, something that is not finite, or that of another model.
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
    """Add what a run has trained to a base model, for extraction; an adapter is merged into its weights with `merge`.

    Raises:
        ModelError: there is nothing trained in `folder`, it is damaged or not finite, or it is for another model.
    """
    return load_full(model, folder) if is_full(folder) else adapter.load_adapter(model, folder, merge)


def reload_trained(model: CausalLM, folder: Path, task: TaskSpec, *, merge: bool) -> CausalLM:
    """Turn `model`, under training, into the model that extracts with what is saved in `folder`; see `open_trained`."""
    return open_trained(model.unload() if _is_adapted(model) else model, folder, task, merge=merge)


def open_trained(model: CausalLM, folder: Path, task: TaskSpec, *, merge: bool) -> CausalLM:
    """Make of a base model the one that extracts with what is saved in `folder`, its head included.

    Raises:
        ModelError: as `load_adapter` and `load_head`.
    """
    trained = load_adapter(model, folder, merge=merge)
    if task.reads:
        load_head(trained, folder, task)
    return trained


def is_shareable(folder: Path) -> bool:
    """Whether what is trained in `folder` can be added to a base model that others use too: an adapter can."""
    return not is_full(folder)


def open_together(
    model: CausalLM, trained: Sequence[tuple[Path, TaskSpec]]
) -> tuple[CausalLM, list[Callable[[], None]]]:
    """Add what several runs have trained to one base model, and keep it apart.

    Args:
        model: the base model.
        trained: the folder and the task of each run; each `is_shareable`.

    Returns:
        The model, and for each run a function that lets it compute with that run's adapter and head from then on.

    Raises:
        ModelError: as `open_trained`.
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
    """Return the section `lora` by which what is trained in `folder` can be trained on.

    Raises:
        ModelError: it is damaged, or an adapter has an alpha for single modules, with which no recipe can go on.
    """
    return config.Lora(full=True) if is_full(folder) else adapter.read_lora(folder)


def _is_adapted(model: CausalLM) -> bool:
    """Whether `model` has PEFT adapters."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def _of_head(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the head among those of a model, by their names in the head."""
    prefix = f"{HEAD_NAME}."
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
