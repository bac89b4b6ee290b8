"""Passes over a slot cache give the logits of whole forward passes, whichever rows are fed together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.fakes import tiny_model
from spantune.core import ModelError
from spantune.extraction import Forward, fixed_passes, model_runner
from spantune.extraction.fixed_passes import Shape
from spantune.extraction.model_runner import Part
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


@pytest.mark.gpu
@torch.inference_mode()
def test_the_first_passes_of_two_widths_are_timed_while_they_compute() -> None:
    model = tiny_model("phi3").to("cuda").requires_grad_(False)
    passes = Forward(model, Shape(rows=4, longest=512, tokens=512))
    text = [3 + (7 * place) % 250 for place in range(150)]
    wanted = model(input_ids=torch.tensor([text], device="cuda"), use_cache=False).logits[0, -1:]
    for _ in range(2 * fixed_passes.REPEATS + 2):
        row = passes.cache.open()
        logits = passes.feed([Part(row, 0, text)], [0]).clone()
        torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=1e-3)
        passes.cache.close(row)
    torch.cuda.synchronize()
    assert passes._graphs is not None and list(passes._graphs) == [256, 384]
    narrow, wide = (passes._graphs[width].fastest for width in (256, 384))
    assert narrow and wide and passes._width(150) == (384 if wide < model_runner.WIDER * narrow else 256)


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
    static = fixed_passes.StaticInputs(torch.device("cpu"), Shape(3, 64, 64), cache, tiny_model("phi3").config)
    spans = [rows.Span(1, 0, 11, 5), rows.Span(3, 11, 7, 6)]
    width = fixed_passes.fitting(18)
    static.load(torch.arange(4 * 18).view(4, 18).numpy(), torch.tensor([10, 17]).numpy(), spans, width)
    static.ready()
    tokens, last, _, blocks = static.views(width)
    assert width == 32 and tokens[:, :18].tolist() == torch.arange(4 * 18).view(4, 18).tolist()
    assert tokens[:, 18:].unique(dim=1).tolist() == [[0], [0], [100], [4 * 64]] and last.tolist() == [10, 17, 0]
    assert blocks[blocks[:, 2] > 0].tolist() == [[1, 0, 8, 5], [1, 8, 3, 13], [3, 11, 7, 6]]


@pytest.mark.parametrize(
    ("count", "width"), [(1, 16), (16, 16), (17, 32), (33, 64), (65, 128), (128, 128), (129, 256), (700, 768)]
)
def test_passes_of_many_tokens_have_few_widths(count: int, width: int) -> None:
    assert fixed_passes.fitting(count) == width


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


class TimedGraph:
    """Takes the place of the graph of a width, which needs a GPU: a replay takes `milliseconds`."""

    def __init__(self, milliseconds: float):
        self._milliseconds, self.timed = milliseconds, 0
        self.is_running = False  # the last timed replay

    @property
    def fastest(self) -> float | None:
        return self._milliseconds if self.timed == fixed_passes.REPEATS and not self.is_running else None

    def replay(self) -> None:
        self.timed = min(self.timed + 1, fixed_passes.REPEATS)


@pytest.mark.parametrize(("wide", "expected"), [(0.9, 384), (0.99, 256), (1.5, 256)])
def test_two_widths_take_turns_until_both_are_timed_and_the_faster_one_stays(wide: float, expected: int) -> None:
    passes = Forward(tiny_model("phi3"), Shape(rows=4, longest=64, tokens=384))
    graphs = {256: TimedGraph(1.0), 384: TimedGraph(wide), 64: TimedGraph(1.0), 128: TimedGraph(0.1)}
    passes._graphs = graphs  # type: ignore[assignment]
    widths = []
    for _ in range(2 * fixed_passes.REPEATS):
        widths.append(passes._width(140))
        graphs[widths[-1]].replay()
    assert widths == [256, 384] * fixed_passes.REPEATS
    graphs[384].is_running = True
    assert passes._width(140) == 256
    graphs[384].is_running = False
    assert passes._width(140) == expected
    assert passes._width(50) == 64  # a pass of few tokens reads the weights, which takes as long at any width
    assert passes._width(300) == 384  # there is none wider
