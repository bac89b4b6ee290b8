"""The loss and gradients of a pack are those of its examples alone, in any order and in any pack."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.fakes import MERGES, byte_tokenizer
from helpers.packs import DOCUMENTS, FAMILIES, adapted, examples, gradients, packed
from spantune.core import Document, ModelError
from spantune.encoding import Example, pack_examples, shared_prefix
from spantune.training import PackTensors, loss, pack_loss, tensors
from spantune.training.loss import HEAD_CHUNK, _HeadLoss, check_head

PACKINGS = {
    "all": [[0, 1, 2, 3]],
    "reversed": [[3, 2, 1, 0]],
    "pairs": [[3, 1], [0, 2]],
    "uneven": [[2], [1, 3, 0]],
    "alone": [[0], [1], [2], [3]],
}


def alone_loss(model: Any, example: Example) -> Tensor:
    """Return the loss of one unpacked example from the model's own logits, without a mask of ours."""
    logits = model(input_ids=torch.tensor([example.ids]), use_cache=False).logits[0]
    answer = torch.tensor(example.ids[example.answer_start :])
    return cross_entropy(logits[example.answer_start - 1 : -1], answer, reduction="sum")


def test_the_shared_prefix_ends_inside_a_merge() -> None:
    """The examples are the hard case: in one of them the instruction's last line break is merged with the text."""
    chosen, tokenizer = examples(), byte_tokenizer(MERGES)
    prefix = tokenizer.decode(chosen[0].ids[: shared_prefix(chosen)])
    assert prefix == "Find entities in it:"
    assert "\na" in [tokenizer.decode([token]) for token in chosen[0].ids]  # one token across the border


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_loss_and_lora_gradients_equal_the_unpacked_ones(family: str) -> None:
    model, chosen = adapted(family), examples()
    prefix = chosen[0].ids[: shared_prefix(chosen)]
    expected = torch.stack([alone_loss(model, example) for example in chosen]).sum()
    expected.backward()
    wanted = gradients(model)
    assert len(wanted) == sum("lora_" in name for name, _ in model.named_parameters()) > 0
    assert all(gradient.norm() > 0 for gradient in wanted.values())
    for packing in PACKINGS.values():
        total = torch.zeros(())
        for group in packing:
            loss = pack_loss(model, packed([chosen[index] for index in group], prefix), torch.float32)
            loss.backward()
            total += loss.detach()
        torch.testing.assert_close(total, expected.detach(), rtol=1e-5, atol=0)
        for name, gradient in gradients(model).items():
            assert (gradient - wanted[name]).norm() <= 1e-5 * wanted[name].norm(), name


@pytest.mark.parametrize("seed", range(6))
def test_random_corpora_in_packs_of_random_size_have_the_loss_and_gradients_of_their_examples(seed: int) -> None:
    draw = random.Random(seed)
    model = adapted(draw.choice(FAMILIES))
    prefix = tuple(draw.randrange(280) for _ in range(draw.randrange(12)))
    chosen = []
    for number in range(draw.randrange(1, 7)):
        prompt, answer = (tuple(draw.randrange(280) for _ in range(draw.randrange(1, 20))) for _ in range(2))
        chosen.append(Example(str(number), prefix + prompt + answer, len(prefix + prompt)))
    expected = torch.stack([alone_loss(model, example) for example in chosen]).sum()
    expected.backward()
    wanted = gradients(model)
    total = torch.zeros(())
    for pack in pack_examples(chosen, prefix, draw.randrange(20, 120)):
        loss = pack_loss(model, PackTensors(**tensors(pack)), torch.float32)
        loss.backward()
        total += loss.detach()
    torch.testing.assert_close(total, expected.detach(), rtol=1e-5, atol=0)
    for name, gradient in gradients(model).items():
        assert (gradient - wanted[name]).norm() <= 1e-5 * wanted[name].norm(), name


