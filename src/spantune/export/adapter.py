"""A plain LoRA adapter: one rank, `lora_alpha` equal to the rank, and every other scale folded into the weights.

Engines do not honour all settings of PEFT. Some read only alpha and rank; for a run with rsLoRA or with scales for
single modules they compute something else, without a warning. A plain adapter can be read in one way only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spantune.core import ConfigError, foreign, to_json
from spantune.export.card import write_card
from spantune.export.merged import copy_terms, load_plain, merge, ready
from spantune.export.source import Source
from spantune.export.spans import write_reader
from spantune.export.verify import (
    Expected,
    Verified,
    Written,
    extract_all,
    extractor_of,
    largest_difference,
    logits_of,
    require_close,
    require_same,
    sequences_of,
)
from spantune.models import (
    CausalLM,
    ModelConfig,
    PlainLora,
    fold_lora,
    head_size,
    kv_heads,
    public_name,
)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write_adapter(source: Source, out: Path) -> Written:
    """Write the adapter of a run into the folder `out`, and compare it with the run.

    Raises:
        ConfigError: the run has no adapter, or the name of its base model is not known.
        ModelError: the base or the adapter cannot be loaded; Differs: the export computes something else than the run.
        OSError, SafetensorError: the files cannot be written.
    """
    name = base_name(source)
    lora = fold_lora(source.adapter)
    if source.settings.split:
        lora = split_fused(lora, source.files.config)
    save_adapter(lora, name, out)
    source.files.tokenizer.save_pretrained(str(out))
    source.task.save(out)
    copy_terms(source, out)
    if source.task.reads:
        write_reader(source, out)
    write_card(source, "adapter", out, name)
    if not source.documents:
        return Written()
    return Written(_compare(source, out))


def base_name(source: Source) -> str:
    """Return the name of the base model that is written into the adapter.

    Raises:
        ConfigError: the run has no adapter, no name is known, or the given name is not of the form OWNER/NAME.
    """
    if source.recipe.lora.full:
        raise ConfigError(
            f"{source.folder.path} was trained in full (lora.full=true) and has no adapter; export it with --to merged"
        )
    given = source.settings.base_name
    if given is not None and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", given):
        raise ConfigError(f"--base-name {given}: expected the name of a model on a hub, OWNER/NAME")
    if source.settings.split and given is None:
        raise ConfigError(
            "--split makes an adapter for a Llama-shaped copy of the base model; give the name of that copy with "
            "--base-name OWNER/NAME"
        )
    name = given or public_name(source.recipe.model.source)
    if not name:
        raise ConfigError(
            f"{source.folder.path} was trained on a model in a local folder, whose path means nothing elsewhere; give "
            "the model's name on a hub with --base-name OWNER/NAME"
        )
    return name


def save_adapter(lora: PlainLora, base: str, out: Path) -> None:
    """Write an adapter in PEFT's layout; `base` is the name of the base model.

    Raises:
        OSError, SafetensorError: the files cannot be written.
    """
    from peft import LoraConfig, TaskType
    from safetensors.torch import save_file

    settings = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        inference_mode=True,
        r=lora.rank,
        lora_alpha=lora.rank,
        target_modules=lora.targets,
        base_model_name_or_path=base,
    ).to_dict()
    settings["target_modules"] = lora.targets  # PEFT makes a set of them, which has no fixed order
    (out / CONFIG).write_text(to_json(settings, indent=2) + "\n", encoding="utf-8")
    weights: dict[str, Tensor] = {}
    for name, (down, up) in lora.halves.items():
        weights[f"base_model.model.{name}.lora_A.weight"] = down.contiguous()
        weights[f"base_model.model.{name}.lora_B.weight"] = up.contiguous()
    save_file(weights, out / WEIGHTS, metadata={"format": "pt"})


# -- fused projections -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fused:
    """The names of the parts of a fused projection, and the number of output rows of each part."""

    parts: tuple[str, ...]
    rows: tuple[int, ...]


def fused_projections(config: ModelConfig) -> dict[str, Fused]:
    """Return the fused projections of a model of the type phi3, by their names.

    Raises:
        ConfigError: the model is of another type, or has scaled or partial rotary positions, which Llama's layout
            lacks.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    plain = (rope.get("rope_type", "default"), rope.get("partial_rotary_factor", 1.0)) == ("default", 1.0)
    if config.model_type != "phi3" or not plain:
        raise ConfigError(
            f"--split is for models of type phi3 with plain rotary positions, such as Phi-4, and this is "
            f"{config.model_type}{'' if plain else ' with scaled or partial ones'}; leave it out"
        )
    size = head_size(config)
    queries, keys = config.num_attention_heads * size, kv_heads(config) * size
    return {
        "qkv_proj": Fused(("q_proj", "k_proj", "v_proj"), (queries, keys, keys)),
        "gate_up_proj": Fused(("gate_proj", "up_proj"), (config.intermediate_size,) * 2),
    }


