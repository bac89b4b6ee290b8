"""`spantune.models.direct`: models read directly equal those that transformers reads; other models are left to it."""

from __future__ import annotations

import filecmp
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.fakes import byte_tokenizer, tiny_model
from spantune.models.bundled import RECORD
from spantune.models.direct import read_model, read_tokenizer
from spantune.models.loading import load_config_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer: Any = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_tokenizer_is_as_transformers_reads_it(folder: Path, tmp_path: Path) -> None:
    direct: Any = read_tokenizer(folder)
    whole: Any = AutoTokenizer.from_pretrained(folder)
    assert type(direct) is type(whole)
    assert direct.backend_tokenizer.to_str() == whole.backend_tokenizer.to_str()
    names = ("all_special_ids", "added_tokens_decoder", "chat_template", "padding_side", "name_or_path")
    for name in names:
        assert getattr(direct, name) == getattr(whole, name)
    direct.save_pretrained(tmp_path / "direct")
    whole.save_pretrained(tmp_path / "whole")
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert filecmp.cmpfiles(tmp_path / "direct", tmp_path / "whole", files, shallow=False) == (files, [], [])


@pytest.mark.parametrize("change", [{"tokenizer_class": "GemmaTokenizer"}, {"add_bos_token": True}, {"pad_token": {}}])
def test_a_tokenizer_with_other_settings_is_left_to_transformers(folder: Path, change: dict[str, object]) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert read_tokenizer(folder) is None


def test_a_tokenizer_without_its_added_tokens_in_front_is_left_to_transformers(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({"model": tree.pop("model")} | tree))
    assert read_tokenizer(folder) is None


@pytest.mark.parametrize("family", ["gemma3_text", "llama"])
def test_a_model_is_as_transformers_reads_it(tmp_path: Path, family: str) -> None:
    tiny_model(family).to(torch.bfloat16).save_pretrained(tmp_path)
    config = load_config_of(tmp_path)
    assert read_model(tmp_path, config, torch.float32) is None  # it was not converted by spantune
    (tmp_path / RECORD).write_text("{}")
    direct = read_model(tmp_path, config, torch.float32)
    assert direct is not None
    whole = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="sdpa")
    for own, expected in ((direct.parameters, whole.parameters), (direct.buffers, whole.buffers)):
        assert len(list(own())) == len(list(expected()))
        assert all(torch.equal(left, right) for left, right in zip(own(), expected(), strict=True))
    assert [name for name, _ in direct.named_buffers()] == [name for name, _ in whole.named_buffers()]
    assert direct.get_output_embeddings().weight.data_ptr() == direct.get_input_embeddings().weight.data_ptr() or (
        not whole.config.tie_word_embeddings
    )


def test_a_model_of_other_shapes_is_left_to_transformers(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    (tmp_path / RECORD).write_text("{}")
    config = load_config_of(tmp_path)
    config.intermediate_size += 8
    assert read_model(tmp_path, config, torch.float32) is None
