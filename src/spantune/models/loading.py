"""Loads a model and its tokenizer: device, number type, and checks against the card of a known model.

Only safetensors are read, and no code of a model folder is run. On a CPU the type of the frozen base is bf16 if bf16
matrix products are faster in a short test, and else fp32. A quantised base is made from a bf16 checkpoint layer by
layer, so that a GPU never holds both.
"""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from spantune.core import ConfigError, ModelError, config, foreign, require_extra
from spantune.encoding import Tokenizer, render_chat, special_ids
from spantune.models.attention import NAME, check_attention
from spantune.models.bundled import BUNDLED
from spantune.models.direct import read_model, read_tokenizer
from spantune.models.hashes import read_once
from spantune.models.interfaces import CausalLM, ModelConfig
from spantune.models.kernels.lora_linear import has_fp8, to_fp8
from spantune.models.sources import public_name, resolve, weight_files
from spantune.models.weights import require_complete, require_finite_files

# The special tokens of microsoft/phi-4 since the fix of its tokenizer; older uploads have EOS = PAD.
PHI4_IDS = {
    "<|endoftext|>": 100257,
    "<|im_start|>": 100264,
    "<|im_end|>": 100265,
    "<|im_sep|>": 100266,
}
PHI4_PROMPT = (
    "<|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>U<|im_end|><|im_start|>assistant<|im_sep|>"
)
PHI4_ROPE_BASE = 250000.0

SIZES = {
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "num_hidden_layers": 1 << 12,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "vocab_size": 1 << 28,
    "max_position_embeddings": 1 << 40,
}
"""The sizes in config.json that spantune uses; a value above the one given here means that the file is damaged."""


@dataclass(frozen=True)
class Loaded:
    """A causal LM in memory with its fast tokenizer, the folder that it was read from, its device and its type."""

    model: CausalLM
    tokenizer: Tokenizer
    path: Path
    device: torch.device
    dtype: torch.dtype
    quantized: bool = False
    """Whether the base is quantised, so that adapters cannot be merged into its weights."""


