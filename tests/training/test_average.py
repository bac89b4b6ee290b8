"""The moving average of the weights: its values, where the model uses it, and what a checkpoint keeps of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from spantune.core import RunError, parse_config
from spantune.runs import RunFolder, read_metrics, resume_recipe
from spantune.training import train
from spantune.training.average import WeightAverage


def test_the_average_is_that_of_the_steps() -> None:
    weight = torch.zeros(2, requires_grad=True)
    average, expected = WeightAverage([weight], 0.5), torch.zeros(2)
    for step in range(1, 8):
        with torch.no_grad():
            weight.copy_(torch.tensor([step, -step], dtype=torch.float32))
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach()
    with average.in_place():
        assert torch.allclose(weight, expected) and not torch.equal(weight, torch.tensor([7.0, -7.0]))
    assert torch.equal(weight, torch.tensor([7.0, -7.0]))


def test_a_run_goes_on_with_weights_and_average(tree: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    settings = {"average": 0.9, "max_steps": 4, "eval_steps": 2, "eval_before": False}
    whole = train(parse_config(tree(tmp_path / "runs", train=settings, track={"swanlab": "off"}))).folder
    folder = Path(shutil.copytree(whole, tmp_path / "broken" / "tiny"))
    (folder / "report.html").unlink()
    shutil.rmtree(folder / "checkpoints" / "checkpoint-4")
    train(resume_recipe(folder), resume=folder)
    last = Path("checkpoints", "checkpoint-4")
    adapters = [load_file(run / last / "adapter_model.safetensors") for run in (folder, whole)]
    states = [torch.load(run / last / "optimizer.pt")["average"] for run in (folder, whole)]
    for name, value in adapters[1].items():
        assert torch.equal(adapters[0][name], value), name
    for kind in ("weights", "averages"):
        assert all(map(torch.equal, states[0][kind], states[1][kind])), kind
    # The checkpoint's adapter has the averages, and these differ from the weights.
    sums = sorted(float(value.double().sum()) for value in adapters[1].values())
    assert sums == pytest.approx(sorted(float(value.double().sum()) for value in states[1]["averages"]))
    assert sums != pytest.approx(sorted(float(value.double().sum()) for value in states[1]["weights"]))
    losses = [[record["loss"] for record in read_metrics(run) if record["split"] == "train"] for run in (folder, whole)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    evaluations = [record for record in RunFolder(whole).metrics() if record["split"] == "dev"]
    best = max(evaluations, key=lambda record: (record["f1"], record["step"]))
    kept = load_file(whole / "checkpoints" / f"checkpoint-{best['step']}" / "adapter_model.safetensors")
    final = load_file(whole / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(final[name], value) for name, value in kept.items())


def test_a_checkpoint_without_averages_is_refused() -> None:
    average = WeightAverage([torch.zeros(2)], 0.9)
    with pytest.raises(RunError, match=r"no averages .* train\.average needs"):
        average.restore({})
