"""Whether a recipe fits into memory, which settings would fit, and how long it takes, predicted before training.

The time is derived from the measured speed of matrix products on this device; the run compares it with its first steps.
The memory is predicted as `memory` says.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import get_args

import torch

from spantune.core import Config, config
from spantune.encoding import fill
from spantune.models import CausalLM, adapter_weights, decoder_layers, has_fp8, is_wide, linear_modules, pick_device
from spantune.training.layers import checkpointing, compiling, keeping
from spantune.training.masked import SHARE
from spantune.training.memory import (
    GIB,
    Memory,
    available_bytes,
    head_load,
    number_bytes,
    of_a_rank,
    part_tokens,
    predict_memory,
)
from spantune.training.preparation import Prepared
from spantune.training.schedule import masked_steps, total_steps

SPEED = {"compiled": 0.65, "fp8": 0.75, "eager": 0.5, "bf16 on a CPU": 0.16}
"""The speed of a training step as a share of the speed of matrix products in its type.

The values of a CPU are measured with the embedded model."""
LINK = 20e9
"""The bytes per second that a rank sends to another one over a fast PCIe bus; NVLink is ten times as fast."""
FILLED = 0.85
"""`train.keep` becomes `most` if its predicted memory is at most this share of the free memory."""
EVALUATIONS = 4
"""The number of evaluations on dev in a run, if the recipe does not set `train.eval_steps`."""


@dataclass(frozen=True)
class Estimate:
    """The predicted memory and time of a run. With several ranks, memory, tokens and time are those of one rank.

    Attributes:
        memory: the predicted peak memory of a step.
        available_gib: the free memory of the device.
        device: the name of the device.
        tokens_per_step: the tokens of a step in packs.
        tokens_unpacked: the tokens of a step if each example had its own prefix.
        steps: the optimizer steps of the run, those with masked tokens included.
        step_seconds: the predicted time of a step.
        minutes: the predicted time of training (at most `train.max_minutes`) and of the evaluations on dev, which take
            up to `train.eval_share` of it, and less where spans are read. Loading the model and measuring the test
            documents are not included.
        fitting: settings with which the run would fit into memory; empty if it fits, None if there are none.
        pack_tokens: the maximum number of tokens in a pack; None if examples are not packed.
        ranks: the number of processes that train together.
        sent_gib: what a rank sends to others in a step, in GiB.
        masked_steps: how many of `steps` predict masked tokens; they are the first ones.
    """

    memory: Memory
    available_gib: float
    device: str
    tokens_per_step: int
    tokens_unpacked: int
    steps: int
    step_seconds: float
    minutes: float
    fitting: Mapping[str, object] | None
    pack_tokens: int | None = None
    ranks: int = 1
    sent_gib: float = 0.0
    masked_steps: int = 0

    @property
    def fits(self) -> bool:
        """Whether the predicted peak memory is less than the available memory."""
        return self.memory.total_gib < self.available_gib

    def as_dict(self) -> dict[str, float]:
        """Return the figures by name, rounded to three decimals."""
        values = {**asdict(self.memory), "total_gib": self.memory.total_gib, "available_gib": self.available_gib}
        values |= {
            key: getattr(self, key)
            for key in ("tokens_per_step", "tokens_unpacked", "steps", "step_seconds", "minutes")
        }
        if self.pack_tokens is not None:
            values |= {"pack_tokens": self.pack_tokens}
        if self.masked_steps:
            values |= {"masked_steps": self.masked_steps}
        if self.ranks > 1:
            values |= {"ranks": self.ranks, "sent_gib": self.sent_gib}
        return {key: value if isinstance(value, int) else round(value, 3) for key, value in values.items()}


def kept(prepared: Prepared, model: CausalLM, ranks: int = 1) -> config.Keep:
    """Return the value of `train.keep` that `auto` means on this device, by the predicted memory.

    Args:
        prepared: the recipe and its examples.
        model: its model on the meta device.
        ranks: the number of processes that train together.
    """
    recipe, device = prepared.recipe, pick_device(prepared.recipe.model.device)
    most = _overridden(recipe, {"train.keep": "most"})
    tokens, head = part_tokens(prepared, most, device), head_load(prepared, model)
    needed = of_a_rank(predict_memory(model, most, device, tokens, head), model, most, ranks).total_gib
    return "most" if needed < FILLED * available_bytes(device) / GIB else "some"


def estimate(prepared: Prepared, model: CausalLM, ranks: int = 1) -> Estimate:
    """Predict the memory and time of a recipe.

    Args:
        prepared: the recipe and its examples.
        model: its model on the meta device.
        ranks: the number of processes that train together, each on a device like this one.
    """
    recipe, settings = prepared.recipe, prepared.recipe.train
    device = pick_device(recipe.model.device)
    prefix = len(prepared.prefix) if settings.pack == "shared" else 0
    rest = [len(example.ids) - prefix for example in prepared.examples]
    share = min(config.filled(settings.batch_examples), len(rest)) / len(rest) / ranks
    packs = len(fill(rest, prepared.pack_tokens(device.type) - prefix))
    packed = round((sum(rest) + packs * prefix) * share)
    head, rate = head_load(prepared, model), _rate(recipe, device)
    steps, masked = total_steps(settings, len(rest)), masked_steps(settings, len(rest))
    memory = predict_memory(model, recipe, device, part_tokens(prepared, recipe, device), head)
    memory = of_a_rank(memory, model, recipe, ranks)
    available = available_bytes(device)
    operations = _step_flops(model, recipe, device) + (head.operations if head else 0)
    passes = 2 * math.ceil(packed / part_tokens(prepared, recipe, device))  # forward and backward, for each pack
    sent = _sent_bytes(model, recipe, number_bytes(recipe.model.base, device), ranks, passes)
    step_seconds = operations * packed / rate + sent / LINK
    training_minutes = min(steps * step_seconds / 60, settings.max_minutes or math.inf)
    of_masked = _step_flops(model, recipe, device) + SHARE * 4 * model.config.hidden_size * model.config.vocab_size
    masked_minutes = masked * (of_masked * packed / rate + sent / LINK) / 60
    evaluations = settings.eval_share * training_minutes
    if head:  # reading may take less time than evaluations are allowed to take
        a_token = 2 * sum(module.weight.numel() for _, module in linear_modules(model)) + head.operations / 3
        each = a_token * _dev_tokens(prepared) / rate / 60
        evaluations = min(evaluations, each * (steps / settings.eval_steps if settings.eval_steps else EVALUATIONS))
    return Estimate(
        memory=memory,
        available_gib=available / GIB,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine",
        tokens_per_step=packed,
        tokens_unpacked=round(sum(len(example.ids) for example in prepared.examples) * share),
        steps=masked + steps,
        step_seconds=step_seconds,
        minutes=masked_minutes + training_minutes + evaluations,
        fitting={} if memory.total_gib < available / GIB else fitting(prepared, model, device, available / GIB, ranks),
        pack_tokens=prepared.pack_tokens(device.type) if settings.pack == "shared" else None,
        ranks=ranks,
        sent_gib=sent / GIB,
        masked_steps=masked,
    )


def _dev_tokens(prepared: Prepared) -> float:
    """Return the tokens of the dev documents of an evaluation, estimated by the tokens per character of train."""
    wanted = prepared.recipe.train.eval_documents or len(prepared.splits.dev)
    share = min(1.0, wanted / max(1, len(prepared.splits.dev)))
    read, characters = (
        sum(len(document.text) for document in part) for part in (prepared.splits.dev, prepared.splits.train)
    )
    return share * read * sum(len(example.ids) for example in prepared.examples) / max(1, characters)


def _sent_bytes(model: CausalLM, recipe: Config, width: int, ranks: int, passes: int) -> float:
    """Return the bytes that a rank sends in a step.

    It sends gradients (an all-reduce in a ring) and, for each pass through a divided base, its part of the base.
    """
    others = (ranks - 1) / ranks
    reduced = 2 * others * 4 * adapter_weights(model, recipe.lora)
    if recipe.distributed.strategy != "fsdp":
        return reduced
    weights = sum(weight.numel() for layer in decoder_layers(model) for weight in layer.parameters())
    return reduced + passes * others * width * weights


def fitting(
    prepared: Prepared, model: CausalLM, device: torch.device, available_gib: float, ranks: int = 1
) -> dict[str, object] | None:
    """Return the cheapest settings with which the recipe would fit into memory, by key; None if there are none.

    Args:
        prepared: the recipe and its examples.
        model: its model on the meta device.
        device: the device that trains.
        available_gib: the memory of the device that a run may fill, in GiB.
        ranks: the number of processes that train together.
    """
    head = head_load(prepared, model)
    for settings in _alternatives(prepared, device):
        recipe = _overridden(prepared.recipe, settings)
        memory = predict_memory(model, recipe, device, part_tokens(prepared, recipe, device), head)
        if of_a_rank(memory, model, recipe, ranks).total_gib < available_gib:
            return settings
    return None


def _step_flops(model: CausalLM, recipe: Config, device: torch.device) -> float:
    """Return the floating-point operations per token of a step, without the head.

    They are those of the forward pass, of the gradients of inputs and trained weights, and of recomputed products.
    """
    weights = [module.weight for _, module in linear_modules(model)]
    again = sum(weight.numel() for weight in weights if is_wide(*weight.shape))
    keeps_none = keeping(recipe) == "none" or recipe.lora.full  # only products of modules with an adapter are kept
    if checkpointing(recipe, device) or (compiling(recipe, device) and keeps_none):
        again = sum(weight.numel() for weight in weights)
    elif not compiling(recipe, device) or keeping(recipe) in ("fp8", "most"):
        again = 0
    return (6 if recipe.lora.full else 4) * sum(weight.numel() for weight in weights) + 2 * again


def _alternatives(prepared: Prepared, device: torch.device) -> Iterator[dict[str, object]]:
    """Yield changes of settings that need less and less memory, the cheapest first.

    First more is recomputed in the backward pass; then the optimizer, the base and the packs become smaller.
    """
    recipe = prepared.recipe
    keeps = [keep for keep in get_args(config.Keep) if keep != "fp8"]  # fp8 rounds, so it is not proposed
    lower = keeps[: keeps.index("most" if keeping(recipe) == "fp8" else keeping(recipe))][::-1]
    axes: list[list[dict[str, object]]] = [[{}] for _ in range(4)]
    parts, bases, optimizers, recomputed = axes
    recomputed += [{"train.keep": keep} for keep in lower] if compiling(recipe, device) else []
    recomputed += [] if compiling(recipe, device) else [{"train.gradient_checkpointing": "on"}]
    if device.type == "cuda":
        optimizers += [{"train.optimizer": "adamw_8bit"}] if recipe.train.optimizer == "adamw" else []
    if device.type == "cuda" and not recipe.lora.full:
        bases += [{"model.base": "fp8"}] if has_fp8(device) and recipe.model.base not in config.QUANTIZED else []
        bases += [{"model.base": "nf4"}] if recipe.model.base != "nf4" else []
    elif device.type == "cpu" and number_bytes(recipe.model.base, device) == 4:
        bases += [{"model.base": "bf16"}]
    size = recipe.train.micro_batch if recipe.train.pack == "none" else part_tokens(prepared, recipe, device)
    least = 1 if recipe.train.pack == "none" else max(len(example.ids) for example in prepared.examples)
    while size > least:
        size = max(size // 2, least)
        parts.append({"train.micro_batch" if recipe.train.pack == "none" else "train.pack_tokens": size})
    for chosen in product(*axes):
        yield {key: value for part in chosen for key, value in part.items()}


def _overridden(recipe: Config, settings: Mapping[str, object]) -> Config:
    for key, value in settings.items():
        section, _, name = key.partition(".")
        recipe = recipe.model_copy(update={section: getattr(recipe, section).model_copy(update={name: value})})
    return recipe


def _rate(recipe: Config, device: torch.device) -> float:
    """Return the FLOP/s that a training step reaches on this device.

    The speed of matrix products is measured once; on a CPU this takes most of the time of `plan`.
    """
    dtype = torch.bfloat16 if number_bytes(recipe.model.base, device) == 2 else torch.float32
    way = "eager" if not compiling(recipe, device) else "fp8" if recipe.model.base == "fp8" else "compiled"
    if way == "eager" and device.type == "cpu" and dtype == torch.bfloat16:
        way = "bf16 on a CPU"  # its matrix products are fast, but the operations between them are slow
    rows, size = (4096, 5120) if device.type == "cuda" else (512, 1024)
    # These are drawn at every call, also if the speed is known already, so that a seeded run draws the same numbers
    # afterwards in both cases.
    left, right = (torch.randn(count, size, device=device).to(dtype) for count in (rows, size))
    if (dtype, device) not in _product_rates:
        _product_rates[dtype, device] = _timed_products(left, right)
    return SPEED[way] * _product_rates[dtype, device]


_product_rates: dict[tuple[torch.dtype, torch.device], float] = {}


def _timed_products(left: torch.Tensor, right: torch.Tensor) -> float:
    """Return the FLOP/s of `left @ right`."""
    for timed in (False, True):
        start = time.perf_counter()
        for _ in range(8):
            left @ right
        if left.device.type == "cuda":
            torch.cuda.synchronize()
        if timed:
            return 8 * 2 * left.numel() * right.shape[1] / (time.perf_counter() - start)
    raise AssertionError
