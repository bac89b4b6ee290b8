"""How the decoder layers run while a recipe trains: compiled, recomputed, replayed as graphs, divided over GPUs."""

from __future__ import annotations

import logging

import torch

from spantune.core import Config, config
from spantune.models import Loaded, compile_layers, divide_layers, graph_limit, graph_packs, park_embedding
from spantune.training.preparation import Prepared
from spantune.training.ranks import Ranks

log = logging.getLogger(__name__)


def arrange_layers(loaded: Loaded, prepared: Prepared, tokens: int, ranks: Ranks) -> None:
    """Compile or recompute the layers, replay packs as graphs, and park what needs no GPU, as recipe and device ask.

    Args:
        loaded: the model, with what is trained of it.
        prepared: the run's recipe and examples.
        tokens: the most of a pack; packs become CUDA graphs where recipe and device allow it, and they are short.
        ranks: the processes that train together.
    """
    model, device, recipe = loaded.model, loaded.device, prepared.recipe
    if parking(recipe, device):
        park_embedding(model)
    if compiling(recipe, device):
        compile_layers(model, keeping(recipe))
        model.enable_input_require_grads()  # the first layer is then compiled as the others are
    elif checkpointing(recipe, device):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    usual = usual_tokens(prepared, tokens, ranks.size)
    if graphing(recipe, device) and usual <= graph_limit(model):
        graph_packs(model, tokens, usual)
    if ranks.in_lockstep:
        count = divide_layers(model, device, ranks.size)
        log.info("%s weights of the layers are divided over %d ranks", f"{count:,}", ranks.size)


def compiling(recipe: Config, device: torch.device) -> bool:
    """Whether the decoder layers are compiled for training; with bitsandbytes only where the recipe says so."""
    settings = recipe.train
    able = device.type == "cuda" and settings.pack == "shared" and recipe.model.base not in ("nf4", "int8")
    return settings.compile == "on" or (settings.compile == "auto" and able)


def keeping(recipe: Config) -> config.Keep:
    """What compiled layers keep; `some` while it is not decided (see `plan.settled`)."""
    keep = recipe.train.keep
    return "some" if keep == "auto" else keep


def checkpointing(recipe: Config, device: torch.device) -> bool:
    """Whether whole layers are computed again in the backward pass."""
    setting = recipe.train.gradient_checkpointing
    return not compiling(recipe, device) and (setting == "on" or (setting == "auto" and device.type == "cuda"))


def parking(recipe: Config, device: torch.device) -> bool:
    """Whether the table of token embeddings stays in the host's memory: where the base is quantised to save memory."""
    return device.type == "cuda" and recipe.model.base in config.QUANTIZED and recipe.distributed.strategy != "fsdp"


def graphing(recipe: Config, device: torch.device) -> bool:
    """Whether the passes over a pack can become CUDA graphs."""
    able = device.type == "cuda" and recipe.train.pack == "shared" and recipe.model.base not in ("nf4", "int8")
    able = able and recipe.distributed.strategy != "fsdp" and not checkpointing(recipe, device)
    return able and recipe.train.graphs == "auto"


def usual_tokens(prepared: Prepared, budget: int, ranks: int = 1) -> float:
    """Return the tokens of a pack of a usual step on one of `ranks` processes, where `budget` is the most."""
    shared = len(prepared.prefix)
    own = sum(len(example.ids) - shared for example in prepared.examples) / len(prepared.examples)
    return min(budget, shared + own * config.filled(prepared.recipe.train.batch_examples) / ranks)
