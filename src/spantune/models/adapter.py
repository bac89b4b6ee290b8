"""Reads a saved LoRA adapter and adds it to a model; its configuration and every weight are checked.

PEFT loads the weights that match and ignores the others, and it has settings that run code or replace parts of a model.
Adapters of spantune do not use these settings. Here an unexpected setting, weight or shape is an error that names it.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.nn.functional import pad

from spantune.core import ModelError, config, first_line, foreign
from spantune.models.interfaces import CausalLM
from spantune.models.weights import first_difference, require_finite

ADAPTER = "default"
"""The name of the adapter of a model with one adapter."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DESCRIPTIVE = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type")
"""Settings of PEFT that describe an adapter and do not change what it computes."""

Rank = Annotated[int, Field(gt=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Saved(BaseModel):
    """The settings in the configuration of a saved adapter; all other settings of PEFT must have their defaults."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: Finite
    target_modules: list[str] = Field(min_length=1)
    lora_dropout: Finite = Field(default=0.0, ge=0, le=1)
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, Rank] = {}
    alpha_pattern: dict[str, Finite] = {}

    @property
    def largest_rank(self) -> int:
        """The largest rank of a module."""
        return max([self.r, *self.rank_pattern.values()])


def load_adapter(model: CausalLM, folder: Path, merge: bool = False) -> CausalLM:
    """Add the adapter in `folder` to a base model, for extraction.

    Args:
        model: the base model, which is changed.
        folder: the adapter's folder.
        merge: whether the adapter is merged into the model's weights.

    Raises:
        ModelError: `folder` has no adapter, or it is damaged, not finite, or for another model.
    """
    saved, weights = _read_adapter(folder)
    if merge and _merge_plain(model, saved, weights):
        return model.eval()
    adapted = _with_adapter(model, folder, saved, weights, ADAPTER)
    if merge:
        adapted = adapted.merge_and_unload()
    return adapted.eval()


def load_adapters(model: CausalLM, folders: Sequence[Path]) -> CausalLM:
    """Add several saved adapters to a base model, without merging; `activate_adapter` chooses one of them.

    Raises:
        ModelError: a folder has no adapter, or it is damaged, not finite, or for another model.
    """
    for index, folder in enumerate(folders):
        model = _with_adapter(model, folder, *_read_adapter(folder), _name(index))
    model.requires_grad_(False)
    return model.eval()


def activate_adapter(model: CausalLM, index: int) -> None:
    """Let a model of `load_adapters` compute with the adapter of `folders[index]`."""
    model.set_adapter(_name(index), inference_mode=True)


def _name(index: int) -> str:
    """Return the name of one of several adapters; it is no part of another name, since PEFT finds weights by it."""
    return f"run_{index}_"


def _read_adapter(folder: Path) -> tuple[_Saved, dict[str, Tensor]]:
    """Return the settings and the weights of the adapter in `folder`."""
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder}: no {CONFIG} here; expected the adapter folder of a finished run")
    saved, weights = _read_config(folder), _read_weights(folder)
    ranks = [len(weight) for name, weight in weights.items() if "lora_A" in name and weight.dim() == 2]
    if saved.largest_rank > max(ranks, default=0):  # refused before weights of this rank are allocated
        detail = f"size mismatch: {CONFIG} has a rank of {saved.largest_rank}, {WEIGHTS} has {max(ranks, default=0)}"
        raise _of_another_model(folder, detail)
    return saved, weights


def _with_adapter(model: CausalLM, folder: Path, saved: _Saved, weights: dict[str, Tensor], name: str) -> CausalLM:
    """Add an adapter to a model, which may have other adapters, under `name`, with its weights."""
    from peft import LoraConfig, PeftModel, TaskType, get_peft_model

    importlib.import_module("torch.distributed.tensor")  # PEFT uses this module without importing it
    settings = saved.model_dump(include=set(_Saved.model_fields) - {"peft_type"})
    with foreign(folder, f"the adapter does not fit the model by {CONFIG}", "name the model that it was trained on"):
        wanted = LoraConfig(task_type=TaskType.CAUSAL_LM, inference_mode=True, **settings)
        adapted: CausalLM = model
        if isinstance(model, PeftModel):
            model.add_adapter(name, wanted)
        else:
            adapted = get_peft_model(model, wanted, adapter_name=name)
    _set_weights(adapted, folder, weights, name)
    return adapted


def read_lora(folder: Path) -> config.Lora:
    """Return the settings of the adapter in `folder`; the targets are the names of its modules.

    Raises:
        ModelError: the adapter is damaged, or has an alpha for single modules, which a recipe cannot state.
    """
    saved = _read_config(folder)
    if saved.alpha_pattern:
        raise ModelError(f"{folder}: {CONFIG} sets alpha_pattern, which no recipe can state; take another adapter")
    return config.Lora(
        rank=saved.r,
        alpha=saved.lora_alpha,
        rslora=saved.use_rslora,
        dora=saved.use_dora,
        rank_pattern=saved.rank_pattern,
        targets=tuple(sorted(saved.target_modules)),
    )


PREFIX = "base_model.model."
"""The prefix of PEFT before the name of a module."""


@dataclass(frozen=True)
class PlainLora:
    """An adapter without scales: the change of a module's weight is `up @ down`.

    Args:
        rank: the rank of all modules.
        halves: `(down [rank, in], up [out, rank])` of each module by its dotted name in the model, in float32.
    """

    rank: int
    halves: Mapping[str, tuple[Tensor, Tensor]] = field(repr=False)

    @property
    def targets(self) -> list[str]:
        """The last parts of the names of the modules, sorted."""
        return sorted({name.rpartition(".")[2] for name in self.halves})


def fold_lora(folder: Path) -> PlainLora:
    """Read a saved adapter, and multiply its scales (alpha, rsLoRA and those of single modules) into `up`.

    If modules have different ranks, the smaller ones are filled with zeros to the largest rank.

    Raises:
        ModelError: `folder` has no adapter, it is damaged, or it is a DoRA, which is not a product of two matrices.
    """
    from peft.utils.other import get_pattern_key

    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder}: no {CONFIG} here; expected the adapter folder of a finished run with LoRA")
    saved, weights = _read_config(folder), _read_weights(folder)
    if saved.use_dora:
        raise ModelError(
            f"{folder}: this is a DoRA, whose change of a weight is not a product of two small matrices, so that few "
            "engines load it; export merged weights instead: --to merged"
        )
    halves: dict[str, tuple[Tensor, Tensor]] = {}
    for key, down in weights.items():
        if not key.endswith(".lora_A.weight"):
            continue
        name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        up = weights[key.replace(".lora_A.", ".lora_B.")]
        alpha = saved.alpha_pattern.get(get_pattern_key(saved.alpha_pattern, name), saved.lora_alpha)
        scale = alpha / (math.sqrt(len(down)) if saved.use_rslora else len(down))
        halves[name] = (down.float(), up.float() * scale)
    rank = max(len(down) for down, _ in halves.values())
    return PlainLora(rank, {name: _filled(*pair, rank) for name, pair in halves.items()})


def _filled(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    missing = rank - len(down)
    return pad(down, (0, 0, 0, missing)), pad(up, (0, missing))


def load_adapter_weights(model: CausalLM, folder: Path) -> None:
    """Load the weights that are saved in `folder` into the adapter of a PEFT model.

    Raises:
        ModelError: `folder` has no adapter, or it is damaged, not finite, or of another model or shape.
    """
    _set_weights(model, folder, _read_weights(folder), ADAPTER)


def _read_config(folder: Path) -> _Saved:
    """Return the settings of the adapter in `folder`.

    Raises:
        ModelError: the file is damaged, or sets something that no adapter of spantune sets.
    """
    from peft import LoraConfig

    problem, path = f"the adapter is damaged: {CONFIG}", folder / CONFIG
    try:
        saved = _Saved.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "its content"
        raise ModelError(f"{folder}: {problem}, {field}: {first['msg']}; restore it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{folder}: {problem} cannot be read ({first_line(error)}); restore it") from None
    defaults: dict[str, Any] = LoraConfig().to_dict()
    for name, value in (saved.model_extra or {}).items():
        if name not in DESCRIPTIVE and value != defaults.get(name, value):
            raise ModelError(
                f"{folder}: {CONFIG} sets {name}, which no adapter of spantune does; restore it, or take an adapter "
                "that spantune trained"
            )
    return saved


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights of the adapter in `folder` by their names.

    Raises:
        ModelError: the file is damaged, or a weight is not finite.
    """
    from safetensors.torch import load_file

    with foreign(folder, f"the adapter is damaged: {WEIGHTS} cannot be read", "restore it"):
        weights: dict[str, Tensor] = load_file(folder / WEIGHTS)
    require_finite(folder, weights)
    return weights


def _set_weights(model: CausalLM, folder: Path, weights: dict[str, Tensor], name: str) -> None:
    """Load weights into the adapter `name` of `model`.

    Raises:
        ModelError: names or shapes differ from those of the adapter.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    if difference := first_difference(weights, own):
        raise _of_another_model(folder, difference)
    with foreign(folder, "the adapter's weights cannot be loaded", "restore them"):
        set_peft_model_state_dict(model, weights, adapter_name=name)


def _merge_plain(model: CausalLM, saved: _Saved, weights: dict[str, Tensor]) -> bool:
    """Add an adapter to the weights of its layers, with the result of PEFT, but without making its layers first.

    Returns:
        Whether this was done. If the adapter has settings for single layers, is a DoRA, or does not fit the model, the
        model is unchanged and PEFT has to do it.
    """
    if saved.use_dora or saved.rank_pattern or saved.alpha_pattern:
        return False
    endings = tuple(f".{name}" for name in saved.target_modules)
    layers = {name: module for name, module in model.named_modules() if f".{name}".endswith(endings)}
    halves = {name: tuple(f"base_model.model.{name}.lora_{half}.weight" for half in "AB") for name in layers}
    if not layers or {key for pair in halves.values() for key in pair} != weights.keys():
        return False
    fitting: list[tuple[nn.Linear, Tensor, Tensor]] = []
    for name, layer in layers.items():
        down, up = (weights[key] for key in halves[name])
        if not isinstance(layer, nn.Linear) or type(layer) is not nn.Linear:
            return False
        if (down.shape, up.shape) != ((saved.r, layer.in_features), (layer.out_features, saved.r)):
            return False
        fitting.append((layer, down, up))
    scale = saved.lora_alpha / (math.sqrt(saved.r) if saved.use_rslora else saved.r)
    model.requires_grad_(False)
    for layer, down, up in fitting:
        down, up = (half.to(layer.weight.device, torch.float32) for half in (down, up))
        layer.weight.data += (up @ down) * scale
    return True


def _of_another_model(folder: Path, difference: str) -> ModelError:
    return ModelError(
        f"{folder}: the adapter is for another model than model.source of the run's recipe ({difference}); name the "
        "model that it was trained on"
    )