def test_a_short_common_start_of_few_examples_is_no_different() -> None:
    """The common prefix of two examples may continue into their texts; it is shared all the same."""
    model, chosen = adapted("phi3"), examples([DOCUMENTS[0], Document("e", "abdomen")])
    assert shared_prefix(chosen) == shared_prefix(examples()) + 2
    expected = sum(alone_loss(model, example) for example in chosen)
    torch.testing.assert_close(pack_loss(model, packed(chosen), torch.float32), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_the_loss_on_choices_is_over_what_is_allowed_there(softcap: float | None) -> None:
    """Forced tokens have no loss and are still attended to; gradients are those of the same examples alone."""
    model = adapted("gemma3_text", final_logit_softcapping=softcap)
    chosen = []
    for example in examples():
        places = range(example.answer_start, len(example.ids), 2)
        choices = {place: tuple(sorted({example.ids[place], 3, 7 + place})) for place in places}
        chosen.append(replace(example, choices=choices))
    expected = torch.zeros(())
    for example in chosen:
        logits = model(input_ids=torch.tensor([example.ids]), use_cache=False).logits[0]
        for place, allowed in (example.choices or {}).items():
            target = torch.tensor(allowed.index(example.ids[place]))
            expected = expected + cross_entropy(logits[place - 1, list(allowed)], target)
    expected.backward()
    wanted = gradients(model)
    model.zero_grad()
    loss = pack_loss(model, packed(chosen), torch.float32)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=0)
    loss.backward()
    for name, gradient in gradients(model).items():
        assert (gradient - wanted[name]).norm() <= 1e-5 * wanted[name].norm(), name


def test_a_pack_holds_no_padding() -> None:
    chosen = examples()
    shared = shared_prefix(chosen)
    assert len(packed(chosen).ids) == shared + sum(len(example.ids) - shared for example in chosen)
    assert byte_tokenizer(MERGES).pad_token_id not in packed(chosen).ids
    assert len(packed(chosen).index) == sum(len(example.ids) - example.answer_start for example in chosen)


@pytest.mark.parametrize("positions", [0, 1, HEAD_CHUNK - 1, HEAD_CHUNK, HEAD_CHUNK + 1, 2 * HEAD_CHUNK + 3])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("weighed", [False, True])
def test_head_loss_is_the_cross_entropy_of_all_chunks(
    positions: int, softcap: float | None, weighed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "CACHED", 150)  # three rows
    torch.manual_seed(0)
    head = nn.Linear(8, 50)
    hidden = torch.randn(positions, 8, requires_grad=True)
    targets = torch.randint(0, 50, (positions,))
    weights = torch.rand(positions) if weighed else None
    ours = _HeadLoss.apply(hidden, targets, weights, head, softcap)
    (gradient,) = torch.autograd.grad(3 * ours, hidden)
    logits = head(hidden)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    theirs = (cross_entropy(logits, targets, reduction="none") * (1 if weights is None else weights)).sum()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, 3 * torch.autograd.grad(theirs, hidden)[0], rtol=1e-5, atol=1e-6)


def test_head_loss_in_bf16_has_the_gradient_of_the_same_logits() -> None:
    torch.manual_seed(0)
    head = nn.Linear(8, 50, bias=False).to(torch.bfloat16)
    hidden = torch.randn(9, 8).to(torch.bfloat16).requires_grad_()
    targets = torch.randint(0, 50, (9,))
    ours = _HeadLoss.apply(hidden, targets, None, head, None)
    theirs = cross_entropy(head(hidden).float(), targets, reduction="sum")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    (gradient,), (expected,) = torch.autograd.grad(ours, hidden), torch.autograd.grad(theirs, hidden)
    torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=1e-3)


def test_a_softcapped_model_is_trained_on_its_own_logits() -> None:
    model, chosen = adapted("gemma3_text", final_logit_softcapping=1.5), examples()
    expected = sum(alone_loss(model, example) for example in chosen)
    check_head(model, packed(chosen), torch.float32)
    torch.testing.assert_close(pack_loss(model, packed(chosen), torch.float32), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_check_head_takes_the_families_we_know(family: str) -> None:
    check_head(adapted(family), packed(examples()), torch.float32)


@pytest.mark.parametrize(
    ("family", "changes"), [("granite", {"logits_scaling": 8.0}), ("cohere", {"logit_scale": 0.0625})]
)
def test_check_head_refuses_scaled_logits(family: str, changes: dict[str, float]) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    ids = {"pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1}
    settings = AutoConfig.for_model(family, vocab_size=280, num_key_value_heads=2, **shape, **ids, **changes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(settings, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.2)
    with pytest.raises(ModelError, match=rf"{family}.*scales its logits.*pack=none"):
        check_head(model, packed(examples()), torch.float32)
