"""fp32 copies of weights: those of a checkpoint are used only if they belong to these weights."""

from __future__ import annotations

import pytest
import torch

from spantune.core import RunError
from spantune.training.masters import MasterWeights


def masters(dtype: torch.dtype) -> MasterWeights:
    weights = [torch.ones(2, dtype=dtype, requires_grad=True), torch.ones(3, dtype=dtype, requires_grad=True)]
    return MasterWeights(torch.optim.AdamW(weights))


def test_copies_of_a_model_in_another_type_are_refused() -> None:
    half, single = masters(torch.bfloat16), masters(torch.float32)
    assert len(half.state()) == 2 and single.state() == []
    half.restore([torch.full((2,), 3.0), torch.full((3,), 4.0)])
    assert [float(copy[0]) for copy in half.state()] == [3, 4]
    for model, state in ((single, half.state()), (half, single.state())):
        with pytest.raises(RunError, match=r"has fp32 copies of \d weights, and .* needs \d: full fine-tuning goes on"):
            model.restore(state)