def pick_device(name: str) -> torch.device:
    """Return the device that a recipe names (`auto`, `cpu` or `cuda`).

    If several processes train together, it is the GPU of this process.

    Raises:
        ConfigError: `name` is `cuda`, and there is no CUDA GPU.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError(
            "model.device=cuda, but torch sees no CUDA GPU here; set model.device=auto, or install a CUDA torch"
        )
    if not available or name == "cpu":
        return torch.device("cpu")
    has_ranks = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.device("cuda", torch.cuda.current_device()) if has_ranks else torch.device("cuda")


def pick_dtype(base: str, device: torch.device) -> torch.dtype:
    """Return the type that a model with this `base` computes in.

    It is the one that `base` names, bf16 or fp32. Otherwise it is bf16 on CUDA, and on a CPU if bf16 is measured to be
    over 1.2 times as fast as fp32.
    """
    if base in ("bf16", "fp32"):
        return torch.bfloat16 if base == "bf16" else torch.float32
    faster = device.type == "cuda" or _bf16_speedup() > 1.2
    return torch.bfloat16 if faster else torch.float32


def load_tokenizer(folder: Path, source: str = "") -> Tokenizer:
    """Load the fast tokenizer of a model folder.

    Args:
        folder: the model folder.
        source: the model source. If a `bundled:` model was downloaded from a hub, its tokenizer without a chat template
            gets that of the bundled model.

    Raises:
        ModelError: there is no tokenizer, or only a slow one.
    """
    from transformers import AutoTokenizer

    with foreign(folder, "no tokenizer can be read here", "restore tokenizer.json and tokenizer_config.json"):
        direct = read_tokenizer(folder)
        tokenizer: Tokenizer = (
            AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False) if direct is None else direct
        )
    if not tokenizer.is_fast:
        raise ModelError(f"{folder}: only a slow tokenizer is here; the grammar and the offsets need tokenizer.json")
    if not tokenizer.chat_template and source.startswith("bundled:"):
        tokenizer.chat_template = BUNDLED[source.removeprefix("bundled:")].chat_template
    return tokenizer


def load_config_of(folder: Path) -> ModelConfig:
    """Load the transformers configuration of a model folder.

    Raises:
        ModelError: config.json cannot be read, or holds a size that no model has.
    """
    from transformers import AutoConfig

    with foreign(folder, "config.json cannot be read", "restore it, or take another model"):
        json.loads((folder / "config.json").read_text(encoding="utf-8"), parse_constant=_number)
        loaded: ModelConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        text: ModelConfig = loaded.get_text_config()
        sizes = {name: getattr(text, name, None) for name in SIZES}
    for name, size in sizes.items():
        if size is not None and (type(size) is not int or not 0 < size <= SIZES[name]):
            raise ModelError(
                f"{folder}: config.json says {name}={size!r}, expected a whole number from 1 to {SIZES[name]}; "
                "restore it, or take another model"
            )
    return loaded


def _number(constant: str) -> float:
    """Return the number of a constant in JSON; Infinity occurs in configurations of models, NaN does not.

    Raises:
        ValueError: the constant is NaN.
    """
    if constant == "NaN":
        raise ValueError("it holds NaN")
    return float(constant)


@dataclass(frozen=True)
class ModelFiles:
    """A model without its weights: its local folder, its configuration and its fast tokenizer."""

    folder: Path
    config: ModelConfig
    tokenizer: Tokenizer


def read_files(source: str, tokenizer_folder: Path | None = None) -> ModelFiles:
    """Resolve a model source, and read its configuration and tokenizer.

    Args:
        source: the model source, such as `hf:OWNER/NAME` or a folder.
        tokenizer_folder: the folder of another tokenizer, which is read instead of the model's own.

    Raises:
        ModelError: the source cannot be resolved, its configuration or tokenizer cannot be read, or the tokenizer has
            ids for which the model has no embedding.
    """
    folder = resolve(source)
    files = ModelFiles(folder, load_config_of(folder), load_tokenizer(tokenizer_folder or folder, source))
    _require_ids(files, tokenizer_folder or folder)
    return files


def _require_ids(files: ModelFiles, tokenizer_folder: Path) -> None:
    """Check that the model has an embedding for EOS, PAD and every token of which an encoded text can consist.

    Special tokens never occur in an encoded text, so their ids may be beyond the vocabulary (Gemma's image tokens are).

    Raises:
        ModelError: a token has no embedding.
    """
    tokenizer, size = files.tokenizer, files.config.get_text_config().vocab_size
    used = {"EOS": tokenizer.eos_token_id, "PAD": tokenizer.pad_token_id}
    beyond = {name: index for name, index in used.items() if index is not None and not 0 <= index < size}
    with foreign(tokenizer_folder, "the tokenizer's vocabulary cannot be read", "restore tokenizer.json"):
        # The result is remembered, since listing the vocabulary of a large tokenizer takes a fifth of a second.
        names = ["tokenizer.json"] if (tokenizer_folder / "tokenizer.json").is_file() else []
        highest = read_once(tokenizer_folder, names, "vocabulary", lambda _: str(max(tokenizer.get_vocab().values())))
        if not all(index.isdecimal() and int(index) < size for index in highest.values()) or not names:
            special = special_ids(tokenizer)
            tokens = tokenizer.get_vocab().items()
            beyond |= {token: index for token, index in tokens if index >= size and index not in special}
    if beyond:
        token, index = max(beyond.items(), key=lambda pair: pair[1])
        raise ModelError(
            f"{tokenizer_folder}: {len(beyond)} tokens, such as {token!r} with the id {index}, are beyond the model's "
            f"vocabulary of {size}; take the tokenizer that the model came with"
        )


def load(
    settings: config.Model,
    files: ModelFiles | None = None,
    *,
    tokenizer_folder: Path | None = None,
    change: Callable[[CausalLM], CausalLM] | None = None,
) -> Loaded:
    """Load the base model of a recipe with its tokenizer.

    Args:
        settings: the section `model` of the recipe.
        files: the files of the model that were read before; None to resolve and read them here.
        tokenizer_folder: the folder of another tokenizer, which is used instead of the model's own.
        change: with an FP8 base only, a function that changes the model before its weights are quantised.

    Raises:
        ModelError: the source cannot be resolved, its weights are incomplete or damaged, its attention is not
            supported, or the model is not what its card says.
        ConfigError: the recipe names a GPU and there is none, or the device cannot compute with the base.
    """
    device = pick_device(settings.device)
    require_base(settings.base, device)
    dtype = pick_dtype(settings.base, device)
    files = files or read_files(settings.source, tokenizer_folder)
    check_attention(files.config)
    if settings.verify:
        problems = card_problems(files.config, files.tokenizer)
        if problems:
            raise ModelError(f"{files.folder}: {'; '.join(problems)}")
    require_finite_files(files.folder, weight_files(files.folder))
    model = _weights(files, settings, device, dtype, change)
    model.set_attn_implementation(NAME)
    model.config.use_cache = False
    # PEFT writes this name into adapters, which are given to others, so it must not be a path on this machine.
    model.name_or_path = model.config._name_or_path = public_name(settings.source)
    return Loaded(model.eval(), files.tokenizer, files.folder, device, dtype, settings.base in config.QUANTIZED)


def require_base(base: config.Base, device: torch.device) -> None:
    """Check that `device` can compute with a base of this type.

    Raises:
        ConfigError: the device cannot, or a package is missing.
    """
    if base == "fp8" and device.type == "cuda" and not has_fp8(device):
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        raise ConfigError(
            f"model.base=fp8 needs a GPU of compute capability 9.0 (Hopper) or more, and {name} has "
            f"{capability[0]}.{capability[1]}; set model.base=nf4 or bf16"
        )
    if base in ("nf4", "int8"):
        require_extra(f"model.base={base}", "bitsandbytes", ["bitsandbytes"])


def _weights(
    files: ModelFiles,
    settings: config.Model,
    device: torch.device,
    dtype: torch.dtype,
    change: Callable[[CausalLM], CausalLM] | None,
) -> CausalLM:
    """Load the model with its weights in the type of `settings.base`.

    Raises:
        ModelError: weights are missing, of another shape or without a place in the model, or cannot be read.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    base = settings.base
    if base not in config.QUANTIZED and device.type == "cpu":
        with foreign(files.folder, "the model cannot be loaded", "use another"):
            if (direct := read_model(files.folder, files.config, dtype)) is not None:
                return direct
    options: dict[str, object] = {"device_map": {"": "cpu" if base == "fp8" else device}}
    if base in ("nf4", "int8"):
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=base == "nf4",
            load_in_8bit=base == "int8",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
        )
    # Loaded with sdpa at first: transformers then refuses attention sinks, soft caps and ALiBi, which spantune's
    # attention would ignore.
    with foreign(files.folder, "the model cannot be loaded", "use another"), _without_report():
        model, info = AutoModelForCausalLM.from_pretrained(
            files.folder,
            config=copy.deepcopy(files.config),
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # require_complete refuses them, and names the weights
            output_loading_info=True,
            **options,
        )
    require_complete(files.folder, info, extra_allowed=not settings.verify)
    if base == "nf4" and device.type == "cpu":
        _keep_differentiable(model)
    if base == "fp8":
        changed = model if change is None else change(model)
        head = changed.get_output_embeddings()
        assert isinstance(changed, torch.nn.Module)
        model = to_fp8(changed, device, head)
    loaded: CausalLM = model
    return loaded


