"""`adapter/` is complete, is that of the best recorded evaluation, and survives a full disk and a resume."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from helpers.packs import adapted
from helpers.reading import reader
from spantune.core import RunError
from spantune.models import copy_trained, require_head, save_trained
from spantune.runs import BestAdapter, Checkpoints


class Training:
    """A model whose adapter is set to the number of the step, with its checkpoints."""

    def __init__(self, folder: Path):
        self.folder, self.model = folder, adapted("llama")
        self.checkpoints = Checkpoints(folder / "checkpoints", keep=9)
        self.best = self.begin()

    def begin(self) -> BestAdapter:
        def complete(folder: Path) -> None:
            (folder / "task.json").write_text("{}")

        return BestAdapter(self.folder, self.model, complete, save_trained, copy_trained)

    def step(self, step: int, f1: float, save: bool = True) -> bool:
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.fill_(step)
        kept = self.best.offer(step, {"f1": f1, "f1_low": 0.0, "precision": 1.0})
        if save:
            assert self.checkpoints.write(step, lambda folder: self.model.save_pretrained(str(folder)))
        return kept

    @property
    def kept(self) -> int:
        """The number in the adapter on the disk, after checking that it is complete and equals its evaluation."""
        folder = self.folder / "adapter"
        weights = load_file(folder / "adapter_model.safetensors")
        assert weights.keys() == get_peft_model_state_dict(self.model).keys()
        (number,) = {int(value) for weight in weights.values() for value in weight.unique()}
        assert json.loads((folder / "evaluation.json").read_text())["step"] == number
        assert (folder / "task.json").is_file() and (folder / "adapter_config.json").is_file()
        assert not list(self.folder.glob("adapter.*"))
        return number


def records(**f1s: float) -> list[dict[str, Any]]:
    return [{"step": int(name[1:]), "f1": f1} for name, f1 in f1s.items()]


def test_the_best_is_kept_and_the_later_of_equals(tmp_path: Path) -> None:
    training = Training(tmp_path)
    assert training.step(2, 0.3) and training.kept == 2
    assert not training.step(4, 0.2) and training.kept == 2
    assert training.step(6, 0.3) and training.kept == 6
    assert (training.best.step, training.best.f1) == (6, 0.3)
    assert json.loads((tmp_path / "adapter" / "evaluation.json").read_text()) == {"step": 6, "f1": 0.3, "f1_low": 0.0}


@pytest.mark.parametrize(
    ("of", "kept"),
    [
        ({"s2": 0.3, "s4": 0.5, "s6": 0.4}, 4),
        ({"s2": 0.3, "s4": 0.5}, 4),
        ({"s2": 0.3}, 2),  # later evaluations were removed by the resume
        ({"s2": 0.5, "s4": 0.5, "s6": 0.1}, 4),
    ],
)
def test_a_resumed_run_has_the_adapter_that_was_best_then(of: dict[str, float], kept: int, tmp_path: Path) -> None:
    training = Training(tmp_path)
    for step in (2, 4, 6):
        training.step(step, step / 10)
    training.best = training.begin()
    training.best.settle(records(**of), training.checkpoints)
    assert training.kept == kept == training.best.step and training.best.f1 == of[f"s{kept}"]
    assert training.step(8, 0.6) and not training.step(10, 0.1)


def test_a_run_without_an_evaluation_has_no_adapter(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.step(2, 0.5)
    training.best = training.begin()
    training.best.settle([], training.checkpoints)
    assert not (tmp_path / "adapter").exists() and training.best.step is None
    assert training.step(2, 0.0) and training.kept == 2


def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.step(2, 0.5, save=False)
    (tmp_path / "adapter").rename(tmp_path / "adapter.old")
    (tmp_path / "adapter.tmp").mkdir()
    training.best.settle(records(s2=0.5), training.checkpoints)
    shutil.rmtree(tmp_path / "adapter.tmp")
    assert training.kept == 2


def test_a_best_that_is_lost_is_said_and_the_next_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training = Training(tmp_path)
    for step, f1 in ((2, 0.4), (4, 0.5), (6, 0.6)):
        training.step(step, f1)
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-4")
    training.best.settle(records(s2=0.4, s4=0.5), training.checkpoints)
    assert training.kept == 2 and "the adapter of step 4, F1 0.5000, is lost" in caplog.text


def test_a_full_disk_keeps_the_best_in_memory(
    small_disk: Callable[[int], Path], caplog: pytest.LogCaptureFixture
) -> None:
    disk = small_disk(1 << 20)
    training = Training(disk)
    assert training.step(2, 0.3, save=False)
    filler = disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - 4096))
    with caplog.at_level(logging.WARNING):
        assert training.step(4, 0.5, save=False)
    assert training.kept == 2 and "(No space left on device); it is kept in memory" in caplog.text
    assert not training.step(6, 0.4, save=False)
    with pytest.raises(RunError, match="the best adapter could not be written; free some space, and go on with"):
        training.best.require()
    filler.unlink()
    assert training.best.require() == disk / "adapter" and training.kept == 4


def test_what_is_kept_in_memory_has_the_thresholds_of_its_step(tmp_path: Path) -> None:
    model = reader()
    head, is_full = require_head(model), True

    def save(model: Any, folder: Path, weights: Any) -> None:
        if is_full:
            raise OSError("no space")
        save_trained(model, folder, weights)

    best = BestAdapter(tmp_path, model, lambda folder: None, save, copy_trained)
    head.set_thresholds(0.25, {})
    assert best.offer(2, {"f1": 0.5})
    head.set_thresholds(0.75, {})
    with torch.no_grad():
        head.bias.add_(1)
    is_full = False
    best.retry()
    stored = load_file(tmp_path / "adapter" / "head.safetensors")
    assert torch.sigmoid(stored["thresholds"]).tolist() == pytest.approx([0.25, 0.25])
    assert torch.equal(stored["bias"] + 1, head.bias)


def test_an_adapter_that_was_changed_meanwhile_is_restored_on_a_resume(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training(tmp_path)
    training.step(2, 0.5)
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"changed")
    training.best.settle(records(s2=0.5), training.checkpoints)
    assert training.kept == 2
    assert "adapter was changed after it was written: adapter_model.safetensors has 7 bytes" in caplog.text