def split_fused(lora: PlainLora, config: ModelConfig) -> PlainLora:
    """Give each part of a fused projection its own adapter, which computes exactly the part's rows.

    The parts share the weights `down`; each part has its own rows of `up`.

    Raises:
        ConfigError: as `fused_projections`.
    """
    fused = fused_projections(config)
    halves: dict[str, tuple[Tensor, Tensor]] = {}
    for name, (down, up) in lora.halves.items():
        parent, _, leaf = name.rpartition(".")
        if leaf not in fused:
            halves[name] = (down, up)
            continue
        for part, rows in zip(fused[leaf].parts, torch.split(up, list(fused[leaf].rows)), strict=True):
            halves[f"{parent}.{part}"] = (down.clone(), rows)
    return PlainLora(lora.rank, halves)


def llama_copy(model: CausalLM) -> CausalLM:
    """Return a copy of a phi3 model in Llama's layout, with separate projections and the same weights.

    Raises:
        ConfigError: as `fused_projections`.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config, fused = model.config, fused_projections(model.config)
    names: tuple[str, ...] = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    )
    names += ("num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "rope_parameters", "hidden_act")
    names += ("tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")
    state: dict[str, Tensor] = {}
    for key, weight in model.state_dict().items():
        parent, _, leaf = key.removesuffix(".weight").rpartition(".")
        if leaf not in fused:
            state[key] = weight
            continue
        for part, rows in zip(fused[leaf].parts, torch.split(weight, list(fused[leaf].rows)), strict=True):
            state[f"{parent}.{part}.weight"] = rows
    settings = LlamaConfig(**{name: getattr(config, name) for name in names}, head_dim=head_size(config))
    with torch.device("meta"):
        copy = LlamaForCausalLM(settings)
    copy.load_state_dict(state, assign=True)
    copy.model.rotary_emb = type(copy.model.rotary_emb)(settings).to(model.device)  # its buffers are not in `state`
    copied: CausalLM = copy.eval()
    return copied


# -- comparison ------------------------------------------------------------------------------------------------------


def _compare(source: Source, out: Path) -> Verified:
    """Load the adapter with PEFT alone, and compare it with the run.

    Raises:
        Differs: logits or entities differ from the run's.
    """
    from peft import PeftModel

    sequences = sequences_of(source.encoder, source.documents)
    expected = _expected(source, sequences)
    base = load_plain(source, source.files.folder)
    if source.settings.split:
        base = llama_copy(base)
    with foreign(out, "the exported adapter cannot be loaded by PEFT", "report it"):
        adapted = PeftModel.from_pretrained(base, str(out))
    difference = largest_difference(expected.logits, logits_of(adapted, sequences))
    require_close(difference, "the logits of the exported adapter")
    model: CausalLM = adapted.merge_and_unload()
    found = extract_all(extractor_of(source, ready(source, model, out)), source.documents, "export")
    return Verified(len(source.documents), require_same(expected.extractions, found), difference)


def _expected(source: Source, sequences: Sequence[Sequence[int]]) -> Expected:
    merged = merge(source, sequences)
    model = ready(source, merged.model, source.adapter)
    return Expected(merged.logits, extract_all(extractor_of(source, model), source.documents, "run"))
