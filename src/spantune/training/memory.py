"""Peak memory of a recipe, predicted from the model's configuration before training.

The memory of weights is exact. The memory of activations is counted from the tensors that compiled layers keep, and is
within 10 % of the peaks measured on Phi-4's shape; for layers that are not compiled it is a rule of thumb.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch

from spantune.core import Config, config
from spantune.encoding import SpanExample
from spantune.models import (
    CausalLM,
    adapter_weights,
    coverage,
    decoder_layers,
    gated_parts,
    head_size,
    head_weights,
    is_wide,
    kept_bytes,
    linear_modules,
    own_output_weights,
    pick_dtype,
)
from spantune.training.layers import checkpointing, compiling, keeping, parking
from spantune.training.loss import HEAD_CHUNK
from spantune.training.preparation import Prepared

GIB = 2**30
BYTES = {"fp8": 1.0, "int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
"""The bytes of a weight by the type of the base.

NF4 has a scale of 8 bits for each block of 64 weights, and an fp32 number for each 256 scales."""
MOMENTS = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}
"""The bytes of the optimizer's moments for each trained weight."""
EAGER = 16
"""The hidden states that a layer keeps per token if it is neither compiled nor recomputed; a rule of thumb."""
BANDS, FEATURES, STATES, FIXED = 6, 8, 3, 5000
"""The measured peak memory of a span head per character.

It is BANDS times the logits of the character's spans, FEATURES times its features and STATES times its hidden state,
all in fp32, and FIXED bytes."""
GATHERED = 2
"""The number of layers of a divided base that are whole on a rank at the same time."""


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
    base, width = recipe.model.base, number_bytes(recipe.model.base, device)
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


@cache
def number_bytes(base: config.Base, device: torch.device) -> int:
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


def _stored_bytes(model: CausalLM, recipe: Config, device: torch.device) -> int:
    """Return the bytes that all layers keep for the backward pass, per token."""
    layers, width = decoder_layers(model), number_bytes(recipe.model.base, device)
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
