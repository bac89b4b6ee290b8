"""A full fine-tuning run is resumed bit-equally, extracts with what it saved, and another run can start from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.run_folders import save_run
from spantune.core import Config, ConfigError, parse_config
from spantune.extraction import load_bare
from spantune.runs import read_metrics, resume_recipe
from spantune.training import Result, prepare, train

Tree = Callable[..., dict[str, Any]]


def full_recipe(tree: Tree, folder: Path, **sections: dict[str, Any]) -> Config:
    """Return a short run in bf16, whose optimizer updates fp32 copies."""
    training = {"max_steps": 4, "eval_steps": 2, "eval_before": False, "learning_rate": 0.002}
    plain = tree(folder, **{"model": {"base": "bf16"}, "train": training, "track": {"swanlab": "off"}, **sections})
    return parse_config({**plain, "lora": "full"})


@pytest.fixture(scope="module")
def unbroken(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A finished run; tests must not change its folder."""
    return train(full_recipe(tree, tmp_path_factory.mktemp("full")))


@pytest.mark.no_cover
def test_a_run_that_was_broken_off_ends_as_if_it_had_not_been(unbroken: Result, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(unbroken.folder, tmp_path / "tiny"))
    (folder / "report.html").unlink()
    shutil.rmtree(folder / "checkpoints" / "checkpoint-4")
    train(resume_recipe(folder), resume=folder)
    for name in ("adapter/full.safetensors", "checkpoints/checkpoint-4/full.safetensors"):
        assert (folder / name).read_bytes() == (unbroken.folder / name).read_bytes(), name
    states = [torch.load(run / "checkpoints" / "checkpoint-4" / "optimizer.pt") for run in (folder, unbroken.folder)]
    for resumed, expected in zip(*(state["masters"] for state in states), strict=True):
        assert torch.equal(resumed, expected)
    losses = [
        [record["loss"] for record in read_metrics(run) if record["split"] == "train"]
        for run in (folder, unbroken.folder)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_the_optimizer_keeps_fp32_copies_and_the_model_their_rounding(unbroken: Result) -> None:
    checkpoint = unbroken.folder / "checkpoints" / "checkpoint-4"
    masters = torch.load(checkpoint / "optimizer.pt")["masters"]
    stored = load_file(checkpoint / "full.safetensors")
    assert len(masters) == len(stored) and all(value.dtype == torch.bfloat16 for value in stored.values())
    by_sum = sorted(float(value.float().sum()) for value in stored.values())
    assert sorted(float(value.to(torch.bfloat16).float().sum()) for value in masters) == by_sum
    assert any(not torch.equal(value, value.to(torch.bfloat16).float()) for value in masters)


def test_the_run_folder_is_like_any_other(unbroken: Result) -> None:
    folder = unbroken.folder
    log = (folder / "run.log").read_text(encoding="utf-8")
    assert "full fine-tuning: every weight of the layers and the last norm" in log
    assert "full fine-tuning" in (folder / "report.html").read_text(encoding="utf-8")
    card = (folder / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "(full fine-tuning)" in card and "load_state_dict" in card and "PEFT" not in card
    predicted = [json.loads(line) for line in (folder / "predictions" / "test-4.jsonl").read_text().splitlines()]
    again = load_bare(folder, device="cpu").extract([record["text"] for record in predicted])
    for record, document in zip(predicted, again, strict=True):
        assert [entity["start"] for entity in record["entities"]] == [entity.start for entity in document.entities]


def test_another_run_goes_on_with_it(unbroken: Result, tree: Tree, tmp_path: Path) -> None:
    plain = tree(tmp_path / "runs", train={"from": str(unbroken.folder)}, model={"base": "bf16"})
    plain["train"].pop("learning_rate")
    with pytest.raises(ConfigError, match=r"holds weights of full fine-tuning, and the recipe's .* asks for LoRA"):
        prepare(parse_config(plain))
    del plain["lora"]
    prepared = prepare(parse_config(plain))
    assert prepared.recipe.lora.full and prepared.recipe.lora.rank is None and prepared.start is not None
    assert prepared.recipe.train.learning_rate == pytest.approx(0.002 / 3)
    with pytest.raises(ConfigError, match=r"lora\.full=true .* model\.base=nf4 are quantised"):
        prepare(parse_config({**plain, "model": {**plain["model"], "base": "nf4"}}))


def test_full_fine_tuning_does_not_go_on_with_an_adapter(tree: Tree, tiny_folder: Path, tmp_path: Path) -> None:
    earlier = save_run(tmp_path / "earlier", tiny_folder)
    with pytest.raises(ConfigError, match=r"holds weights of LoRA, and .* asks for full fine-tuning; leave lora out"):
        prepare(full_recipe(tree, tmp_path, train={"from": str(earlier)}))


def test_the_learning_rate_is_lower_than_that_of_an_adapter(tree: Tree, tmp_path: Path) -> None:
    recipe = full_recipe(tree, tmp_path, train={"learning_rate": None})
    assert prepare(recipe).recipe.train.learning_rate == 1e-4
