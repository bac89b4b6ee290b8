"""LoRA adapters through PEFT, with targets that are checked against the model.

PEFT does not report target names that match no module. On Phi-4, whose projections are fused, the usual names would
leave 65 % of the linear weights without an adapter. Here a name without a match is an error that lists the names of the
model's modules. Adapters are fp32, so that AdamW's small updates are not lost to rounding.
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
    """The linear modules of a model that get an adapter; the output layer is not counted.

    Attributes:
        adapted: the number of linear weights in modules with an adapter; with `full`, of all.
        total: the number of all linear weights.
        matched: the target names that match a module.
        unmatched: the target names that match no module.
        available: the names of all linear modules.
        unranked: the names of `lora.rank_pattern` that match no module with an adapter.
        full: whether this is full fine-tuning, in which no module gets an adapter and all linear weights are trained.
    """

    adapted: int
    total: int
    matched: tuple[str, ...]
    unmatched: tuple[str, ...]
    available: tuple[str, ...]
    unranked: tuple[str, ...] = ()
    full: bool = False

    def __str__(self) -> str:
        """What is trained, as a sentence for people."""
        if self.full:
            return "full fine-tuning: every weight of the layers and the last norm"
        return f"LoRA on {', '.join(self.matched)}: {100 * self.share:.0f} % of the linear weights"

    @property
    def share(self) -> float:
        """The share of the linear weights that are in modules with an adapter."""
        return self.adapted / self.total if self.total else 0.0


def linear_names(model: CausalLM) -> Counter[str]:
    """Count the weights of a model's linear modules by the last part of their names, without the output layer."""
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
    """Find the modules that `lora.targets` matches in `model`, which may be on the meta device."""
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
    """Return the error message for names of `lora.rank_pattern` that match nothing; None if all match."""
    if not covered.unranked:
        return None
    return (
        f"lora.rank_pattern: {', '.join(covered.unranked)} match no module that gets an adapter; "
        f"{nearest(covered.unranked[0], covered.matched)}"
    )


def unmatched_error(covered: Coverage) -> str | None:
    """Return the error message for targets that match nothing; None if all match."""
    if not covered.unmatched:
        return None
    return (
        f"lora.targets: {', '.join(covered.unmatched)} match no linear module of this model "
        f"({covered.share:.0%} of its linear weights would be adapted); "
        f"{nearest(covered.unmatched[0], covered.available)}. Use lora.targets=all-linear"
    )


def require_dora(settings: config.Lora, base: str, device: str) -> None:
    """Check that DoRA, if the recipe sets it, can be computed over a base of this type on this kind of device.

    Args:
        settings: the section `lora`.
        base: the type of the base, such as "int8".
        device: "cpu" or "cuda".

    Raises:
        ModelError: it cannot be computed.
    """
    if settings.dora and base == "int8" and device == "cpu":
        raise ModelError("lora.dora cannot be computed over model.base=int8 on a CPU; set model.base=nf4, fp8 or fp32")


def attach(model: CausalLM, settings: config.Lora) -> tuple[CausalLM, Coverage]:
    """Freeze `model` and add new adapters to it.

    With `lora.full` nothing is added; the weights of the layers and the last norm become trainable instead.

    Returns:
        The PEFT model (with `lora.full`, `model` itself), and the modules that the targets matched.

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
    if all(type(module) in FUSED for _, module in linear_modules(model)):  # PEFT has its own layers for bitsandbytes
        peft_config._register_custom_module({nn.Linear: FusedLora})
    return get_peft_model(model, peft_config), covered


def _pattern(name: str, settings: config.Lora) -> str | None:
    """Return the name of `lora.rank_pattern` that PEFT matches with the module `name`; None without a match."""
    from peft.utils.other import get_pattern_key

    pattern: str = get_pattern_key(list(settings.rank_pattern), name)
    return pattern if pattern in settings.rank_pattern else None


FUSED = (nn.Linear, Fp8Linear)
"""The types of linear layer that `FusedLora` supports; it does not support their subclasses."""


def is_compilable(model: CausalLM) -> bool:
    """Whether a model can be compiled for extraction: it is frozen, and torch.compile supports its linear layers."""
    is_frozen = not any(parameter.requires_grad for parameter in model.parameters())
    return is_frozen and all(type(module) in FUSED for _, module in linear_modules(model))


def freeze_adapters(model: CausalLM) -> None:
    """Prepare the adapters of a model that is not trained: store them scaled, in the type that its products need."""
    for module in model.modules():
        if isinstance(module, FusedLora):
            module.freeze()


class FusedLora(Linear):
    """PEFT's LoRA layer, with the plain case computed by one operator (`kernels.lora_linear.linear`).

    The plain case is one active adapter that is not merged, without dropout, DoRA and bias. All other cases are
    computed by PEFT.
    """

    frozen: dict[str, tuple[Tensor, Tensor]]

    def freeze(self) -> None:
        """Store the adapters without gradient scaled and in the type of the base, so that no call converts them."""
        weight = self.get_base_layer().weight
        dtype = torch.bfloat16 if weight.dtype == torch.uint8 else weight.dtype
        self.frozen = {
            name: ((down.weight * self.scaling[name]).to(dtype), self.lora_B[name].weight.to(dtype))
            for name, down in self.lora_A.items()
            if not down.weight.requires_grad
        }

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return the base layer and its adapter applied to `x` [..., in]: [..., out], in the type of the base."""
        if not self._plain(args, kwargs):
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        base, rows = self.base_layer, x.flatten(0, -2)
        if not isinstance(base, Fp8Linear):
            rows = rows.to(base.weight.dtype)
        outputs: Tensor = linear(rows, *self._weights(rows.dtype))
        return (outputs if base.bias is None else outputs + base.bias).view(*x.shape[:-1], base.out_features)

    def weights(self, dtype: torch.dtype) -> Weights | None:
        """Return the weights of the layer for an operator that computes several layers at once.

        Args:
            dtype: the type of the inputs.

        Returns:
            The weights; None if this is not the plain case, or the layer has a bias.
        """
        return self._weights(dtype) if self._plain((), {}) and self.base_layer.bias is None else None

    def _weights(self, dtype: torch.dtype) -> Weights:
        (name,) = self.active_adapters
        base = self.base_layer
        if isinstance(base, Fp8Linear):
            return Weights(base.weight.view(FP8), base.scale, *self._adapters(name, dtype))
        return Weights(base.weight, None, *self._adapters(name, base.weight.dtype))

    def _adapters(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return A, multiplied by the scale of the adapter, and B, both in `dtype`."""
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        frozen: tuple[Tensor, Tensor] | None = getattr(self, "frozen", {}).get(name)
        if frozen is not None and frozen[0].dtype == dtype and not up.requires_grad:
            return frozen
        return (down * self.scaling[name]).to(dtype), up.to(dtype)

    def merge(self, *args: object, **kwargs: object) -> None:
        """Merge the adapter into the base as PEFT does.

        Raises:
            ModelError: the base is FP8, which is too coarse for the update.
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
