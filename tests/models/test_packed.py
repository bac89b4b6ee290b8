"""Packed weights give bit-equal results, for a layer and for a whole model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from spantune.models import pack_weights
from spantune.models.packed import PackedLinear

CAN = hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and torch.ops.mkldnn._is_mkldnn_bf16_supported()
pytestmark = pytest.mark.skipif(not CAN, reason="this CPU computes no bf16")


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_gives_the_same_bits_for_any_number_of_rows(bias: bool) -> None:
    layer = nn.Linear(96, 200, bias=bias, dtype=torch.bfloat16)
    packed = PackedLinear(layer)
    assert torch.equal(packed.weight, layer.weight) and len(list(packed.parameters())) == bias
    with torch.inference_mode():
        for shape in ((1, 96), (7, 96), (2, 33, 96), (0, 96), (300, 96)):
            rows = torch.randn(shape).bfloat16()
            assert packed(rows).shape == layer(rows).shape and torch.equal(packed(rows), layer(rows)), shape


@pytest.mark.parametrize(("dtype", "packed"), [(torch.bfloat16, True), (torch.float32, False)])
def test_a_model_in_bf16_computes_the_same_and_one_in_fp32_is_left_alone(
    tiny_folder: Path, dtype: torch.dtype, packed: bool
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=dtype).eval()
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        before = model(ids).logits
        linear = sum(type(module) is nn.Linear for module in model.model.modules())
        assert pack_weights(model) == linear * packed
        assert torch.equal(model(ids).logits, before)
    assert sum(isinstance(module, PackedLinear) for module in model.modules()) == linear * packed
    assert type(model.lm_head) is nn.Linear
