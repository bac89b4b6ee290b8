"""Exporting a plain adapter: scales folded in, ranks made equal, fused projections split; PEFT's logits are equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.fakes import tiny_model
from helpers.run_folders import READING, save_run
from spantune.core import ConfigError, ModelError
from spantune.export import ExportSettings, export_run
from spantune.export.adapter import llama_copy, save_adapter, split_fused
from spantune.models import PlainLora, fold_lora

IDS = torch.arange(5, 25)[None]


def _adapted(family: str, folder: Path, **settings: Any) -> Tensor:
    """Save an adapter with random weights for a tiny model, and return the model's logits."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(2)
    wanted = LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **settings})
    adapted = get_peft_model(tiny_model(family), wanted)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    adapted.save_pretrained(folder)
    if not isinstance(settings.get("target_modules"), list):  # spantune writes their names, PEFT here their type
        saved = json.loads((folder / "adapter_config.json").read_text())
        saved["target_modules"] = sorted(saved["target_modules"])
        (folder / "adapter_config.json").write_text(json.dumps(saved))
    return _logits(adapted)


@torch.inference_mode()
def _logits(model: Any) -> Tensor:
    logits: Tensor = model.eval()(input_ids=IDS).logits
    return logits


def _loaded(model: Any, folder: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(folder))


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"use_rslora": True}),
        ("gemma3_text", {"use_rslora": True, "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7}}),
        ("phi3", {"alpha_pattern": {"o_proj": 3.0}, "rank_pattern": {"down_proj": 6}, "lora_dropout": 0.5}),
        ("llama", {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 5}),
    ],
)
def test_a_plain_adapter_computes_the_same(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    wanted = _adapted(family, tmp_path / "trained", **settings)
    lora = fold_lora(tmp_path / "trained")
    out = tmp_path / "plain"
    out.mkdir()
    save_adapter(lora, "owner/base", out)
    saved = json.loads((out / "adapter_config.json").read_text())
    assert saved["lora_alpha"] == saved["r"] == lora.rank == max([4, *settings.get("rank_pattern", {}).values()])
    assert not (saved["use_rslora"] or saved["rank_pattern"] or saved["alpha_pattern"] or saved["lora_dropout"])
    assert saved["base_model_name_or_path"] == "owner/base"
    assert saved["target_modules"] == sorted(saved["target_modules"]) == lora.targets
    found = _logits(_loaded(tiny_model(family), out))
    assert (found - wanted).abs().max() < 1e-4 < (wanted - _logits(tiny_model(family))).abs().max()


def test_a_fused_adapter_is_split_exactly(tmp_path: Path) -> None:
    wanted = _adapted("phi3", tmp_path / "trained", use_rslora=True)
    base = tiny_model("phi3")
    lora = split_fused(fold_lora(tmp_path / "trained"), base.config)
    assert lora.targets == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    copy: Any = llama_copy(base)
    assert copy.config.model_type == "llama" and (_logits(copy) - _logits(base)).abs().max() < 1e-5
    out = tmp_path / "split"
    out.mkdir()
    save_adapter(lora, "owner/copy", out)
    assert (_logits(_loaded(copy, out)) - wanted).abs().max() < 1e-4


def test_other_shapes_are_not_split() -> None:
    half = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    for model in (tiny_model("llama"), tiny_model("phi3", rope_parameters=half)):
        with pytest.raises(ConfigError, match="--split is for models of type phi3"):
            split_fused(PlainLora(4, {}), model.config)


def test_a_dora_is_refused(tmp_path: Path) -> None:
    _adapted("llama", tmp_path, use_dora=True)
    with pytest.raises(ModelError, match="--to merged"):
        fold_lora(tmp_path)


@pytest.mark.parametrize("split", [False, True])
def test_an_exported_adapter_is_compared(split: bool, tiny_folder: Path, corpus: Path, tmp_path: Path) -> None:
    run = save_run(tmp_path / "runs" / "plain", tiny_folder)
    settings = ExportSettings(
        split=split, base_name="owner/base", verify=2, data=str(corpus / "dev.jsonl"), device="cpu"
    )
    exported = export_run(run, "adapter", tmp_path / "out", settings)
    assert exported.verified is not None and exported.verified.logits is not None
    assert exported.verified.logits < 1e-4
    assert exported.commands[0].line.startswith("vllm serve owner/base --enable-lora --max-lora-rank 8 ")
    written = "".join(
        path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir() if path.suffix != ".safetensors"
    )
    assert str(tiny_folder) not in written and str(tmp_path) not in written


def test_the_adapter_of_a_run_that_reads_has_its_head_and_loader(tiny_folder: Path, tmp_path: Path) -> None:
    run = save_run(tmp_path / "runs" / "reading", tiny_folder, READING)
    export_run(run, "adapter", tmp_path / "out", ExportSettings(base_name="owner/base", verify=0, device="cpu"))
    from spantune import load
    from spantune.export.span_reader import SpanReader

    text = "abdomen with entity it"
    found = SpanReader(tmp_path / "out", base=str(tiny_folder))(text)
    wanted = load(run, device="cpu").extract(text).entities
    assert [(row["start"], row["end"], row["label"]) for row in found] == [(e.start, e.end, e.label) for e in wanted]
    assert wanted
