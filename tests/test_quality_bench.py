"""The study bench/quality.py: the order in which its jobs run, and the averages of adapters."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from helpers import real


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scripts of the study import each other."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))


@pytest.fixture
def soup(scripts: None) -> ModuleType:
    return real.bench("quality_soup")


def random_adapters(count: int, rank: int) -> list[dict[str, torch.Tensor]]:
    """Return random adapters of one layer with 5 input and 4 output features."""
    return [
        {"layer.lora_A.weight": torch.randn(rank, 5), "layer.lora_B.weight": torch.randn(4, rank)} for _ in range(count)
    ]


def test_the_mean_product_changes_a_layer_by_the_mean_of_what_the_adapters_change(soup: ModuleType) -> None:
    adapters = random_adapters(3, rank=2)
    joined = soup.mean_product(adapters)
    changes = [adapter["layer.lora_B.weight"] @ adapter["layer.lora_A.weight"] for adapter in adapters]
    torch.testing.assert_close(
        joined["layer.lora_B.weight"] @ joined["layer.lora_A.weight"], torch.stack(changes).mean(0)
    )
    assert joined["layer.lora_A.weight"].shape == (6, 5)


def test_the_mean_of_weights_keeps_their_type(soup: ModuleType) -> None:
    parts = [{"bias": torch.tensor([1.0, 3.0], dtype=torch.bfloat16)}, {"bias": torch.tensor([2.0, 6.0])}]
    found = soup.mean(parts)["bias"]
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [1.5, 4.5]


def test_an_adapter_of_a_larger_rank_has_the_same_scale(soup: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({"r": 64, "lora_alpha": 128, "target_modules": ["q_proj"]}))
    soup.multiply_rank(path, 3)
    assert json.loads(path.read_text()) == {"r": 192, "lora_alpha": 384, "target_modules": ["q_proj"]}


def test_a_soup_runs_in_order_and_others_use_the_places_that_it_leaves(scripts: None, tmp_path: Path) -> None:
    quality, jobs = real.bench("quality"), real.bench("quality_jobs")
    first, *members, average = jobs.soup(42, {})
    other = jobs.spans_job("final", "other", "cmeee_v1", 42, {})
    events: list[tuple[str, str]] = []

    class Recorded(quality.Study):  # type: ignore[name-defined,misc]
        def _run(self, job: dict[str, Any]) -> dict[str, Any]:
            events.append(("begins", job["name"]))
            time.sleep(0.05)
            events.append(("ends", job["name"]))
            return {"f1": 0.5, "seconds": 0.0}

    pending = [first, *members, average, other]
    study = Recorded(pending, tmp_path / "results.jsonl", tmp_path, tmp_path, "cpu", time.monotonic() + 1000, workers=3)
    threads = [threading.Thread(target=study.work, args=(None,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert events[:2] == [("begins", first["name"]), ("ends", first["name"])], "another job had a place of the members"
    assert {name for _, name in events[2:5]} == {member["name"] for member in members}
    average_began = events.index(("begins", average["name"]))
    assert all(events.index(("ends", member["name"])) < average_began for member in members)
    assert ("ends", other["name"]) in events
    assert not study.pending
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 6
