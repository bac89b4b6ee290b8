"""Full fine-tuning trains, saves and loads every weight of the layers and the last norm, and no other weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.fakes import tiny_model
from helpers.packs import FAMILIES, examples, packed
from helpers.reading import TASK, spans_settings, with_head
from spantune.core import ConfigError, ModelError, config
from spantune.core.config import Lora
from spantune.models import (
    adapter_weights,
    attach,
    load_adapter,
    load_trained,
    read_lora,
    reload_trained,
    require_full,
    require_head,
    save_trained,
    to_fp8,
)
from spantune.training import pack_loss

FULL = Lora(full=True)
WRITTEN = TASK.model_copy(update={"answer": "jsonl"})
NORM = "model.layers.0.input_layernorm.weight"


def trained(family: str = "phi3", dtype: torch.dtype = torch.float32, number: float = 0.01) -> Any:
    """Return a model in which `number` was added to every trained weight."""
    model, _ = attach(tiny_model(family, vocabulary=280).to(dtype), FULL)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(number)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_all_of_the_layers_and_the_last_norm_are_trained(family: str) -> None:
    model, found = attach(tiny_model(family, vocabulary=280), FULL)
    names = {name for name, weight in model.named_parameters() if weight.requires_grad}
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert frozen == {"model.embed_tokens.weight", "lm_head.weight"} & {name for name, _ in model.named_parameters()}
    assert "model.norm.weight" in names and "full fine-tuning" in str(found) and found.share == 1
    assert adapter_weights(model, FULL) == sum(dict(model.named_parameters())[name].numel() for name in names)
    pack_loss(model.train(), packed(examples()), torch.float32).backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_is_read_back(tmp_path: Path, dtype: torch.dtype) -> None:
    model = trained(dtype=dtype)
    save_trained(model, tmp_path)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    assert {path.name for path in tmp_path.iterdir()} == {"full.json", "full.safetensors"}
    stored = load_file(tmp_path / "full.safetensors")
    about = json.loads((tmp_path / "full.json").read_text())
    assert about["kind"] == "full fine-tuning" and about["weights"] == sum(w.numel() for w in stored.values())
    assert all(value.dtype == dtype for value in stored.values()) and not any("embed" in name for name in stored)
    resumed = trained(dtype=dtype, number=0.5)
    load_trained(resumed, tmp_path)
    assert any(weight.requires_grad for weight in resumed.parameters())
    fresh = load_adapter(tiny_model("phi3", vocabulary=280).to(dtype), tmp_path, merge=True)
    again = reload_trained(trained(dtype=dtype, number=0.5), tmp_path, WRITTEN, merge=True)  # its base has changed
    for made in (resumed, fresh, again):
        assert all(torch.equal(value, expected[name]) for name, value in made.state_dict().items())
    assert not any(weight.requires_grad for made in (fresh, again) for weight in made.parameters())
    assert read_lora(tmp_path) == FULL


def test_weights_that_were_kept_in_memory_are_saved_instead(tmp_path: Path) -> None:
    model = trained()
    kept = {name: torch.full_like(value, 7) for name, value in model.named_parameters()}
    save_trained(model, tmp_path, kept)
    assert all((value == 7).all() for value in load_file(tmp_path / "full.safetensors").values())


def test_a_head_on_the_model_is_neither_frozen_nor_saved_with_its_weights(tmp_path: Path) -> None:
    model = with_head(trained(), spans_settings())
    save_trained(model, tmp_path)
    assert not any("span_head" in name for name in load_file(tmp_path / "full.safetensors"))
    assert adapter_weights(model, FULL) == adapter_weights(trained(), FULL)
    load_trained(model, tmp_path)
    assert all(weight.requires_grad for weight in require_head(model).parameters())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda stored: stored.pop(NORM), rf"of another model .*in one and not in the other: {NORM}\)"),
        (lambda stored: stored.update({NORM: torch.ones(3)}), rf"size mismatch: {NORM} is \[3\] and .* \[32\]\)"),
        (lambda stored: stored[NORM].fill_(float("nan")), rf"hold NaN or infinity: {NORM}; restore"),
    ],
)
def test_a_weight_that_is_not_as_expected_is_named(tmp_path: Path, change: Any, said: str) -> None:
    save_trained(trained(), tmp_path)
    stored = load_file(tmp_path / "full.safetensors")
    change(stored)
    save_file(stored, tmp_path / "full.safetensors")
    with pytest.raises(ModelError, match=said):
        load_adapter(tiny_model("phi3", vocabulary=280), tmp_path)
    with pytest.raises(ModelError, match=said):
        load_trained(trained(), tmp_path)


def test_a_damaged_file_and_the_other_kind_are_one_error(tmp_path: Path) -> None:
    adapted, _ = attach(tiny_model("phi3", vocabulary=280), Lora(rank=2, alpha=4))
    for name, model in (("full", trained()), ("lora", adapted)):
        (tmp_path / name).mkdir()
        save_trained(model, tmp_path / name)
    with pytest.raises(ModelError, match="holds weights of LoRA, expected those of full fine-tuning; restore it"):
        load_trained(trained(), tmp_path / "lora")
    with pytest.raises(ModelError, match="holds weights of full fine-tuning, expected those of LoRA; restore it"):
        load_trained(adapted, tmp_path / "full")
    (tmp_path / "full" / "full.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match=r"the trained weights are damaged: full\.safetensors cannot be read"):
        load_adapter(tiny_model("phi3", vocabulary=280), tmp_path / "full")


def test_a_quantised_base_and_a_large_model_are_refused() -> None:
    base = tiny_model("llama", vocabulary=280)
    with pytest.raises(ModelError, match=r"those of the base model are quantised; set model\.base=auto, bf16 or fp32"):
        attach(to_fp8(base, torch.device("cpu"), base.lm_head), FULL)
    for name in config.QUANTIZED:
        with pytest.raises(ConfigError, match=rf"those of model\.base={name} are quantised"):
            require_full(FULL, name, 10)
    with pytest.raises(
        ConfigError, match=r"up to 1 B weights, and this one has 14\.7 B: .* about 219 GiB; train a LoRA"
    ):
        require_full(FULL, "bf16", 14_700_000_000)
    require_full(FULL, "bf16", 268_098_176)
    require_full(Lora(), "fp8", 14_700_000_000)
