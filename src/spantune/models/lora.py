"""LoRA adapters through PEFT, with targets that are checked against the model.

PEFT is silent when some of the named modules match nothing, and on Phi-4's fused projections that
leaves 65 % of the linear weights without an adapter. Here a name that matches nothing is an error that
lists what there is. Adapters are fp32, so that AdamW's small steps are not lost to rounding.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from spantune.core import ModelError, config, nearest
from spantune.models.fp8 import Fp8Linear
from spantune.models.kernels.lora_linear import FP8, linear

_REMEDY = "restore the adapter folder, or the model that config.yaml names"


@dataclass(frozen=True)
class Coverage:
    """Which linear modules get an adapter: weights with one, all linear weights, names on both sides.

    `unranked` are the names of `lora.rank_pattern` that match no module with an adapter.
    """

    adapted: int
    total: int
    matched: tuple[str, ...]
    unmatched: tuple[str, ...]
    available: tuple[str, ...]
    unranked: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Share of the linear weights (without the output layer) that get an adapter."""
        return self.adapted / self.total if self.total else 0.0


def linear_names(model: Any) -> Counter[str]:
    """Weights by leaf name of the model's linear modules, without the output layer."""
    sizes: Counter[str] = Counter()
    for name, module in linear_modules(model):
        sizes[name.rpartition(".")[2]] += module.weight.numel()
    return sizes


def linear_modules(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """The linear modules of a causal LM by their names, without the output layer."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            yield name, module


def coverage(model: Any, settings: config.Lora) -> Coverage:
    """What `lora.targets` matches on `model` (which may live on the meta device)."""
    sizes = linear_names(model)
    wanted = sorted(sizes) if settings.targets == "all-linear" else _names(settings.targets)
    matched = tuple(name for name in wanted if name in sizes)
    unmatched = tuple(name for name in wanted if name not in sizes)
    ranked = {_pattern(name, settings) for name, _ in linear_modules(model) if name.rpartition(".")[2] in matched}
    unranked = tuple(sorted(set(settings.rank_pattern) - ranked))
    adapted = sum(sizes[name] for name in matched)
    return Coverage(adapted, sizes.total(), matched, unmatched, tuple(sorted(sizes)), unranked)


def adapter_weights(model: Any, settings: config.Lora) -> int:
    """How many weights the adapters of `settings` have on `model` (which may live on the meta device)."""
    matched, total = coverage(model, settings).matched, 0
    for name, module in linear_modules(model):
        if name.rpartition(".")[2] in matched:
            rank = settings.rank_pattern.get(_pattern(name, settings) or "", settings.rank)
            total += rank * (module.in_features + module.out_features) + settings.dora * module.out_features
    return total


def unranked_error(found: Coverage) -> str | None:
    """The sentence that says which names of `lora.rank_pattern` match nothing and what there is, or None."""
    if not found.unranked:
        return None
    return (
        f"lora.rank_pattern: {', '.join(found.unranked)} match no module that gets an adapter; "
        f"{nearest(found.unranked[0], found.matched)}"
    )


def unmatched_error(found: Coverage) -> str | None:
    """The sentence that says which targets match nothing and what there is, or None."""
    if not found.unmatched:
        return None
    return (
        f"lora.targets: {', '.join(found.unmatched)} match no linear module of this model "
        f"({found.share:.0%} of its linear weights would be adapted); {nearest(found.unmatched[0], found.available)}. "
        "Use lora.targets=all-linear"
    )


def attach(model: Any, settings: config.Lora) -> tuple[Any, Coverage]:
    """Freeze `model` and put adapters on it; returns the PEFT model and what was matched.

    Raises:
        ModelError: a target matches nothing, unless `lora.allow_unmatched` is set and another one does, or a name of
            `lora.rank_pattern` does, or DoRA is asked for where PEFT cannot compute it.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    found = coverage(model, settings)
    problem = unmatched_error(found)
    if settings.allow_unmatched and found.matched:
        problem = None
    if problem := problem or unranked_error(found):
        raise ModelError(problem)
    if settings.dora and any(_is_int8_on_cpu(module) for _, module in linear_modules(model)):
        raise ModelError("lora.dora cannot be computed over model.base=int8 on a CPU; set model.base=nf4, fp8 or fp32")
    peft_config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(found.matched),
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        rank_pattern=dict(settings.rank_pattern),
    )
    if all(type(module) in FUSED for _, module in linear_modules(model)):  # bitsandbytes' layers are PEFT's own
        peft_config._register_custom_module({nn.Linear: FusedLora})
    return get_peft_model(model, peft_config), found


