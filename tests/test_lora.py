"""Adapters cover what the recipe says, or the run does not start; PEFT alone can load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fakes import tiny_model
from spantune.config import Lora
from spantune.errors import ModelError
from spantune.lora import attach, coverage, linear_names, load_adapter, unmatched_error
from test_loss import adapted

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
    model, found = attach(tiny_model("phi3"), Lora(targets=TUTORIAL, allow_unmatched=True))
    assert found.matched == ("o_proj", "down_proj")
    # 2 layers: o_proj 32 x 32, down_proj 32 x 48; qkv_proj 64 x 32, gate_up_proj 96 x 32
    assert found.adapted == 2 * (32 * 32 + 32 * 48) and found.total == found.adapted + 2 * (64 * 32 + 96 * 32)
    assert f"({found.share:.0%} of its linear weights" in str(unmatched_error(found))
    names = {name.split(".")[-4] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {"o_proj", "down_proj"}


@pytest.mark.parametrize("targets", ["nothing", ("nothing",)])
def test_allow_unmatched_does_not_train_an_empty_adapter(targets: str | tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match="nothing match no linear module"):
        attach(tiny_model("phi3"), Lora(targets=targets, allow_unmatched=True))


def test_only_the_adapters_train_and_they_are_fp32_on_a_bf16_base() -> None:
    model, _ = attach(tiny_model("llama").to(torch.bfloat16), Lora(rank=4))
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