@contextlib.contextmanager
def _without_report() -> Iterator[None]:
    """Switch off the table in which transformers lists missing weights, since these raise an error here."""
    from transformers.utils import logging as messages

    level = messages.get_verbosity()
    messages.set_verbosity_error()
    try:
        yield
    finally:
        messages.set_verbosity(level)


def _keep_differentiable(model: CausalLM) -> None:
    """Switch off bitsandbytes' fast CPU layout of NF4 layers.

    This layout has no gradient, and a layer keeps it after an extraction, so that it could not be trained further.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def is_phi4(model_config: ModelConfig) -> bool:
    """Whether a model has the shape of Phi-4 14B."""
    return (model_config.model_type, model_config.hidden_size, model_config.vocab_size) == ("phi3", 5120, 100352)


def card_problems(model_config: ModelConfig, tokenizer: Tokenizer) -> list[str]:
    """Return the contradictions between a model and the card of its kind, in sentences with a remedy."""
    problems = []
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id == tokenizer.pad_token_id:
        problems.append(
            f"EOS and PAD are one token ({tokenizer.eos_token!r}), so that training can hide the stop and the model "
            "never ends; set pad_token to an unused special token in tokenizer_config.json"
        )
    if not is_phi4(model_config):
        return problems
    for token, index in PHI4_IDS.items():
        if tokenizer.convert_tokens_to_ids(token) != index:
            problems.append(f"Phi-4's {token} must have id {index}; take the tokenizer of the current upload")
    if tokenizer.eos_token_id != PHI4_IDS["<|im_end|>"]:
        problems.append(
            f"Phi-4's EOS must be <|im_end|> (100265), found {tokenizer.eos_token!r}: an upload from before the "
            "tokenizer fix; take the current one"
        )
    rope = getattr(model_config, "rope_parameters", None) or {}
    if rope.get("rope_theta") != PHI4_ROPE_BASE:
        problems.append(f"Phi-4's RoPE base must be 250000, found {rope.get('rope_theta')}; mend config.json")
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    if render_chat(tokenizer, chat, add_generation_prompt=True) != PHI4_PROMPT:
        problems.append("the chat template is not Phi-4's; take chat_template.jinja of the current upload")
    return problems


def _bf16_speedup(size: int = 768, repeats: int = 5) -> float:
    """Measure how many times faster bf16 matrix products are than fp32 ones on this CPU; takes about 50 ms."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            left @ right
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.float32] / seconds[torch.bfloat16]
