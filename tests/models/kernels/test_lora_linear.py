"""The linear operator adds the products of base and adapter, with a base in bf16, fp32 or scaled e4m3."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from spantune.models.kernels.lora_linear import linear, product, quantize


def drawn(*shapes: tuple[int, int]) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(shape) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapted", [True, False])
def test_the_low_rank_update_is_added_where_the_product_is_computed(dtype: torch.dtype, adapted: bool) -> None:
    rows, weight, low, up = (tensor.to(dtype) for tensor in drawn((7, 32), (48, 32), (7, 4), (48, 4)))
    found = product(rows, weight, low if adapted else None, up if adapted else None, None, None, dtype)
    wanted = rows.float() @ weight.float().T + (low.float() @ up.float().T if adapted else 0)
    assert found.dtype == dtype and found.shape == (7, 48)
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.15)


def test_e4m3_products_are_those_of_the_numbers_they_stand_for() -> None:
    rows, weight, low, up = drawn((7, 32), (48, 32), (7, 4), (48, 4))
    left, row_scale = quantize(rows)
    right, scale = quantize(weight)
    found = product(left, right, low, up, row_scale, scale[:, 0], torch.float32)
    wanted = (left.float() * row_scale) @ (right.float() * scale).T + low @ up.T
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


def test_a_compiler_is_told_shape_type_and_cost() -> None:
    with FakeTensorMode():
        found = product(torch.empty(7, 32), torch.empty(48, 32), None, None, None, None, torch.bfloat16)
        assert found.shape == (7, 48) and found.dtype == torch.bfloat16
        low = torch.empty(4, 32), torch.empty(48, 4)
        assert linear(torch.empty(7, 32), torch.empty(48, 32), None, *low).shape == (7, 48)
    rows, weight = drawn((7, 32), (48, 32))
    with FlopCounterMode(display=False) as counted:
        product(rows, weight, None, None, None, None, torch.float32)
    assert counted.get_total_flops() == 2 * 7 * 32 * 48
    with FlopCounterMode(display=False) as counted:
        linear(rows, weight, None, None, None)
    assert counted.get_total_flops() == 2 * 7 * 32 * 48


@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("narrow", [True, False])
def test_a_linear_layers_gradients_are_autograds(adapted: bool, narrow: bool) -> None:
    """With an e4m3 weight they agree up to rounding, because its products round the rows and their gradients too."""
    rows, wide, down, up, dy = (t.requires_grad_() for t in drawn((7, 32), (48, 32), (4, 32), (48, 4), (7, 48)))
    weight, scale = quantize(wide.detach()) if narrow else (wide.detach(), None)
    chosen = (down, up) if adapted else (None, None)
    found = linear(rows, weight, None if scale is None else scale[:, 0], *chosen)
    plain = rows @ (weight.float() * (1 if scale is None else scale)).T
    wanted = plain + rows @ down.T @ up.T if adapted else plain
    inputs = [rows, down, up] if adapted else [rows]
    ours, theirs = (torch.autograd.grad(one, inputs, dy.detach()) for one in (found, wanted))
    for one, other in [(found, wanted), *zip(ours, theirs, strict=True)]:
        assert (one - other).norm() < (0.05 if narrow else 1e-5) * other.norm()


@pytest.mark.no_cover
@pytest.mark.parametrize("adapted", [True, False])
def test_torch_finds_the_operator_in_order(adapted: bool) -> None:
    rows, weight, down, up = drawn((7, 32), (48, 32), (4, 32), (48, 4))
    trained = (down.requires_grad_(), up.requires_grad_()) if adapted else (None, None)
    torch.library.opcheck(torch.ops.spantune.linear, (rows.requires_grad_(), None, weight, *trained, None, None))
