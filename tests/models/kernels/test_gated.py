"""The gated MLP as one operator has the outputs and gradients of two LoRA layers with an activation between them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from helpers.fakes import tiny_model
from helpers.interpreted import check_interpreted
from spantune.core import Keep, config
from spantune.models import attach, decoder_layers, has_fp8, to_fp8
from spantune.models import gated_mlp as fused
from spantune.models.gated_mlp import fuse_mlps
from spantune.models.kernels.gated import (
    AGAIN,
    COLUMNS,
    EIGHT,
    KERNEL_ERROR,
    WHOLE,
    Weights,
    activated_plainly,
    differentiated_plainly,
    gated_mlp,
    kernel_error,
)
from spantune.models.kernels.lora_linear import FP8, linear, quantize

CPU = torch.device("cpu")


def far(found: Tensor, wanted: Tensor) -> float:
    """Return the relative error ‖found - wanted‖ / ‖wanted‖."""
    return (torch.linalg.norm(found.float() - wanted.float()) / torch.linalg.norm(wanted.float())).item()


def drawn(device: str, dtype: torch.dtype, base: str, ranks: tuple[int, int] = (4, 8)) -> tuple[Tensor, list[Weights]]:
    """Draw rows and the weights of both layers, with adapters that are not zero; 160 is no multiple of a tile."""
    torch.manual_seed(1)
    sizes = ((2 * 160, 64), (64, 160))
    weights = []
    for (outputs, inputs), rank in zip(sizes, ranks, strict=True):
        down, up = torch.randn(rank, inputs) / inputs**0.5, torch.randn(outputs, rank) / rank
        weight, scale = torch.randn(outputs, inputs) / inputs**0.5, None
        if base == "fp8":
            weight, scale = quantize(weight)
            scale = scale[:, 0].to(device)
        given = (weight.to(device, FP8 if base == "fp8" else dtype), scale)
        weights.append(Weights(*given, *(part.to(device, dtype).requires_grad_() for part in (down, up))))
    return torch.randn(70, 64).to(device, dtype).requires_grad_(), weights


def in_two_layers(rows: Tensor, wide: Weights, narrow: Weights, _: int) -> Tensor:
    gate, up = linear(rows, *wide).chunk(2, 1)
    return linear(silu(gate) * up, *narrow)


def step(compute: Any, rows: Tensor, weights: list[Weights], keeps: int = AGAIN) -> tuple[Tensor, list[Tensor]]:
    """Return the output, and the gradients of the rows and the adapters."""
    wide, narrow = weights
    output = compute(rows, wide, narrow, keeps)
    dy = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output)
    return output.detach(), list(torch.autograd.grad(output, (rows, wide.down, wide.up, narrow.down, narrow.up), dy))


@pytest.mark.parametrize("base", ["fp32", "fp8"])
@pytest.mark.parametrize("keeps", [AGAIN, EIGHT, WHOLE])
def test_it_is_two_layers_and_what_is_kept_in_8_bits_is_near(base: str, keeps: int) -> None:
    given = drawn("cpu", torch.float32, base)
    output, gradients = step(gated_mlp, *given, keeps)
    wanted_output, wanted = step(in_two_layers, *given)
    assert far(output, wanted_output) < 1e-5
    distances = [far(found, exact) for found, exact in zip(gradients, wanted, strict=True)]
    # a difference in the last bit may change the e4m3 rounding
    assert max(distances) < (0.06 if keeps == EIGHT else 1e-5 if base == "fp32" else 0.01)
    assert keeps != EIGHT or max(distances) > 1e-3


@pytest.mark.parametrize("base", ["fp32", "fp8"])
@pytest.mark.parametrize("keep", ["some", "fp8", "most"])
def test_the_mlps_of_a_model_are_fused_where_gate_and_up_are_one_layer(base: str, keep: Keep) -> None:
    made: Any = tiny_model("phi3", hidden_size=64, intermediate_size=160)
    made = to_fp8(made, CPU, made.lm_head) if base == "fp8" else made
    made, _ = attach(made, config.Lora(rank=4, alpha=8))
    torch.manual_seed(3)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.arange(23)[None]

    def gradients() -> Tensor:
        made.zero_grad()
        made.train()(input_ids=ids, labels=ids).loss.backward()
        return torch.cat([weight.grad.flatten() for weight in made.parameters() if weight.grad is not None])

    wanted = gradients()
    plain = made.eval()(input_ids=ids).logits
    assert [fuse_mlps(layer, keep) for layer in decoder_layers(made)] == [1, 1]
    assert far(gradients(), wanted) < (0.12 if keep == "fp8" else 1e-5 if base == "fp32" else 0.01)
    assert torch.equal(made.eval()(input_ids=ids).logits, plain)  # unchanged outside of training


def test_other_mlps_are_left_as_they_are() -> None:
    made, _ = attach(tiny_model("llama"), config.Lora(rank=4, alpha=8))
    assert not any(fuse_mlps(layer, "some") for layer in decoder_layers(made))
    made, _ = attach(tiny_model("phi3"), config.Lora(rank=4, alpha=8, targets=["qkv_proj"]))
    assert not any(fuse_mlps(layer, "some") for layer in decoder_layers(made))


def test_a_model_whose_adapters_are_taken_away_or_replaced_computes_without_them() -> None:
    torch.manual_seed(0)
    base = tiny_model("phi3")
    ids = torch.arange(9)[None]
    wanted = base.eval()(input_ids=ids).logits
    made, _ = attach(base, config.Lora(rank=4, alpha=8))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    assert all(fuse_mlps(layer, "some") for layer in decoder_layers(made))
    trained = made.train()(input_ids=ids).logits
    assert far(trained, wanted) > 0.01
    bare = made.unload()  # in training mode, as a run may end
    assert torch.equal(bare(input_ids=ids).logits, wanted)
    again, _ = attach(bare, config.Lora(rank=4, alpha=8))  # their B is 0
    assert far(again.train()(input_ids=ids).logits, wanted) < 1e-5


def test_dropout_goes_through_the_layers_one_by_one() -> None:
    made, _ = attach(tiny_model("phi3"), config.Lora(rank=4, alpha=8, dropout=0.5))
    layer = decoder_layers(made)[0]
    given = torch.randn(1, 5, 32)
    torch.manual_seed(0)
    wanted = layer.train().mlp(given)
    fuse_mlps(layer, "some")
    torch.manual_seed(0)
    assert torch.equal(layer.mlp(given), wanted)


def check_kernels(device: str, dtype: torch.dtype, tolerance: float) -> None:
    """Compare the Triton kernels with the plain computation, for sizes that are multiples of their tiles and others."""
    from spantune.models.kernels import gated_triton

    torch.manual_seed(0)
    for rows, size, rank, inner in ((70, 160, 16, 8), (3, COLUMNS, 80, 4)):
        shapes = ((rows, 2 * size), (rows, rank), (2 * size, rank), (rows, size), (rows, inner), (inner, size))
        raw, low, up, *grad = (torch.randn(*shape).to(device, dtype) for shape in shapes)
        scale = torch.rand(2 * size).to(device)
        tiles = -(-size // COLUMNS)
        kept = [(raw.new_empty(raw.shape, dtype=FP8), scale.new_empty(rows, 2 * tiles)) for _ in range(2)]
        found, wanted = gated_triton.activated(raw, low, up, kept[0]), activated_plainly(raw, low, up, kept[1])
        assert far(found[0], wanted[0]) < tolerance and far(found[1].amax(1), wanted[1].amax(1)) < tolerance
        assert far(kept[0][1], kept[1][1]) < tolerance
        if device == "cuda":  # the interpreter rounds to e4m3 differently
            eight, row_scale = gated_triton.quantized(*found)
            exact, exact_scale = quantize(found[0])
            assert far(row_scale, exact_scale) < 1e-6 and far(eight.float(), exact.float()) < 0.005
            assert far(kept[0][0].float(), kept[1][0].float()) < 0.02
        inputs = [(raw, low, up), kept[1]]
        for given in inputs:
            results = []
            for compute in (gated_triton.differentiated, differentiated_plainly):
                of_product, into = grad[0].clone(), torch.empty_like(raw)
                largest = compute(given, (of_product, *grad[1:]), scale, into)
                results.append((of_product, into, largest.amax(1)))
            assert all(far(*pair) < tolerance for pair in zip(*results, strict=True))
        into = raw.clone()  # written over the product itself
        gated_triton.differentiated((into, low, up), (grad[0].clone(), *grad[1:]), None, into)
        exact = torch.empty_like(raw)
        differentiated_plainly((raw, low, up), (grad[0].clone(), *grad[1:]), None, exact)
        assert far(into, exact) < tolerance


def test_the_kernels_interpreted() -> None:
    """Run the kernels on a CPU with Triton's interpreter, if Triton is installed."""
    check_interpreted(__file__, "test.check_kernels('cpu', torch.float32, 1e-5)")


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_the_kernels_compiled(dtype: torch.dtype, tolerance: float) -> None:
    check_kernels("cuda", dtype, tolerance)


