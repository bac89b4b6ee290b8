"""Memory and time of a recipe, predicted from the model's configuration before training.

The memory of weights is exact. The memory of activations is counted from the tensors that compiled layers keep, and is
within 10 % of the peaks measured on Phi-4's shape; for layers that are not compiled it is a rule of thumb. The time is
derived from the measured speed of matrix products on this device; the run compares it with its first steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import get_args

import torch

from spantune.core import Config, config
from spantune.encoding import SpanExample, fill
from spantune.models import (
    CausalLM,
    adapter_weights,
    coverage,
    decoder_layers,
    gated_parts,
    has_fp8,
    head_size,
    head_weights,
    is_wide,
    kept_bytes,
    linear_modules,
    own_output_weights,
    pick_device,
    pick_dtype,
)
from spantune.training.layers import checkpointing, compiling, keeping, parking
from spantune.training.loss import HEAD_CHUNK
from spantune.training.masked import SHARE
from spantune.training.preparation import Prepared
from spantune.training.schedule import masked_steps, total_steps

GIB = 2**30
BYTES = {"fp8": 1.0, "int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
"""The bytes of a weight by the type of the base.

NF4 has a scale of 8 bits for each block of 64 weights, and an fp32 number for each 256 scales."""
MOMENTS = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}
"""The bytes of the optimizer's moments for each trained weight."""
EAGER = 16
"""The hidden states that a layer keeps per token if it is neither compiled nor recomputed; a rule of thumb."""
SPEED = {"compiled": 0.65, "fp8": 0.75, "eager": 0.5, "bf16 on a CPU": 0.16}
"""The speed of a training step as a share of the speed of matrix products in its type.

The values of a CPU are measured with the embedded model."""
BANDS, FEATURES, STATES, FIXED = 6, 8, 3, 5000
"""The measured peak memory of a span head per character.

It is BANDS times the logits of the character's spans, FEATURES times its features and STATES times its hidden state,
all in fp32, and FIXED bytes."""
LINK = 20e9
"""The bytes per second that a rank sends to another one over a fast PCIe bus; NVLink is ten times as fast."""
GATHERED = 2
"""The number of layers of a divided base that are whole on a rank at the same time."""
FILLED = 0.85
"""`train.keep` becomes `most` if its predicted memory is at most this share of the free memory."""
EVALUATIONS = 4
"""The number of evaluations on dev in a run, if the recipe does not set `train.eval_steps`."""


@dataclass(frozen=True)
class Memory:
    """Predicted peak memory of a training step in GiB, by part.

    The memory of CUDA graphs is not included: a run continues without them if memory is short.

    Attributes:
        base_gib: the weights of the base model.
        adapters_gib: the weights and gradients of the adapters and the span head; with full fine-tuning the gradients
            and, for a bf16 base, the fp32 copies of the weights.
        optimizer_gib: the moments of the optimizer, and the averages of the weights.
        activations_gib: the activations that the layers keep for the backward pass.
        logits_gib: the logits; where spans are read, also the intermediate tensors of the span head.
    """

    base_gib: float
    adapters_gib: float
    optimizer_gib: float
    activations_gib: float
    logits_gib: float

    @property
    def total_gib(self) -> float:
        """The sum of all parts: the predicted peak."""
        return float(sum(asdict(self).values()))


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


@dataclass(frozen=True)
class HeadLoad:
    """The cost of a span head in a step.

    Args:
        weights: the number of its weights.
        bytes: its peak memory for each token of a text.
        operations: its floating-point operations for each token of a text.
    """

    weights: int
    bytes: float
    operations: float


