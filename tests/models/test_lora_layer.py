"""Our LoRA layer equals PEFT's: outputs, gradients, dropout, DoRA, switched off and merged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from helpers.fakes import tiny_model
from spantune.core import config
from spantune.models import attach
from spantune.models.kernels.lora_linear import Fp8Linear
from spantune.models.lora import FusedLora, freeze_adapters

SETTINGS = {
    "plain": config.Lora(rank=4, alpha=8),
    "rank-stabilised": config.Lora(rank=4, alpha=8, rslora=True),
    "dropout": config.Lora(rank=4, alpha=8, dropout=0.3),
    "DoRA": config.Lora(rank=4, alpha=8, dora=True),
}


def both(settings: config.Lora, family: str = "phi3") -> tuple[Any, Any]:
    """Return a model with our layers and one with PEFT's, with the same adapter weights, which are not zero."""
    ours, found = attach(tiny_model(family), settings)
    theirs = get_peft_model(
        tiny_model(family),
        LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=list(found.matched),
            use_rslora=settings.rslora,
            use_dora=settings.dora,
        ),
    )
    assert sum(isinstance(m, FusedLora) for m in ours.modules()) == 2 * len(found.matched)
    assert not any(isinstance(m, FusedLora) for m in theirs.modules())
    torch.manual_seed(3)
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, 1.0 if "magnitude" in name else 0.0, std=0.1)
            theirs.get_parameter(name).data.copy_(parameter)
    return ours, theirs


def run(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits, and the gradients of the adapters and of the embeddings."""
    torch.manual_seed(11)  # for the dropout
    model.zero_grad()
    model.get_input_embeddings().weight.requires_grad_()
    logits = model(input_ids=torch.arange(60).view(2, 30), use_cache=False).logits
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compare(ours: Any, theirs: Any) -> None:
    (found, gradients), (wanted, others) = run(ours), run(theirs)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        assert (gradient - others[name]).norm() <= 1e-5 * others[name].norm(), name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SETTINGS)
def test_logits_and_all_gradients_are_those_of_peft(name: str, training: bool) -> None:
    ours, theirs = (model.train(training) for model in both(SETTINGS[name]))
    compare(ours, theirs)
    assert any("embed" in key for key in run(ours)[1])


def test_a_bias_is_added_once() -> None:
    ours, theirs = both(SETTINGS["plain"], "qwen2")  # its q, k and v have a bias
    for model in (ours, theirs):
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.ones_(parameter)
    compare(ours.train(), theirs.train())


@pytest.mark.parametrize("name", ["plain", "DoRA"])
def test_adapters_are_switched_off_merged_and_taken_out_again(name: str) -> None:
    ours, theirs = both(SETTINGS[name])
    bare = run(tiny_model())[0]
    active = run(ours)[0]
    with ours.disable_adapter(), theirs.disable_adapter():
        compare(ours, theirs)
        torch.testing.assert_close(run(ours)[0], bare)
    assert (active - bare).abs().max() > 0.1
    for model in (ours, theirs):
        model.merge_adapter()
    compare(ours, theirs)
    torch.testing.assert_close(run(ours)[0], active, rtol=1e-4, atol=1e-4)
    with ours.disable_adapter():  # merged weights are subtracted for this
        torch.testing.assert_close(run(ours)[0], bare, rtol=1e-4, atol=1e-4)
    assert not ours.base_model.model.model.layers[0].mlp.down_proj.merged
    torch.testing.assert_close(run(ours)[0], active, rtol=1e-4, atol=1e-4)


def test_two_adapters_at_once_are_peft_s() -> None:
    ours, theirs = both(SETTINGS["plain"])
    for model in (ours, theirs):
        settings = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["o_proj"], init_lora_weights=False)
        torch.manual_seed(5)
        model.add_adapter("other", settings)
        model.base_model.set_adapter(["default", "other"])
    compare(ours, theirs)


def layer(base: nn.Linear) -> FusedLora:
    torch.manual_seed(2)
    made = FusedLora(base, "default", LoraConfig(), r=4, lora_alpha=8)
    nn.init.normal_(made.lora_B["default"].weight, std=0.1)
    return made.train()


def test_the_frozen_weight_gets_no_gradient_and_bf16_is_computed_in_bf16() -> None:
    made = layer(nn.Linear(32, 48).requires_grad_(False).to(torch.bfloat16))
    made.lora_A.float(), made.lora_B.float()
    output = made(torch.randn(5, 3, 32))
    assert output.dtype == torch.bfloat16 and output.shape == (5, 3, 48)
    output.float().sum().backward()
    assert made.base_layer.weight.grad is None
    assert made.lora_A["default"].weight.grad is not None and made.lora_A["default"].weight.dtype == torch.float32


def test_over_fp8_the_update_is_added_to_the_rounded_product() -> None:
    base = nn.Linear(32, 48).requires_grad_(False)
    made, rows = layer(Fp8Linear(base, torch.device("cpu"))), torch.randn(7, 32, requires_grad=True)
    down, up = made.lora_A["default"].weight, made.lora_B["default"].weight
    dy = torch.randn(7, 48)
    found, wanted = made(rows), made.base_layer(rows) + 2 * rows @ down.T @ up.T
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for one, other in zip(*(torch.autograd.grad(y, (rows, down, up), dy) for y in (found, wanted)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_frozen_adapters_are_kept_in_the_type_of_the_base_and_compute_the_same() -> None:
    model, _ = both(SETTINGS["rank-stabilised"])
    ids = torch.arange(30)[None]
    freeze_adapters(model)
    layers = [module for module in model.modules() if isinstance(module, FusedLora)]
    assert not any(one.frozen for one in layers)  # the adapters are trained
    wanted = model(input_ids=ids, use_cache=False).logits
    model.requires_grad_(False)
    freeze_adapters(model)
    assert all(set(one.frozen) == {"default"} for one in layers)
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, wanted)
    for one in layers:
        one.lora_A["default"].weight.zero_()  # no longer used after merging
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, wanted)
    fp8 = layer(Fp8Linear(nn.Linear(32, 16), torch.device("cpu")))
    fp8.requires_grad_(False).freeze()
    assert {weight.dtype for weight in fp8.frozen["default"]} == {torch.bfloat16}
