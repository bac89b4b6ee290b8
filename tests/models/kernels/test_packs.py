"""The layout of a pack's sequences, and attention by sequences compared with a dense mask, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers import dense_kernel
from helpers.fakes import tiny_model
from helpers.packs import FAMILIES, adapted, examples, gradients, packed
from spantune.encoding import PREFIX
from spantune.models import Places, Spans, spans
from spantune.models.attention import attention_mask
from spantune.models.kernels.packs import LARGEST_HEAD, STEP, _parts, _windowed, can_flash, gathered, pack_attention
from spantune.training import pack_loss

shapes = st.tuples(st.integers(0, 9), st.lists(st.integers(1, 9), min_size=1, max_size=6))


@pytest.fixture(scope="module", autouse=True)
def _on_cpu() -> Iterator[None]:
    with dense_kernel.on_cpu():
        yield


def owners(shared: int, lengths: list[int]) -> list[int]:
    return [PREFIX] * shared + [number for number, length in enumerate(lengths, 1) for _ in range(length)]


@given(shapes)
@settings(max_examples=100, deadline=None)
def test_each_example_has_the_prefix_s_keys_and_then_its_own(shape: tuple[int, list[int]]) -> None:
    shared, lengths = shape
    found = spans(owners(shared, lengths))
    groups = ([range(shared)] if shared else []) + [
        range(shared + sum(lengths[:i]), shared + sum(lengths[: i + 1])) for i in range(len(lengths))
    ]
    seen = [list(found.tokens[keys]) for _, keys in dense_kernel.sequences(found.queries, found.keys)]
    places = [range(queries.start, queries.stop) for queries, _ in dense_kernel.sequences(found.queries, found.keys)]
    assert places == groups
    assert seen == [[*range(shared), *group] if group.start >= shared > 0 else [*group] for group in groups]
    assert found.longest % STEP == 0 and found.longest >= shared + max(lengths)
    assert found.tokens[found.own].tolist() == list(range(shared + sum(lengths)))
    assert found.copies.shape == (len(lengths) if shared else 0, shared)
    assert all(found.tokens[copy].tolist() == list(range(shared)) for copy in found.copies)


def masked(query: Tensor, key: Tensor, value: Tensor, where: Places, window: int | None) -> Tensor:
    """Return attention [tokens, heads, size] with the mask of a whole pack."""
    config = tiny_model("phi3").config
    config.sliding_window = window
    mask: Any = attention_mask(config, where, where, torch.float64)
    return dense_kernel.by_mask(query, key, value, mask, 0.3)


@given(shapes, st.sampled_from([None, 1, 3, 7]), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_attention_by_spans_is_attention_under_the_mask(
    shape: tuple[int, list[int]], window: int | None, is_causal: bool, seed: int
) -> None:
    """Two masks are compared: causal order, and each text read as a whole."""
    shared, lengths = shape
    owner = owners(shared, lengths)
    position = [*range(shared), *(shared + place for length in lengths for place in range(length))]
    reach = [*range(shared), *(shared + length - 1 for length in lengths for _ in range(length))]
    draw = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(len(owner), heads, 4, generator=draw, requires_grad=True) for heads in (4, 2, 2))
    dy = torch.randn(query.shape, generator=draw)
    found = pack_attention(query, key, value, spans(owner, is_causal=is_causal), 0.3, window)
    exact = [tensor.detach().double().requires_grad_() for tensor in (query, key, value)]
    where = Places(torch.tensor(owner), torch.tensor(position), None if is_causal else torch.tensor(reach))
    wanted = masked(*exact, where, window)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(found, (query, key, value), dy)
    for one, other in zip(ours, torch.autograd.grad(wanted, exact, dy.double()), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shared", "orders", "keys"),
    [(0, [False], [0, 3, 4, 8]), (1, [False], [0, 1, 5, 7, 12]), (5, [True, False], [0, 8, 14, 23])],
)
def test_a_prefix_of_several_tokens_takes_a_call_in_causal_order_of_its_own(
    shared: int, orders: list[bool], keys: list[int]
) -> None:
    where = spans(owners(shared, [3, 1, 4]), is_causal=False)
    parts = _parts(where.queries, where.keys, where.causal, shared + 8)
    assert [part.is_causal for part in parts] == orders
    assert parts[-1].key_starts.tolist() == keys and parts[-1].query_starts.tolist()[0] == 0
    (in_order,) = _parts(*spans(owners(shared, [3, 1, 4]))[:2], spans([1]).causal, shared + 8)
    assert in_order.is_causal


def test_a_window_of_the_kernel_reaches_to_both_sides_only_without_causal_order() -> None:
    assert _windowed(4, is_causal=False) == {"window_size_left": 3, "window_size_right": 3}
    assert _windowed(4, is_causal=True) == {"window_size_left": 3, "window_size_right": 0}
    assert _windowed(0, is_causal=False) == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_s_loss_and_gradients_by_spans_are_those_by_segments(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pack = adapted(family), packed(examples())
    found = pack_loss(model, pack, torch.float32)
    found.backward()
    ours = gradients(model)
    monkeypatch.setattr("spantune.models.attention.can_flash", can_flash)
    wanted = pack_loss(model, pack, torch.float32)
    wanted.backward()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
    for name, gradient in gradients(model).items():
        assert (ours[name] - gradient).norm() <= 2e-5 * gradient.norm(), name


def test_gradients_of_the_prefix_s_copies_are_summed_in_full_precision() -> None:
    """A thousand small gradients are added to a large one; added one by one in bf16, they would be lost."""
    where = spans(owners(1, [1] * 1000))
    gradient = torch.full((len(where.tokens), 1, 1), 1 / 256, dtype=torch.bfloat16)
    gradient[0] = 16.0
    assert gathered(gradient, where.own, where.copies)[0].item() == pytest.approx(16 + 1000 / 256, rel=4e-3)


def test_without_a_prefix_nothing_is_copied() -> None:
    where = spans(owners(0, [3, 2]))
    gradient = torch.randn(5, 2, 4)
    assert torch.equal(gathered(gradient, where.own, where.copies), gradient)


@pytest.mark.parametrize(
    ("device", "dtype", "size", "able"),
    [
        ("cuda", torch.bfloat16, 128, True),
        ("cuda", torch.float16, LARGEST_HEAD, True),
        ("cuda", torch.float32, 128, False),
        ("cuda", torch.bfloat16, LARGEST_HEAD + 8, False),
        ("cpu", torch.bfloat16, 128, False),
    ],
)
def test_what_the_kernel_takes(device: str, dtype: torch.dtype, size: int, able: bool) -> None:
    config = tiny_model("qwen3").config
    config.head_dim = size
    assert can_flash(config, torch.device(device), dtype) is able
    assert isinstance(spans([0, 1]), Spans)