def head_load(prepared: Prepared, model: CausalLM) -> HeadLoad | None:
    """Return the cost of the span head; None if the answer is written. `model` is the model on the meta device."""
    read = [example for example in prepared.examples if isinstance(example, SpanExample)]
    if not read:
        return None
    settings, types = prepared.recipe.spans, len(prepared.task.codes)
    texts = [len(example.characters.token) for example in read]
    characters = sum(texts) / max(1, sum(len(example.ids) - len(prepared.prefix) for example in read))
    width = min(config.filled(settings.longest), max(texts))
    floats = BANDS * width * types + FEATURES * settings.size + STATES * model.config.hidden_size
    weights = head_weights(model, prepared.task, settings)
    return HeadLoad(weights, characters * (4 * floats + FIXED), characters * 6 * weights)


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
    sent = _sent_bytes(model, recipe, _width(recipe.model.base, device), ranks, passes)
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


def predict_memory(
    model: CausalLM, recipe: Config, device: torch.device, tokens: int, head: HeadLoad | None = None
) -> Memory:
    """Predict the peak memory of a step on one device.

    Args:
        model: the model on the meta device.
        recipe: the recipe.
        device: the device that trains.
        tokens: the number of tokens in the largest part of a step.
        head: the cost of the span head; None if the answer is written.
    """
    base, width = recipe.model.base, _width(recipe.model.base, device)
    linear = [module for _, module in linear_modules(model)]
    weights = sum(module.weight.numel() for module in linear)
    others = sum(parameter.numel() for parameter in model.parameters()) - weights
    if head and not recipe.train.masked_epochs:
        others -= own_output_weights(model)  # the output layer is on the CPU if only spans are read
    if parking(recipe, device) and own_output_weights(model):
        others -= model.get_input_embeddings().weight.numel()
    scales = 4 * sum(module.out_features for module in linear) if base in ("fp8", "int8") else 0
    adapters = adapter_weights(model, recipe.lora)
    of_head = head.weights if head else 0
    copies = 4 if recipe.lora.full and width == 4 else 8  # gradient, and a weight in fp32 unless the base has it
    average = 4 if recipe.train.average is not None else 0
    text = model.config
    working = 2 * (8 * text.hidden_size + 4 * text.intermediate_size) * width  # of the layer that is being recomputed
    positions = HEAD_CHUNK if recipe.train.pack == "shared" else tokens
    of_tokens = positions * text.vocab_size * (width + 8)
    of_spans = max(head.bytes * tokens, of_tokens if recipe.train.masked_epochs else 0) if head else 0
    return Memory(
        base_gib=(weights * BYTES.get(base, width) + scales + others * width) / GIB,
        adapters_gib=(copies * adapters + 8 * of_head) / GIB,
        optimizer_gib=(MOMENTS[recipe.train.optimizer] + average) * (adapters + of_head) / GIB,
        activations_gib=tokens * (_stored_bytes(model, recipe, device) + working) / GIB,
        logits_gib=(of_spans if head else of_tokens) / GIB,
    )


def of_a_rank(memory: Memory, model: CausalLM, recipe: Config, ranks: int) -> Memory:
    """Return the memory of one of `ranks` processes, given the memory of a single process.

    Each rank has a further buffer in which the gradients of all ranks are summed. If the base is divided, a rank holds
    its part of the base, and GATHERED whole layers at a time.
    """
    if ranks == 1:
        return memory
    buffer = 4 * adapter_weights(model, recipe.lora) / GIB
    base = memory.base_gib
    if recipe.distributed.strategy == "fsdp":
        layers = decoder_layers(model)
        layer_weights = sum(weight.numel() for weight in layers[0].parameters())
        share = len(layers) * layer_weights / sum(weight.numel() for weight in model.parameters())
        base *= 1 - share + share / ranks + GATHERED * share / len(layers)
    return replace(memory, base_gib=base, adapters_gib=memory.adapters_gib + buffer)


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


def part_tokens(prepared: Prepared, recipe: Config, device: torch.device) -> int:
    """Return the largest number of tokens in one forward pass of training.

    Where spans are read, it is not more than the tokens of the longest examples of a step, which may be less than a
    pack holds.
    """
    lengths = sorted(len(example.ids) for example in prepared.examples)
    longest = lengths[-1]
    if recipe.train.pack == "none":
        return recipe.train.micro_batch * longest
    budget = max(recipe.train.pack_tokens or prepared.pack_tokens(device.type), longest)
    return min(budget, sum(lengths[-config.filled(recipe.train.batch_examples) :])) if prepared.task.reads else budget


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


