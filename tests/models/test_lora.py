"""Adapters are on the modules that the recipe names, or the run does not start; PEFT alone can load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.fakes import tiny_model
from helpers.packs import adapted
from spantune.core import ModelError
from spantune.core.config import Lora
from spantune.models import adapter_weights, attach, coverage, load_adapter, unmatched_error
from spantune.models.lora import linear_names

TUTORIAL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED = ("down_proj", "gate_up_proj", "o_proj", "qkv_proj")
IDS = torch.arange(20)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


@pytest.mark.parametrize(("family", "names"), [("phi3", FUSED), ("llama", tuple(sorted(TUTORIAL)))])
def test_all_linear_finds_every_projection_and_not_the_head(family: str, names: tuple[str, ...]) -> None:
    model = tiny_model(family)
    found = coverage(model, Lora())
    assert found.matched == found.available == names
    assert found.unmatched == () and found.share == 1.0 and unmatched_error(found) is None
    linear = [
        m.weight.numel() for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n
    ]
    assert found.total == found.adapted == sum(linear) == sum(linear_names(model).values())


def test_the_tutorials_names_on_phi3_are_an_error_that_lists_what_there_is() -> None:
    with pytest.raises(ModelError) as raised:
        attach(tiny_model("phi3"), Lora(targets=TUTORIAL))
    message = str(raised.value)
    assert message.startswith("lora.targets: q_proj, k_proj, v_proj, gate_proj, up_proj match no linear module")
    assert f"valid: {', '.join(FUSED)}" in message and "lora.targets=all-linear" in message


def test_allow_unmatched_goes_on_with_what_matches() -> None:
    model, found = attach(tiny_model("phi3"), Lora(rank=4, alpha=8, targets=TUTORIAL, allow_unmatched=True))
    assert found.matched == ("o_proj", "down_proj")
    # 2 layers: o_proj 32 × 32, down_proj 32 × 48, qkv_proj 64 × 32, gate_up_proj 96 × 32
    assert found.adapted == 2 * (32 * 32 + 32 * 48) and found.total == found.adapted + 2 * (64 * 32 + 96 * 32)
    assert f"({found.share:.0%} of its linear weights" in str(unmatched_error(found))
    names = {name.split(".")[-4] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {"o_proj", "down_proj"}


@pytest.mark.parametrize("targets", ["nothing", ("nothing",)])
def test_allow_unmatched_does_not_train_an_empty_adapter(targets: str | tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match="nothing match no linear module"):
        attach(tiny_model("phi3"), Lora(targets=targets, allow_unmatched=True))


def test_only_the_adapters_train_and_they_are_fp32_on_a_bf16_base() -> None:
    model, _ = attach(tiny_model("llama").to(torch.bfloat16), Lora(rank=4, alpha=8))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize("family", ["phi3", "gemma3_text"])
def test_a_saved_adapter_is_plain_peft_and_merges_without_a_difference(family: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model = adapted(family)
    wanted, bare = logits(model), logits(tiny_model(family, vocabulary=280))
    assert (wanted - bare).abs().max() > 0.1
    model.save_pretrained(str(tmp_path))
    plain = PeftModel.from_pretrained(tiny_model(family, vocabulary=280), str(tmp_path)).eval()
    assert torch.equal(logits(plain), wanted)
    assert torch.equal(logits(load_adapter(tiny_model(family, vocabulary=280), tmp_path)), wanted)
    merged = load_adapter(tiny_model(family, vocabulary=280), tmp_path, merge=True)
    assert not isinstance(merged, PeftModel) and not merged.training
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-4, atol=1e-4)


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no adapter_config\.json here"):
        load_adapter(tiny_model(), tmp_path)


def test_ranks_scales_and_magnitudes_are_as_the_recipe_says() -> None:
    settings = Lora(
        rank=4, alpha=8, rslora=True, dora=True, rank_pattern={"down_proj": 2, "layers.1.mlp.gate_up_proj": 6}
    )
    model, _ = attach(tiny_model("phi3"), settings)
    layers = model.base_model.model.model.layers
    assert [layer.mlp.down_proj.r["default"] for layer in layers] == [2, 2]
    assert [layer.mlp.gate_up_proj.r["default"] for layer in layers] == [4, 6]
    assert layers[0].self_attn.o_proj.scaling["default"] == 8 / 4**0.5
    assert layers[0].mlp.down_proj.scaling["default"] == 8 / 2**0.5
    assert len([name for name, _ in model.named_parameters() if "magnitude" in name]) == 8
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapter_weights(tiny_model("phi3"), settings) == trained
    assert adapter_weights(tiny_model("phi3"), Lora(rank=4)) < trained


@pytest.mark.parametrize("targets", ["all-linear", ("o_proj", "gate_up_proj")])
def test_a_rank_for_what_gets_no_adapter_is_an_error_that_lists_what_there_is(targets: Any) -> None:
    with pytest.raises(ModelError) as raised:
        attach(tiny_model("phi3"), Lora(targets=targets, rank_pattern={"gate_proj": 2, "o_proj": 3}))
    assert str(raised.value).startswith("lora.rank_pattern: gate_proj match no module that gets an adapter")
    assert "gate_up_proj" in str(raised.value) and "o_proj match" not in str(raised.value)
    if targets != "all-linear":
        with pytest.raises(ModelError, match=r"lora.rank_pattern: down_proj match no module"):
            attach(tiny_model("phi3"), Lora(targets=targets, rank_pattern={"down_proj": 2}))
