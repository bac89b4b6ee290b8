"""Token embeddings kept in host memory give the same states; they stay on the GPU if they are needed there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.fakes import tiny_model
from helpers.interpreted import check_interpreted
from spantune.core import config
from spantune.models import attach, park_embedding, save_trained
from spantune.models.parked import ParkedEmbedding, token_rows


def test_a_model_with_parked_embeddings_trains_and_saves_as_before(tmp_path: Path) -> None:
    made, _ = attach(tiny_model("phi3"), config.Lora(rank=4, alpha=8))
    ids = torch.arange(11)[None]
    wanted = made.train()(input_ids=ids, labels=ids).loss
    table = made.get_input_embeddings().weight
    assert park_embedding(made)
    made.enable_input_require_grads()
    found = made(input_ids=ids, labels=ids).loss
    found.backward()
    assert torch.equal(found, wanted) and torch.equal(made.get_input_embeddings().weight, table)
    assert not any(weight.shape == table.shape and "lm_head" not in name for name, weight in made.named_parameters())
    assert all(weight.grad is not None for weight in made.parameters() if weight.requires_grad)
    save_trained(made, tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("family", ["gemma3_text", "phi3"])
def test_embeddings_that_are_shared_scaled_or_trained_stay(family: str) -> None:
    made = tiny_model(family)
    if family == "phi3":
        made.requires_grad_(True)
    assert not park_embedding(made)
    assert not isinstance(made.get_input_embeddings(), ParkedEmbedding)


def check_kernel(device: str) -> None:
    from spantune.models.kernels.parked_triton import gathered

    table = torch.randn(50, 40)
    table = table.pin_memory() if device == "cuda" else table
    for shape in ((7,), (2, 3), (0,)):
        ids = torch.randint(0, 50, shape)
        assert torch.equal(gathered(table, ids.to(device)).cpu(), token_rows(table, ids))


def test_the_kernel_interpreted() -> None:
    """Run the kernel on a CPU with Triton's interpreter, if Triton is installed."""
    check_interpreted(__file__, "test.check_kernel('cpu')")


@pytest.mark.gpu
def test_the_kernel_compiled() -> None:
    check_kernel("cuda")
