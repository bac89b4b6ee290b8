"""LoRA adapters through PEFT, with targets that are checked against the model.

PEFT does not report target names that match no module, which on Phi-4's fused projections leaves 65 % of the linear
weights without an adapter. Here a name that matches nothing is an error that lists the names there are. Adapters are
fp32, so that AdamW's small steps are not lost to rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from spantune.core import ModelError, config, nearest
from spantune.models.full import attach_full, full_weights
from spantune.models.interfaces import CausalLM
from spantune.models.kernels.gated import Weights
from spantune.models.kernels.lora_linear import FP8, Fp8Linear, linear


@dataclass(frozen=True)
class Coverage:
    """Which linear modules get an adapter: number of weights with one and of all linear weights, and the target names.

    `unranked` are the names of `lora.rank_pattern` that match no module with an adapter. With `full`, full fine-tuning,
    no module gets one, and all linear weights are trained.
    """

    adapted: int
    total: int
    matched: tuple[str, ...]
    unmatched: tuple[str, ...]
    available: tuple[str, ...]
    unranked: tuple[str, ...] = ()
    full: bool = False

    def __str__(self) -> str:
        """What is trained, in words."""
        if self.full:
            return "full fine-tuning: every weight of the layers and the last norm"
        return f"LoRA on {', '.join(self.matched)}: {100 * self.share:.0f} % of the linear weights"

    @property
    def share(self) -> float:
        """Share of the linear weights (without the output layer) that get an adapter."""
        return self.adapted / self.total if self.total else 0.0


def linear_names(model: CausalLM) -> Counter[str]:
    """Count the weights of the model's linear modules by leaf name, without the output layer."""
    sizes: Counter[str] = Counter()
    for name, module in linear_modules(model):
        sizes[name.rpartition(".")[2]] += module.weight.numel()
    return sizes


def linear_modules(model: CausalLM) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the linear modules of a causal LM with their names, without the output layer."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            yield name, module


def coverage(model: CausalLM, settings: config.Lora) -> Coverage:
    """Find out what `lora.targets` matches on `model`, which may be on the meta device."""
    sizes = linear_names(model)
    if settings.full:
        return Coverage(sizes.total(), sizes.total(), (), (), tuple(sorted(sizes)), full=True)
    named = (settings.targets,) if isinstance(settings.targets, str) else settings.targets
    targets = sorted(sizes) if settings.targets == "all-linear" else named
    matched = tuple(name for name in targets if name in sizes)
    unmatched = tuple(name for name in targets if name not in sizes)
    ranked = {_pattern(name, settings) for name, _ in linear_modules(model) if name.rpartition(".")[2] in matched}
    unranked = tuple(sorted(set(settings.rank_pattern) - ranked))
    adapted = sum(sizes[name] for name in matched)
    return Coverage(adapted, sizes.total(), matched, unmatched, tuple(sorted(sizes)), unranked)


def adapter_weights(model: CausalLM, settings: config.Lora) -> int:
    """Count the weights that are trained with `settings` on `model`, which may be on the meta device."""
    if settings.full:
        return sum(weight.numel() for weight in full_weights(model).values())
    matched, total = coverage(model, settings).matched, 0
    for name, module in linear_modules(model):
        if name.rpartition(".")[2] in matched:
            rank = settings.rank_pattern.get(_pattern(name, settings) or "", config.filled(settings.rank))
            total += rank * (module.in_features + module.out_features) + settings.dora * module.out_features
    return total


def unranked_error(covered: Coverage) -> str | None:
    """Return the error message for names of `lora.rank_pattern` that match nothing; None where all match."""
    if not covered.unranked:
        return None
    return (
        f"lora.rank_pattern: {', '.join(covered.unranked)} match no module that gets an adapter; "
        f"{nearest(covered.unranked[0], covered.matched)}"
    )


def unmatched_error(covered: Coverage) -> str | None:
    """Return the error message for targets that match nothing; None where all match."""
    if not covered.unmatched:
        return None
    return (
        f"lora.targets: {', '.join(covered.unmatched)} match no linear module of this model "
        f"({covered.share:.0%} of its linear weights would be adapted); "
        f"{nearest(covered.unmatched[0], covered.available)}. Use lora.targets=all-linear"
    )


def require_dora(settings: config.Lora, base: str, device: str) -> None:
    """Check that DoRA, where it is asked for, can be computed over a base of this type on this kind of device.

    Raises:
        ModelError: it cannot.
    """
    if settings.dora and base == "int8" and device == "cpu":
        raise ModelError("lora.dora cannot be computed over model.base=int8 on a CPU; set model.base=nf4, fp8 or fp32")