def _stored_bytes(model: CausalLM, recipe: Config, device: torch.device) -> int:
    """Return the bytes that all layers keep for the backward pass, per token."""
    layers, width = decoder_layers(model), _width(recipe.model.base, device)
    hidden: int = model.config.hidden_size
    if not compiling(recipe, device):
        return len(layers) * hidden * width * (1 if checkpointing(recipe, device) else EAGER)
    adapted, rank = coverage(model, recipe.lora).matched, 0 if recipe.lora.full else recipe.lora.rank or 0
    fused = [parts for layer in layers for parts in _fused_mlps(layer, recipe, adapted)]
    mlps = len(fused) * 2 * rank * width  # the products with LoRA's A, [tokens, rank]
    keep, dropped = keeping(recipe), 0
    if recipe.lora.dropout:  # PEFT computes adapters with dropout, and keeps copies of their inputs
        inputs = (module.in_features for layer in layers for name, module in _linear_of(layer) if name in adapted)
        rank, dropped = 0, sum(inputs) * width
    if keep == "none":
        return len(layers) * hidden * width + mlps + dropped
    for wide, _ in fused:
        mlps += kept_bytes(wide.out_features, keep, width)
    heads: int = model.config.num_attention_heads
    size = head_size(model.config)
    every, alone = recipe.model.base == "fp8", {id(part) for parts in fused for part in parts}
    outputs = 0
    for layer in layers:
        linear = _linear_of(layer)
        for name, module in linear:
            is_kept = keep in ("fp8", "most") or not is_wide(*module.weight.shape)
            is_ours = every or (name in adapted and not recipe.lora.dropout)
            if id(module) not in alone and is_ours and is_kept:
                # The output of the last module is not counted: the next layer keeps it as part of its hidden state.
                outputs += module.out_features if module is not linear[-1][1] else 0
                outputs += rank if name in adapted else 0
    attended = heads * (size * width + 4)  # the output of attention, and its log-sum-exp in fp32
    return len(layers) * (hidden * width + attended) + outputs * width + mlps + dropped


def _linear_of(layer: torch.nn.Module) -> list[tuple[str, torch.nn.Linear]]:
    """Return the linear modules of a layer, each with the last part of its name, such as `down_proj`."""
    named = layer.named_modules()
    return [(name.rpartition(".")[2], module) for name, module in named if isinstance(module, torch.nn.Linear)]


def _fused_mlps(
    layer: torch.nn.Module, recipe: Config, adapted: Sequence[str]
) -> list[tuple[torch.nn.Linear, torch.nn.Linear]]:
    """Return the MLPs of a layer that are computed as one operator, each as its `gate_up_proj` and `down_proj`."""
    if recipe.lora.full or recipe.lora.dropout or recipe.lora.dora or recipe.model.base in ("nf4", "int8"):
        return []
    if not {"gate_up_proj", "down_proj"} <= set(adapted):
        return []
    return [parts for module in layer.modules() if (parts := gated_parts(module)) is not None]


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
    elif device.type == "cpu" and _width(recipe.model.base, device) == 4:
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


@cache
def _width(base: config.Base, device: torch.device) -> int:
    """Return the bytes of a number in the type that the model computes in."""
    return 2 if pick_dtype(base, device) == torch.bfloat16 else 4


def available_bytes(device: torch.device) -> int:
    """Return the free memory of a device in bytes; 8 GiB if the system does not tell it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []:
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return 8 * GIB


def _rate(recipe: Config, device: torch.device) -> float:
    """Return the FLOP/s that a training step reaches on this device.

    The speed of matrix products is measured once; on a CPU this takes most of the time of `plan`.
    """
    dtype = torch.bfloat16 if _width(recipe.model.base, device) == 2 else torch.float32
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
