"""Passes over a slot cache give the logits of whole forward passes, whichever rows are fed together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from helpers.fakes import tiny_model
from spantune.core import ModelError
from spantune.extraction import Forward, model_runner
from spantune.extraction.model_runner import Part, Shape
from spantune.extraction.slot_cache import SlotCache
from spantune.models import few_logits
from spantune.models.kernels import rows

PREFIX = [5, 6, 7, 8, 9]
ROWS = {1: [11, 12, 13, 14, 15, 16, 17, 18, 19, 20], 2: [21, 22, 23, 24]}
SHAPE = Shape(rows=2, longest=64, tokens=64)


def whole(model: Any, row: list[int]) -> torch.Tensor:
    with torch.no_grad():
        ids = torch.tensor([PREFIX + row], device=model.device)
        return model(input_ids=ids, use_cache=False).logits[0, len(PREFIX) :]


@torch.inference_mode()
def fed(passes: Forward) -> dict[int, torch.Tensor]:
    """Return the logits after each fed part of both rows, in three passes with different widths."""
    passes.share(PREFIX)
    one, other = passes.cache.open(), passes.cache.open()
    start = len(PREFIX)
    plan = [
        [(one, start, ROWS[1][:2]), (other, start, ROWS[2][:1])],
        [(other, start + 1, ROWS[2][1:2])],
        [(one, start + 2, ROWS[1][2:9]), (other, start + 2, ROWS[2][2:])],
        [(one, start + 9, ROWS[1][9:])],
    ]
    found: dict[int, list[torch.Tensor]] = {one: [], other: []}
    for parts in plan:
        logits = passes.feed([Part(*part) for part in parts], range(len(parts))).clone()
        for (row, _, _), line in zip(parts, logits, strict=True):
            found[row].append(line)
    return {1: torch.stack(found[one]), 2: torch.stack(found[other])}


FAMILIES = ["phi3", "llama", "qwen2", "qwen3", "mistral", "gemma3_text"]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_fed_together_has_the_logits_that_it_has_alone(family: str) -> None:
    model = tiny_model(family)
    found = fed(Forward(model, SHAPE))
    torch.testing.assert_close(found[1], whole(model, ROWS[1])[[1, 8, 9]], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[2], whole(model, ROWS[2])[[0, 1, 3]], rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_have_the_logits_of_whole_passes(family: str) -> None:
    model = tiny_model(family).to("cuda").requires_grad_(False)
    passes = Forward(model, SHAPE)
    found = fed(passes)
    assert passes._graphs, "no graph was made"
    torch.testing.assert_close(found[1], whole(model, ROWS[1])[[1, 8, 9]], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[2], whole(model, ROWS[2])[[0, 1, 3]], rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["phi3", "gemma3_text"])
def test_compiled_layers_have_the_logits_of_whole_passes(family: str) -> None:
    model = tiny_model(family).to("cuda").requires_grad_(False)
    passes = Forward(model, SHAPE)
    with torch.inference_mode():
        passes.compile()
    assert passes._is_compiled, "the layers were not compiled"
    found = fed(passes)
    torch.testing.assert_close(found[1], whole(model, ROWS[1])[[1, 8, 9]], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[2], whole(model, ROWS[2])[[0, 1, 3]], rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@torch.inference_mode()
def test_rows_are_right_whatever_widths_were_made_before_their_pass() -> None:
    model = tiny_model("phi3").to("cuda").requires_grad_(False)
    passes = Forward(model, Shape(rows=4, longest=512, tokens=512))
    texts = [[3 + (row + 7 * place) % 250 for place in range(count)] for row, count in enumerate((250, 380, 310, 90))]
    numbers = [passes.cache.open() for _ in texts]
    for number, text in zip(numbers, texts, strict=True):  # the third width was made together with the widths around it
        logits = passes.feed([Part(number, 0, text)], [0]).clone()
        wanted = model(input_ids=torch.tensor([text], device="cuda"), use_cache=False).logits[0, -1:]
        torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=1e-3)
    logits = passes.feed([Part(number, len(text), [9]) for number, text in zip(numbers, texts, strict=True)], range(4))
    for found, text in zip(logits.clone(), texts, strict=True):
        wanted = model(input_ids=torch.tensor([[*text, 9]], device="cuda"), use_cache=False).logits[0, -1]
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_only_what_is_wanted_is_given_and_few_logits_of_its_state() -> None:
    model = tiny_model("gemma3_text")
    full, states = Forward(model, SHAPE), Forward(model, SHAPE, states=True)
    ids = torch.tensor([3, 77, 200])
    found = []
    for passes in (full, states):
        one, other = passes.cache.open(), passes.cache.open()
        found.append(passes.feed([Part(one, 0, [1, 2, 3]), Part(other, 0, [4, 5])], [1]))
    assert found[0].shape == (1, 272) and found[1].shape == (1, 32)
    torch.testing.assert_close(few_logits(model, found[1], ids), found[0][:, ids])


@torch.inference_mode()
def test_a_long_instruction_is_taken_in_parts_and_can_be_cut() -> None:
    model, ids = tiny_model("phi3"), list(range(3, 153))
    passes = Forward(model, Shape(rows=1, longest=200, tokens=64))
    passes.share(ids)
    passes.cut(140)
    assert passes.instruction == ids[:140]
    logits = passes.feed([Part(passes.cache.open(), 140, [200, 201])], [0])
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([[*ids[:140], 200, 201]]), use_cache=False).logits[0, -1:]
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)


def test_a_pass_of_fixed_width_is_padded() -> None:
    """Without a GPU, the test checks what a GPU would get."""
    pytest.importorskip("triton")
    cache = SlotCache(3, 64, 100, torch.device("cpu"))
    static = model_runner._Static(torch.device("cpu"), Shape(3, 64, 64), cache, tiny_model("phi3").config)
    spans = [rows.Span(1, 0, 11, 5), rows.Span(3, 11, 7, 6)]
    width = model_runner.fitting(18)
    static.load(torch.arange(4 * 18).view(4, 18).numpy(), torch.tensor([10, 17]).numpy(), spans, width)
    static.ready()
    tokens, last, _, blocks = static.views(width)
    assert width == 32 and tokens[:, :18].tolist() == torch.arange(4 * 18).view(4, 18).tolist()
    assert tokens[:, 18:].unique(dim=1).tolist() == [[0], [0], [100], [4 * 64]] and last.tolist() == [10, 17, 0]
    assert blocks[blocks[:, 2] > 0].tolist() == [[1, 0, 8, 5], [1, 8, 3, 13], [3, 11, 7, 6]]


def test_models_whose_rope_looks_at_positions_or_that_learn_get_no_graphs() -> None:
    frozen = tiny_model("phi3").requires_grad_(False)
    assert model_runner._is_capturable(frozen) and not model_runner._is_capturable(tiny_model("phi3"))
    frozen.config.rope_parameters = {"full_attention": {"rope_type": "longrope"}}
    assert not model_runner._is_capturable(frozen)


def test_too_little_memory_is_said_with_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Forward(tiny_model("phi3"), SHAPE)
    passes._device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**14, 2**30))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with pytest.raises(ModelError, match=r"up to 64 tokens need 0\.0 GiB.*lower train\.max_tokens"):
        passes._capacity()


class NotedGraph:
    """Takes the place of a CUDA graph, which needs a GPU; records the tokens that it would compute."""

    def __init__(self, passes: Forward, width: int):
        self.passes, self.width = passes, width
        self.seen: list[list[list[int]]] = []

    def replay(self) -> None:
        static = self.passes._static
        assert static is not None
        tokens, last, _, blocks = static.views(self.width)
        self.seen.append([*tokens.tolist(), last.tolist(), blocks.flatten().tolist()])


def test_graphs_are_timed_over_padding_and_not_over_the_tokens_of_an_earlier_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Such tokens would overwrite keys of rows that have their slots now, or be past the end of the pass.
    monkeypatch.setattr("spantune.models.queries_per_block", lambda group: 8)
    monkeypatch.setattr(model_runner, "_milliseconds", lambda graph: graph.replay() or float(graph.width))
    passes = Forward(tiny_model("phi3"), Shape(rows=4, longest=64, tokens=256))
    passes._static = model_runner._Static(torch.device("cpu"), passes.shape, passes.cache, passes._config)
    graphs = {width: NotedGraph(passes, width) for width in (128, 192)}
    passes._graphs = {width: (graph, torch.zeros(0)) for width, graph in graphs.items()}  # type: ignore[misc]
    row = passes.cache.open()
    earlier = passes.cache.take(row, 190)
    tokens = np.array([[7] * 190, range(190), earlier, [row * 64] * 190])
    passes._static.load(tokens, np.array([189]), [rows.Span(row, 0, 190, 0)], 192)
    passes._static.ready()
    assert passes._faster(128, 192) == 128
    for width, graph in graphs.items():
        assert len(graph.seen) == model_runner.REPEATS
        for ids, positions, slots, cells, last, blocks in graph.seen:
            assert set(ids) == set(positions) == set(last) == set(blocks) == {0}
            assert set(slots) == {passes.cache.capacity} and set(cells) == {passes.cache.padding_row * 64}
            assert len(ids) == width