def attach(model: CausalLM, settings: config.Lora) -> tuple[CausalLM, Coverage]:
    """Freeze `model` and add adapters; returns the PEFT model and what the targets matched.

    With `lora.full` nothing is added: the weights of the layers and the last norm are trained, and `model` is returned.

    Raises:
        ModelError: a target matches nothing, unless `lora.allow_unmatched` is set and another one matches; or a name of
            `lora.rank_pattern` matches nothing; or PEFT cannot compute DoRA for the base; or the base is quantised and
            `lora.full` is set.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    covered = coverage(model, settings)
    if settings.full:
        attach_full(model)
        return model, covered
    problem = unmatched_error(covered)
    if settings.allow_unmatched and covered.matched:
        problem = None
    if problem := problem or unranked_error(covered):
        raise ModelError(problem)
    weights = (module.weight for _, module in linear_modules(model))
    if any(weight.dtype == torch.int8 and weight.device.type == "cpu" for weight in weights):
        require_dora(settings, "int8", "cpu")
    peft_config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.filled(settings.rank),
        lora_alpha=config.filled(settings.alpha),
        lora_dropout=settings.dropout,
        target_modules=list(covered.matched),
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        rank_pattern=dict(settings.rank_pattern),
    )
    if all(type(module) in FUSED for _, module in linear_modules(model)):  # bitsandbytes' layers are PEFT's own
        peft_config._register_custom_module({nn.Linear: FusedLora})
    return get_peft_model(model, peft_config), covered


def _pattern(name: str, settings: config.Lora) -> str | None:
    """The name of `lora.rank_pattern` that PEFT matches with the module `name`, if any."""
    from peft.utils.other import get_pattern_key

    pattern: str = get_pattern_key(list(settings.rank_pattern), name)
    return pattern if pattern in settings.rank_pattern else None


FUSED = (nn.Linear, Fp8Linear)
"""The types of linear layer that `FusedLora` supports; their subclasses it does not."""


def is_compilable(model: CausalLM) -> bool:
    """Whether a compiler sees through the linear layers of a model, and its weights stay as they are."""
    is_frozen = not any(parameter.requires_grad for parameter in model.parameters())
    return is_frozen and all(type(module) in FUSED for _, module in linear_modules(model))


def freeze_adapters(model: CausalLM) -> None:
    """Keep the adapters of a model that is not trained in the type of its base, scaled, as its products need them."""
    for module in model.modules():
        if isinstance(module, FusedLora):
            module.freeze()


class FusedLora(Linear):
    """PEFT's LoRA layer with a leaner forward for the plain case."""

    frozen: dict[str, tuple[Tensor, Tensor]]

    def freeze(self) -> None:
        """Keep the adapters that have no gradient in the type of the base, scaled."""
        weight = self.get_base_layer().weight
        dtype = torch.bfloat16 if weight.dtype == torch.uint8 else weight.dtype
        self.frozen = {
            name: ((down.weight * self.scaling[name]).to(dtype), self.lora_B[name].weight.to(dtype))
            for name, down in self.lora_A.items()
            if not down.weight.requires_grad
        }

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Apply the base layer and its adapter to `x` [..., in], in the base's type."""
        if not self._plain(args, kwargs):
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        base, rows = self.base_layer, x.flatten(0, -2)
        if not isinstance(base, Fp8Linear):
            rows = rows.to(base.weight.dtype)
        outputs: Tensor = linear(rows, *self._weights(rows.dtype))
        return (outputs if base.bias is None else outputs + base.bias).view(*x.shape[:-1], base.out_features)

    def weights(self, dtype: torch.dtype) -> Weights | None:
        """Return the weights of the layer for inputs of `dtype`, for an operator that computes several layers.

        None where the layer computes more than its frozen product and one adapter.
        """
        return self._weights(dtype) if self._plain((), {}) and self.base_layer.bias is None else None

    def _weights(self, dtype: torch.dtype) -> Weights:
        (name,) = self.active_adapters
        base = self.base_layer
        if isinstance(base, Fp8Linear):
            return Weights(base.weight.view(FP8), base.scale, *self._adapters(name, dtype))
        return Weights(base.weight, None, *self._adapters(name, base.weight.dtype))

    def _adapters(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The weights of an adapter, the first one scaled, in `dtype`."""
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        frozen: tuple[Tensor, Tensor] | None = getattr(self, "frozen", {}).get(name)
        if frozen is not None and frozen[0].dtype == dtype and not up.requires_grad:
            return frozen
        return (down * self.scaling[name]).to(dtype), up.to(dtype)

    def merge(self, *args: object, **kwargs: object) -> None:
        """Merge as PEFT does, except into FP8, whose numbers are too coarse for the update.

        Raises:
            ModelError: the base is FP8.
        """
        if isinstance(self.base_layer, Fp8Linear):
            raise ModelError("an adapter cannot be merged into an FP8 base; merge it into the bf16 model")
        super().merge(*args, **kwargs)

    def _plain(self, args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
        names = self.active_adapters
        if args or kwargs or self.disable_adapters or self.merged or len(names) != 1 or names[0] not in self.lora_A:
            return False
        (name,) = names
        drops = self.training and not isinstance(self.lora_dropout[name], nn.Identity)
        return not drops and name not in self.lora_variant and self.lora_B[name].bias is None