@pytest.mark.parametrize("failure", [0.5, RuntimeError("no compiler")])
def test_kernels_that_differ_or_fail_are_not_used(
    failure: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def measured(*_: object) -> float:
        if isinstance(failure, Exception):
            raise failure
        return float(failure)

    monkeypatch.setattr(fused, "kernel_error", measured)
    fused._is_exact.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert not any(fused._is_exact((4, 8), torch.bfloat16, CPU) for _ in range(2))
    fused._is_exact.cache_clear()
    assert len(caplog.records) == 1 and "kernels of gated MLPs" in caplog.text


@pytest.mark.gpu
def test_the_kernels_are_found_to_agree_before_they_are_used() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        assert kernel_error((64, 64), dtype, torch.device("cuda")) < KERNEL_ERROR


@pytest.mark.gpu
@pytest.mark.parametrize(("base", "tolerance"), [("bf16", 1e-2), ("fp8", 0.08)])
def test_on_a_gpu_it_is_near_to_two_layers_in_float32(base: str, tolerance: float) -> None:
    if base == "fp8" and not has_fp8(torch.device("cuda")):
        pytest.skip("this GPU is older than Hopper")
    wanted_output, wanted = step(in_two_layers, *drawn("cpu", torch.float32, base))
    for keeps in (AGAIN, WHOLE, EIGHT):
        output, gradients = step(gated_mlp, *drawn("cuda", torch.bfloat16, base), keeps)
        assert far(output.cpu(), wanted_output) < tolerance
        for found, exact in zip(gradients, wanted, strict=True):
            assert far(found.cpu(), exact) < (0.08 if keeps == EIGHT else tolerance)
