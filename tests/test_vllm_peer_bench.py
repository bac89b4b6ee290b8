"""bench/vllm_peer.py: how it makes vLLM write gold answers, and how it counts steps; vLLM itself is not needed."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
import torch

from helpers import real


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return real.bench("vllm_peer")


def test_each_row_gets_its_own_next_gold_token(bench: ModuleType) -> None:
    # Row 2 has a prompt of 5 tokens and has just read its last token; row 0 has written two tokens.
    gold = torch.zeros((3, 8), dtype=torch.int64)
    gold[0, :3], gold[2, :2] = torch.tensor([4, 5, 6]), torch.tensor([7, 1])
    starts = torch.tensor([3, 0, 5])
    logits = torch.zeros((2, 9))
    logits[0, 7] = float("-inf")  # the grammar forbids it
    bench.raise_gold(logits, gold, starts, torch.tensor([2, 0]), torch.tensor([4, 4]))
    assert logits[0].tolist() == [0] * 7 + [float("-inf"), 0]
    assert logits[1].argmax() == 6 and logits[1].count_nonzero() == 1


def test_steps_that_take_prompts_in_are_told_from_those_that_only_write(bench: ModuleType) -> None:
    steps = [(0.0, 2, 600), (0.040, 2, 2), (0.050, 3, 3), (0.070, 3, 3)]
    assert bench._in_steps(steps, 0.100) == {
        "steps": 4,
        "ms_of_writing_by_rows": {2: [1, 10.0], 4: [2, 25.0]},
        "ms_with_prompts_by_tokens": {1024: [1, 40.0]},
    }


def test_vllm_finds_the_plugin(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.os, "environ", {"PYTHONPATH": "/elsewhere"})
    monkeypatch.setattr(sys, "path", list(sys.path))
    bench._announce(tmp_path)
    (plugin,) = [plugin for plugin in metadata.entry_points(group="vllm.general_plugins") if plugin.name == "vllm_peer"]
    assert plugin.load().__doc__ == bench.register.__doc__
    assert bench.os.environ["PYTHONPATH"].endswith(":/elsewhere")
