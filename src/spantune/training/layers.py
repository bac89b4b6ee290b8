"""How the decoder layers run in training: compiled, recomputed, replayed as CUDA graphs, or divided over GPUs."""

from __future__ import annotations

import logging

import torch

from spantune.core import Config, config
from spantune.models import Loaded, compile_layers, divide_layers, graph_limit, graph_packs, park_embedding
from spantune.training.preparation import Prepared
from spantune.training.ranks import Ranks

log = logging.getLogger(__name__)


def arrange_layers(loaded: Loaded, prepared: Prepared, tokens: int, ranks: Ranks) -> None:
    """Set up the layers of a model for training, as recipe and device need it.

    The layers are compiled or recomputed, short packs are replayed as CUDA graphs, the token embeddings stay in the
    host's memory, and the layers are divided over the ranks, each where recipe and device need it.

    Args:
        loaded: the model, with its adapter and head.
        prepared: the run's recipe and examples.
        tokens: the maximum number of tokens in a pack.
        ranks: the processes that train together.
    """
    model, device, recipe = loaded.model, loaded.device, prepared.recipe
    if parking(recipe, device):
        park_embedding(model)
    if compiling(recipe, device):
        compile_layers(model, keeping(recipe))
        model.enable_input_require_grads()  # so that the compiled code of the other layers also serves the first one
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
    """Whether the decoder layers are compiled for training; a base of bitsandbytes only with `train.compile=on`."""
    settings = recipe.train
    able = device.type == "cuda" and settings.pack == "shared" and recipe.model.base not in ("nf4", "int8")
    return settings.compile == "on" or (settings.compile == "auto" and able)


def keeping(recipe: Config) -> config.Keep:
    """Return what compiled layers keep for the backward pass; `some` as long as it is `auto` (see `plan.settled`)."""
    keep = recipe.train.keep
    return "some" if keep == "auto" else keep


def checkpointing(recipe: Config, device: torch.device) -> bool:
    """Whether whole layers are recomputed in the backward pass."""
    setting = recipe.train.gradient_checkpointing
    return not compiling(recipe, device) and (setting == "on" or (setting == "auto" and device.type == "cuda"))


def parking(recipe: Config, device: torch.device) -> bool:
    """Whether the token embeddings stay in the host's memory, which is so with a base that is quantised."""
    return device.type == "cuda" and recipe.model.base in config.QUANTIZED and recipe.distributed.strategy != "fsdp"


def graphing(recipe: Config, device: torch.device) -> bool:
    """Whether the forward and backward passes of a pack can be replayed as CUDA graphs."""
    able = device.type == "cuda" and recipe.train.pack == "shared" and recipe.model.base not in ("nf4", "int8")
    able = able and recipe.distributed.strategy != "fsdp" and not checkpointing(recipe, device)
    return able and recipe.train.graphs == "auto"


def usual_tokens(prepared: Prepared, budget: int, ranks: int = 1) -> float:
    """Return the tokens of a pack in a step of mean size on one of `ranks` processes, at most `budget`."""
    shared = len(prepared.prefix)
    own = sum(len(example.ids) - shared for example in prepared.examples) / len(prepared.examples)
    return min(budget, shared + own * config.filled(prepared.recipe.train.batch_examples) / ranks)
