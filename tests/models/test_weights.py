"""A base model is loaded only if every weight is that of its checkpoint and is finite."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.fakes import MERGES, byte_tokenizer, save_model, tiny_model
from spantune.core import ModelError, config
from spantune.models import load, weights

NORM, DOWN = "model.layers.1.input_layernorm.weight", "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, which the test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def loaded(folder: Path, **settings: Any) -> Any:
    return load(config.Model(source=str(folder), base="fp32", device="cpu", **settings)).model


def set_value(tensors: dict[str, torch.Tensor], name: str, value: float, dtype: torch.dtype = torch.float32) -> None:
    tensors[name] = tensors[name].to(dtype)
    tensors[name].view(-1)[-1] = value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(NORM), f"weights are missing: {NORM}; copy or download the model again"),
        (lambda tensors: tensors.pop("lm_head.weight"), "weights are missing: lm_head.weight;"),
        (
            lambda tensors: [tensors.pop(name) for name in sorted(tensors)[1:7]],
            "weights are missing: model.embed_tokens.weight, model.layers.0.input_layernorm.weight, "
            "model.layers.0.mlp.down_proj.weight and 3 more;",
        ),
        (
            lambda tensors: tensors.update({"model.extra.weight": torch.ones(2)}),
            "weights have no place in the model: model.extra.weight (set model.verify=false to go on without them);",
        ),
        (
            lambda tensors: tensors.update({DOWN: torch.ones(32, 47)}),
            f"weights are of another shape: {DOWN} is [32, 47] and config.json says [32, 48];",
        ),
        (lambda tensors: set_value(tensors, NORM, float("nan")), f"weights hold NaN or infinity: {NORM};"),
        (lambda tensors: set_value(tensors, DOWN, -float("inf")), f"weights hold NaN or infinity: {DOWN};"),
        (lambda tensors: set_value(tensors, DOWN, float("nan"), torch.bfloat16), f"NaN or infinity: {DOWN};"),
        (lambda tensors: set_value(tensors, DOWN, float("nan"), torch.float8_e4m3fn), f"NaN or infinity: {DOWN};"),
    ],
)
def test_a_weight_that_is_not_as_expected_is_named(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], said: str
) -> None:
    edit(folder, change)
    with pytest.raises(ModelError) as caught:
        loaded(folder)
    assert str(caught.value).startswith(f"{folder}: ") and said in str(caught.value)


def test_the_largest_numbers_of_a_type_are_finite(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[DOWN] = torch.full((32, 48), 60000.0).half()

    edit(folder, change)
    assert float(loaded(folder).get_parameter(DOWN).detach().max()) == 60000


def test_weights_without_a_place_can_be_left_out_in_words(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(folder, lambda tensors: tensors.update({"model.extra.weight": torch.ones(2)}))
    with caplog.at_level(logging.WARNING, "spantune"):
        loaded(folder, verify=False)
    assert caplog.messages == [f"{folder}: weights have no place in the model and are not used: model.extra.weight"]
    edit(folder, lambda tensors: tensors.pop(NORM))
    with pytest.raises(ModelError, match="weights are missing"):
        loaded(folder, verify=False)


@pytest.mark.parametrize("family", ["gemma3_text", "qwen2"])
def test_the_head_of_a_tied_model_is_not_missing(tmp_path: Path, family: str) -> None:
    folder = save_model(tmp_path / "model", family, MERGES)
    tied = tiny_model(family, vocabulary=len(byte_tokenizer(MERGES)) + 3, tie_word_embeddings=True)
    tied.save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model = loaded(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    edit(folder, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    with pytest.raises(ModelError, match=r"weights are missing: .*embed_tokens"):
        loaded(folder)


def test_buffers_of_older_checkpoints_stay_fine(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "llama", MERGES)
    inverse = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in (0, 1)}
    edit(folder, lambda tensors: tensors.update(inverse))
    assert loaded(folder) is not None


def test_a_file_is_searched_once_until_it_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPANTUNE_CACHE", str(tmp_path / "cache"))
    searched: list[str] = []
    search = weights._non_finite_in
    monkeypatch.setattr(weights, "_non_finite_in", lambda path: searched.append(path.name) or search(path))
    before = time.time() - 60
    os.utime(folder / "model.safetensors", (before, before))
    loaded(folder), loaded(folder)
    assert searched == ["model.safetensors"]
    edit(folder, lambda tensors: set_value(tensors, NORM, float("nan")))
    os.utime(folder / "model.safetensors", (before + 1, before + 1))
    for _ in range(2):
        with pytest.raises(ModelError, match=f"NaN or infinity: {NORM};"):
            loaded(folder)
    assert searched == ["model.safetensors"] * 2


@pytest.mark.parametrize(
    "index",
    [
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 5}}',
        '{"weight_map": {"a": "../model.safetensors"}}',
        '{"weight_map": {"a": ["x"]}}',
        "[" * 100_000,
    ],
)
def test_an_index_that_is_no_mapping_is_refused(folder: Path, index: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    path = folder / "model.safetensors.index.json"
    path.write_text(index, encoding="utf-8")
    with pytest.raises(ModelError, match=f"{path}: not an index of shards"):
        loaded(folder)
    names = load_file(folder / "model-00001-of-00001.safetensors")
    path.write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}), "utf-8"
    )
    assert loaded(folder) is not None
