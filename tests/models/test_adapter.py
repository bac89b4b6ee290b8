"""An adapter is loaded with every setting and weight that spantune wrote, or refused with the names of the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from helpers.fakes import tiny_model
from helpers.packs import adapted
from spantune.core import ModelError
from spantune.core.config import Lora
from spantune.models import attach, load_adapter, load_trained

ALL: dict[str, Any] = {"target_modules": ["qkv_proj", "o_proj", "down_proj", "gate_up_proj"]}
FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved adapter of rank 4 for the tiny Phi-3 model."""
    adapted("phi3").save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the weights of an adapter."""
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def base() -> Any:
    return tiny_model("phi3", vocabulary=280)


CHANGES: list[tuple[Callable[[dict[str, torch.Tensor]], object], str]] = [
    (lambda tensors: tensors.pop(FIRST), rf"for another model .*in one and not in the other: {FIRST}\)"),
    (
        lambda tensors: [tensors.pop(name) for name in sorted(tensors)[:5]],
        r"in one and not in the other: .*lora_A.weight, .*lora_B.weight, .* and 2 more\)",
    ),
    (lambda tensors: tensors.update({"x.lora_A.weight": torch.ones(4, 2)}), r"in the other: x\.lora_A\.weight\)"),
    (
        lambda tensors: tensors.update({FIRST: torch.ones(4, 47)}),
        rf"size mismatch: {FIRST} is \[4, 47\] and the model's is \[4, 48\]\)",
    ),
    (lambda tensors: tensors[FIRST].fill_(float("nan")), rf"hold NaN or infinity: {FIRST}; restore"),
    (
        lambda tensors: [w.fill_(float("inf")) for w in tensors.values()],
        r"hold NaN or infinity: .* and 13 more; restore",
    ),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_a_weight_that_is_not_as_expected_is_named(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], said: str
) -> None:
    edit(folder, change)
    with pytest.raises(ModelError, match=said) as loading:
        load_adapter(base(), folder)
    model, _ = attach(base(), Lora(rank=4, alpha=8))
    with pytest.raises(ModelError, match=said) as resuming:
        load_trained(model, folder)
    assert str(loading.value) == str(resuming.value) and str(folder) in str(loading.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "XXX"}, "adapter_config.json, peft_type: "),
        ({"peft_type": "IA3"}, "adapter_config.json, peft_type: "),
        ({"r": "4"}, "adapter_config.json, r: Input should be a valid integer"),
        ({"r": -4}, "adapter_config.json, r: Input should be greater than 0"),
        ({"r": 10**12}, "a rank of 1000000000000, adapter_model.safetensors has 4"),
        ({"rank_pattern": {"down_proj": 4096}}, "a rank of 4096, adapter_model.safetensors has 4"),
        ({"lora_alpha": None}, "adapter_config.json, lora_alpha: "),
        ({"lora_alpha": float("nan")}, "adapter_config.json, lora_alpha: "),
        ({"target_modules": "all-linear"}, "adapter_config.json, target_modules: "),
        ({"target_modules": ["nothing"]}, "the adapter does not fit the model"),
        ({"rank_pattern": {"(": 4}}, "the adapter does not fit the model"),
        ({"modules_to_save": ["lm_head"]}, "adapter_config.json sets modules_to_save, which no adapter of spantune"),
        ({"modules_to_save": 5}, "sets modules_to_save"),
        ({"megatron_config": {}, "megatron_core": "antigravity"}, "sets megatron_"),
        ({"init_lora_weights": "pissa"}, "sets init_lora_weights"),
        ({"trainable_token_indices": [1]}, "sets trainable_token_indices"),
        ({"bias": "all"}, "sets bias"),
    ],
)
def test_a_setting_that_spantune_never_writes_is_named(folder: Path, settings: dict[str, object], said: str) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | settings), encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        load_adapter(base(), folder)
    assert said in str(caught.value) and str(caught.value).startswith(str(folder)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "5", "{}", "", "[" * 100_000, "\udcff"])
def test_a_configuration_that_is_none_is_one_error(folder: Path, content: str) -> None:
    (folder / "adapter_config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match=r"the adapter is damaged: adapter_config\.json"):
        load_adapter(base(), folder)


def test_every_kind_of_adapter_that_can_be_trained_is_read_back(tmp_path: Path) -> None:
    for number, settings in enumerate(
        (
            Lora(
                rank=4, alpha=8, rslora=True, dora=True, rank_pattern={"down_proj": 2, "layers.1.mlp.gate_up_proj": 6}
            ),
            Lora(rank=3, alpha=5.5, dropout=0.1, targets=("o_proj", "qkv_proj")),
        )
    ):
        model, _ = attach(base(), settings)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        folder = tmp_path / str(number)
        model.save_pretrained(str(folder))
        ids = torch.arange(20)[None]
        with torch.no_grad():
            expected = model.eval()(input_ids=ids, use_cache=False).logits
            again = load_adapter(base(), folder)(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"alpha_pattern": {"down_proj": 64.0}}, {"target_modules": ["down_proj"]}]
)
def test_merged_weights_are_those_of_peft(tmp_path: Path, settings: dict[str, Any], dtype: torch.dtype) -> None:
    model = base()
    trained = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=12, **ALL | settings))
    for name, weight in trained.named_parameters():
        torch.nn.init.normal_(weight, std=0.1) if "lora_" in name else None
    trained.save_pretrained(str(tmp_path))
    expected = PeftModel.from_pretrained(base().to(dtype), str(tmp_path)).merge_and_unload().state_dict()
    merged = load_adapter(base().to(dtype), tmp_path, merge=True)
    assert all(torch.equal(weight, expected[name]) for name, weight in merged.state_dict().items())
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(expected[name], base().to(dtype).state_dict()[name])
    assert not any(weight.requires_grad for weight in merged.parameters())
