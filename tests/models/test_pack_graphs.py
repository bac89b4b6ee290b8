"""Packs with padding give the results of packs without; without graphs the layers run plainly (see test_gpu.py)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from helpers import dense_kernel
from helpers.packs import adapted, examples, gradients, packed
from spantune.encoding import PREFIX
from spantune.models import Spans, causal_lm, end_graphs, graph_packs, pack_graphs, pad_ahead, release_graphs, spans
from spantune.models.pack_graphs import PackGraphs, _Shared, padded
from spantune.training import PackTensors, pack_loss


@pytest.fixture(scope="module", autouse=True)
def _on_cpu() -> Iterator[None]:
    with dense_kernel.on_cpu():
        yield


def step(made: Any, pack: PackTensors) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss and the gradients."""
    made.zero_grad()
    loss = pack_loss(made, pack, torch.float32)
    loss.backward()
    return loss.item(), gradients(made)


@pytest.mark.parametrize("prefix", [0, 1, 7, 600])
@pytest.mark.parametrize("lengths", [[3], [5, 1, 9], [4, 4, 4, 4], [300, 400, 321]])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("least", [0, 700])
def test_fillers_are_sequences_of_their_own_behind_the_pack(
    prefix: int, lengths: list[int], is_causal: bool, least: int
) -> None:
    owner = [PREFIX] * prefix + [name for name, length in enumerate(lengths, start=1) for _ in range(length)]
    count = len(owner)
    found = padded(torch.arange(count), torch.arange(count), spans(owner, is_causal=is_causal), least)
    extra = len(found.ids) - count
    fillers = 4 - len(lengths) % 4
    assert len(found.ids) % (64 if count < 1024 else 128) == 0 and fillers <= extra < max(128, least - count) + 128
    assert len(found.ids) >= least
    assert found.ids.tolist() == [*range(count), *[0] * extra]
    sizes = [extra // fillers + (number < extra % fillers) for number in range(fillers)]
    names = [len(lengths) + 1 + number for number, size in enumerate(sizes) for _ in range(size)]
    wanted = spans(owner + names, is_causal=is_causal)
    for name in Spans._fields:
        value, other = getattr(found.spans, name), getattr(wanted, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


@pytest.mark.parametrize("family", ["phi3", "gemma3_text"])
def test_a_padded_pack_has_the_loss_and_the_gradients_of_the_pack(family: str) -> None:
    made = adapted(family).train()
    packs = [packed(examples()), packed(examples()[:2])]
    plain = [step(made, pack) for pack in packs]
    graph_packs(made, 4096)
    for pack, (loss, wanted) in zip(packs, plain, strict=True):
        found_loss, found = step(made, pack)
        assert found_loss == pytest.approx(loss, rel=1e-6)
        assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in wanted)


def test_a_pack_that_is_padded_ahead_is_not_padded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made, pack = adapted("phi3").train(), packed(examples())
    graph_packs(made, 4096)
    monkeypatch.setattr(PackGraphs, "_graph", lambda *_: None)  # as for a shape that cannot be captured yet
    wanted, _ = step(made, pack)
    counts: list[int] = []
    monkeypatch.setattr(pack_graphs, "padded", lambda ids, *rest: counts.append(len(ids)) or padded(ids, *rest))
    for ahead, number in ((pack, 1), (packed(examples()[:2]), 2), (None, 1)):  # ahead: the same, another, none
        counts.clear()
        if ahead is not None:
            pad_ahead(made, ahead.ids, ahead.positions, ahead.spans)
        assert step(made, pack)[0] == pytest.approx(wanted, rel=1e-6) and len(counts) == number


def test_what_cannot_be_captured_goes_on_plainly(caplog: pytest.LogCaptureFixture) -> None:
    """A CPU has no CUDA graphs."""
    made, pack = adapted("phi3").train(), packed(examples())
    loss, _ = step(made, pack)
    graph_packs(made, 4096)
    with caplog.at_level(logging.WARNING):
        losses = [step(made, pack)[0] for _ in range(4)]
    assert losses == pytest.approx([loss] * 4, rel=1e-6)
    assert caplog.text.count("goes on without CUDA graphs") == 1
    release_graphs(made)


def test_memory_that_is_short_ends_graphs_that_there_are(caplog: pytest.LogCaptureFixture) -> None:
    made = adapted("phi3").train()
    assert not end_graphs(made)
    graph_packs(made, 4096)
    assert not end_graphs(made) and not caplog.text
    forward = causal_lm(made).base_model.forward
    forward.graphs["a shape"] = "a graph"
    assert end_graphs(made) and "memory is short" in caplog.text
    step(made, packed(examples()))
    step(made, packed(examples()))  # without graphs: on a CPU, a capture would give a second warning
    assert caplog.text.count("without CUDA graphs") == 1


def test_longer_packs_and_those_without_gradient_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made, pack = adapted("phi3").train(), packed(examples())
    graph_packs(made, len(pack.ids) - 1)
    counts: list[int] = []
    monkeypatch.setattr(pack_graphs, "padded", lambda ids, *rest: counts.append(len(ids)) or padded(ids, *rest))
    step(made, pack)
    with torch.no_grad():
        pack_loss(made, packed(examples()[:2]), torch.float32)
    assert not counts
    step(made, packed(examples()[:2]))
    assert len(counts) == 1


def test_gradients_move_to_their_places_with_what_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    fresh, begun = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    begun.grad = torch.full((2,), 3.0)
    shared = _Shared([fresh, begun], torch.zeros(8), 100)
    shared.bind_gradients()
    assert fresh.grad is shared._gradients[0] and fresh.grad.tolist() == [0, 0] and begun.grad.tolist() == [3, 3]
    fresh.grad += 5  # a graph adds to the gradient
    shared.bind_gradients()
    assert fresh.grad.tolist() == [5, 5]
    fresh.grad = begun.grad = None  # as after an optimizer step
    shared.bind_gradients()
    assert fresh.grad.tolist() == begun.grad.tolist() == [0, 0]
    assert len(shared.states) >= 128 and len(shared.states) % 128 == 0