def load_adapter(model: Any, folder: Path, merge: bool = False) -> Any:
    """Put a saved adapter on a base model, merged into its weights when `merge`.

    Raises:
        ModelError: there is no adapter in `folder`, it is damaged, or it is for another model.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    if not (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder}: no adapter_config.json here; expected the adapter folder of a finished run")
    try:
        stored = _names_in(folder / "adapter_model.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights that are missing: said below
            adapted = PeftModel.from_pretrained(model, str(folder))
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ModelError(f"{folder}: the adapter is damaged ({str(error).splitlines()[0]}); restore it") from None
    except (RuntimeError, ValueError) as error:  # shapes, or modules that the model has not
        raise _foreign(folder, str(error).splitlines()[-1].strip()) from None
    _check_complete(folder, adapted, stored)
    return adapted.merge_and_unload().eval() if merge else adapted.eval()


def load_adapter_weights(model: Any, folder: Path) -> None:
    """Give the adapter of a PEFT model the weights that are saved in `folder`.

    Raises:
        ModelError: the folder holds no such adapter, or one of another model or shape.
    """
    from peft import set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(folder / "adapter_model.safetensors")
        outcome = set_peft_model_state_dict(model, weights)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder}: the adapter is damaged ({str(error).splitlines()[0]}); restore it") from None
    except RuntimeError as error:
        raise _foreign(folder, str(error).splitlines()[-1].strip()) from None
    missing = [name for name in outcome.missing_keys if "lora_" in name]
    if missing or outcome.unexpected_keys:
        raise _foreign(folder, f"differing weights: {', '.join([*missing, *outcome.unexpected_keys][:3])}")


def _names_in(path: Path) -> set[str]:
    """The names of the tensors in a file."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return set(file.keys())


def _check_complete(folder: Path, adapted: Any, stored: set[str]) -> None:
    """PEFT loads what fits and is silent on the rest, which leaves a model that is partly untrained."""
    from peft import get_peft_model_state_dict

    wanted = set(get_peft_model_state_dict(adapted))
    if stored != wanted:
        raise _foreign(folder, f"{sorted(stored ^ wanted)[0]} is in one and not in the other")


def _foreign(folder: Path, found: str) -> ModelError:
    return ModelError(
        f"{folder}: the adapter is for another model than model.source of the run's recipe ({found}); name the model "
        "that it was trained on"
    )


def _pattern(name: str, settings: config.Lora) -> str | None:
    """The name of `lora.rank_pattern` that PEFT takes for the module `name`, if one matches."""
    from peft.utils.other import get_pattern_key

    found: str = get_pattern_key(list(settings.rank_pattern), name)
    return found if found in settings.rank_pattern else None


def _is_int8_on_cpu(module: nn.Linear) -> bool:
    return module.weight.dtype == torch.int8 and module.weight.device.type == "cpu"


def _names(targets: str | tuple[str, ...]) -> list[str]:
    return [targets] if isinstance(targets, str) else list(targets)


FUSED = (nn.Linear, Fp8Linear)
"""The very types of linear layer that it is for."""


class FusedLora(Linear):
    """PEFT's LoRA layer with a leaner forward for the plain case."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`x` [..., in] through the base layer and its adapter, in the base's type."""
        if not self._plain(args, kwargs):
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        (name,) = self.active_adapters
        base, up = self.base_layer, self.lora_B[name].weight
        weight, scale = (base.weight.view(FP8), base.scale) if isinstance(base, Fp8Linear) else (base.weight, None)
        rows = x.flatten(0, -2) if scale is not None else x.flatten(0, -2).to(weight.dtype)
        down = self.lora_A[name].weight * self.scaling[name]
        adapters = (down.to(rows.dtype), up.to(rows.dtype))
        found: Tensor = linear(rows, weight, scale, *adapters)
        return (found if base.bias is None else found + base.bias).view(*x.shape[:-1], base.out_features)

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """PEFT's merging, but for a base whose numbers are too coarse to take the update.

        Raises:
            ModelError: the base is FP8.
        """
        if isinstance(self.base_layer, Fp8Linear):
            raise ModelError("an adapter cannot be merged into an FP8 base; merge it into the bf16 model")
        super().merge(*args, **kwargs)

    def _plain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        names = self.active_adapters
        if args or kwargs or self.disable_adapters or self.merged or len(names) != 1 or names[0] not in self.lora_A:
            return False
        (name,) = names
        lively = self.training and not isinstance(self.lora_dropout[name], nn.Identity)
        return not lively and name not in self.lora_variant and self.lora_B[name].bias is None
