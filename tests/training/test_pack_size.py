"""Packs are larger than the default only if a step fills them and they are predicted to fit on the GPU."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.real import bench
from spantune.core import config, parse_config
from spantune.encoding import Example, divide, fill
from spantune.training import pack_size, prepare
from spantune.training.job import _agreed
from spantune.training.memory import GIB, predict_memory
from spantune.training.pack_size import MOST, Load, largest_packs, with_pack_tokens
from spantune.training.plan import skeleton
from spantune.training.preparation import Prepared

PREFIX = 178
LENGTHS = bench("scale").drawn_lengths()


def packs(load: Load, size: int) -> list[list[int]]:
    """Return the tokens of each pack of rank 0, for ten steps of a load."""
    draw, found = random.Random(1), []
    for _ in range(10):
        step = [draw.choice(load.lengths) for _ in range(load.examples)]
        own = [step[index] for index in divide(step, load.ranks)[0]]
        found.append([load.prefix + sum(own[index] for index in pack) for pack in fill(own, size - load.prefix)])
    return found


@pytest.mark.parametrize(("examples", "ranks", "count"), [(16, 1, 1), (64, 1, 2), (64, 2, 1), (64, 4, 1), (256, 1, 6)])
def test_a_step_is_as_few_packs_as_can_be_and_they_are_even(examples: int, ranks: int, count: int) -> None:
    load = Load(LENGTHS, PREFIX, examples, ranks)
    size = largest_packs(load, 4096, lambda tokens: True)
    steps = packs(load, size)
    assert statistics.median(map(len, steps)) == count
    assert all(0.6 * max(step) < min(step) and max(step) <= size for step in steps)
    assert size == 4096 if examples / ranks == 16 else 4096 < size <= MOST["cuda"]


def test_memory_bounds_the_size() -> None:
    load = Load(LENGTHS, PREFIX, 256)
    assert largest_packs(load, 4096, lambda tokens: tokens < 4300) == 4096
    assert 4096 < largest_packs(load, 4096, lambda tokens: tokens < 6000) < 6000
    assert largest_packs(load, 9000, lambda tokens: True) == 9000  # one example has this length


@pytest.fixture
def on_gpu(tmp_path: Path, tree: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that prepares the tiny recipe with steps of 6,600 tokens or more on a GPU with `free` bytes."""

    def make(free: float, **sections: dict[str, Any]) -> Prepared:
        monkeypatch.setattr(pack_size, "pick_device", lambda device: torch.device("cuda"))
        monkeypatch.setattr(pack_size, "available_bytes", lambda device: free)
        sections["train"] = {"batch_examples": 64, **sections.get("train", {})}
        strategy = sections.pop("distributed", {})
        found = prepare(parse_config(tree(tmp_path / "runs", **sections) | {"distributed": strategy}))
        examples = (
            Example(str(number), (*found.prefix, number, *[5] * 102), len(found.prefix) + 50) for number in range(64)
        )
        return replace(found, examples=tuple(examples))

    return make


def chosen(prepared: Prepared, ranks: int = 1) -> int:
    """Return the chosen pack size on the GPU that `on_gpu` pretends; the model is on the meta device."""
    return pack_size.pack_size(prepared, skeleton(prepared.files.config), ranks)


def test_a_gpu_with_room_gets_packs_that_hold_its_share_of_a_step(on_gpu: Any) -> None:
    prepared = on_gpu(80 * GIB)
    assert chosen(prepared) > 6400 and chosen(prepared, ranks=2) == 4096
    assert chosen(on_gpu(80 * GIB, train={"pack_tokens": 2048})) == 2048
    assert chosen(on_gpu(80 * GIB, distributed={"strategy": "fsdp"})) == 4096  # with FSDP a step cannot be split
    size = chosen(prepared)
    memory = predict_memory(skeleton(prepared.files.config), prepared.recipe, torch.device("cuda"), size)
    needed = memory.total_gib * GIB / pack_size.ROOM["cuda"]
    assert chosen(on_gpu(1.01 * needed)) == size and chosen(on_gpu(0.99 * needed)) < size


def test_the_chosen_size_is_in_the_recipe_of_the_run(on_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = on_gpu(80 * GIB)
    filled = with_pack_tokens(prepared, 6656)
    assert filled.recipe.train.pack_tokens == filled.pack_tokens("cuda") == 6656
    assert with_pack_tokens(filled, 4096) is filled
    monkeypatch.setattr(pack_size, "pick_device", lambda device: torch.device("cpu"))
    assert with_pack_tokens(prepared, 1024) is prepared  # a run on a GPU may be resumed with it


def test_a_cpu_gets_larger_packs_where_half_its_memory_holds_them(on_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = on_gpu(80 * GIB)
    cpu, model = torch.device("cpu"), skeleton(prepared.files.config)
    monkeypatch.setattr(pack_size, "pick_device", lambda device: cpu)
    size = chosen(prepared)
    assert 1024 < size <= 2048 and with_pack_tokens(prepared, size).pack_tokens("cpu") == size
    needed = 2 * predict_memory(model, prepared.recipe, cpu, size).total_gib * GIB
    for share, expected in ((1.01, size), (0.99, 1024)):
        monkeypatch.setattr(pack_size, "available_bytes", lambda device, share=share: share * needed)
        assert chosen(prepared) == expected


def test_ranks_agree_on_what_the_recipe_leaves_open_and_on_nothing_else(on_gpu: Any) -> None:
    def gather(own: config.Train) -> list[config.Train]:
        return [own, own.model_copy(update={"pack_tokens": 2048, "keep": "none"})]

    two: Any = SimpleNamespace(size=2, gather=gather)
    agreed = _agreed(on_gpu(80 * GIB), two).recipe.train
    assert (agreed.pack_tokens, agreed.keep) == (2048, "some")
    named = _agreed(on_gpu(80 * GIB, train={"pack_tokens": 3000, "keep": "most"}), two).recipe.train
    assert (named.pack_tokens, named.keep) == (3000, "most")
