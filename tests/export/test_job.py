"""Exporting a run: what is written, what is refused, and that no incomplete export is left."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import spantune
from helpers.run_folders import READING, copy_run, save_run
from spantune.core import ConfigError, DataError, ModelError, RunError, config
from spantune.export import ExportSettings, export_run, job, merged
from spantune.models import load

FAST = ExportSettings(verify=0, device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A run that writes answers, over a model in a local folder."""
    return save_run(tmp_path_factory.mktemp("runs") / "plain", tiny_folder)


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A run that reads spans."""
    return save_run(tmp_path_factory.mktemp("runs") / "reading", tiny_folder, READING)


def test_a_merged_export_computes_what_the_run_computes(trained: Any, tmp_path: Path) -> None:
    exported = export_run(trained.folder, "merged", tmp_path / "out", ExportSettings(verify=6, device="cpu"))
    assert exported.verified is not None and exported.verified.entities > 0
    assert exported.verified.logits is not None and exported.verified.logits < 1e-4
    assert exported.verified.rounding is None  # the tiny base is in fp32
    model = load(config.Model(source=str(tmp_path / "out"), base="fp32", device="cpu")).model
    assert not any("lora" in name for name, _ in model.named_parameters())
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    extractor = spantune.load(trained.folder, device="cpu")
    assert (settings["eos_token_id"], settings["do_sample"]) == (extractor.encoder.stop_id, False)
    assert json.loads((tmp_path / "out" / "task.json").read_text())["labels"]
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1


def test_weights_rounded_to_bf16_are_compared_with_rounded_ones(run: Path, corpus: Path, tmp_path: Path) -> None:
    settings = ExportSettings(dtype="bf16", verify=2, data=str(corpus / "dev.jsonl"), device="cpu", shard_size="60KB")
    exported = export_run(run, "merged", tmp_path / "out", settings)
    assert exported.verified is not None and exported.verified.rounding is not None
    assert exported.verified.logits is not None and exported.verified.logits < 1e-4 < exported.verified.rounding
    shards = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(shards.values())) > 1
    weights = {
        name: tensor for file in set(shards.values()) for name, tensor in load_file(tmp_path / "out" / file).items()
    }
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def _damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the weights on the disk differ from those that were written."""

    def damage(_: object, out: Path) -> None:
        weights = load_file(out / "model.safetensors")
        save_file(
            {name: tensor * 1.01 for name, tensor in weights.items()}, out / "model.safetensors", {"format": "pt"}
        )

    monkeypatch.setattr(merged, "copy_terms", damage)


@pytest.mark.parametrize("keep", [False, True])
def test_an_export_that_differs_is_refused(
    keep: bool, run: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _damage(monkeypatch)
    settings = ExportSettings(verify=2, data=str(corpus / "dev.jsonl"), device="cpu", keep=keep)
    with pytest.raises(ModelError, match="logits of the export differ from the run's by up to"):
        export_run(run, "merged", tmp_path / "out", settings)
    assert [path.name for path in tmp_path.iterdir()] == (["out.differs"] if keep else [])


def test_a_folder_that_is_not_empty_is_not_written_into(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep me", encoding="utf-8")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        export_run(run, "merged", out, FAST)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    export_run(run, "merged", out, FAST, force=True)
    assert (out / "config.json").is_file() and not (out / "mine.txt").exists()
    with pytest.raises(ConfigError, match="is read from"):
        export_run(run, "merged", run, FAST, force=True)


def test_a_full_disk_leaves_nothing(
    run: Path, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk(80_000)
    with pytest.raises(DataError, match=r"the export needs \S+ GB and the disk has"):
        export_run(run, "merged", disk / "out", FAST)
    monkeypatch.setattr(job, "count_weights", lambda _: -(1 << 28))  # passes the check; then the disk is full
    with pytest.raises(DataError, match=r"free some space|choose another place") as caught:
        export_run(run, "merged", disk / "out", FAST)
    assert "\n" not in str(caught.value) and not list(disk.iterdir())


def test_what_does_not_suit_the_run_is_said_before_the_model_is_loaded(
    run: Path, reading: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spantune.export.source.load", None)
    cases: list[tuple[Path, str, ExportSettings, str]] = [
        (run, "spans", FAST, "has no head"),
        (reading, "merged", FAST, "--to spans"),
        (reading, "gguf", FAST, "--to spans"),
        (run, "onnx", FAST, "unknown; valid: adapter, gguf, merged, spans"),
        (run, "adapter", FAST, "give the model's name on a hub with --base-name"),
        (run, "adapter", replace(FAST, base_name="/models/phi-4"), "expected the name of a model on a hub"),
        (run, "adapter", replace(FAST, split=True), "Llama-shaped copy"),
    ]
    for folder, to, settings, message in cases:
        with pytest.raises(ConfigError, match=re.escape(message)):
            export_run(folder, to, tmp_path / "out", settings)
    with pytest.raises(DataError, match=r"give --verify 0"):
        export_run(run, "merged", tmp_path / "out", ExportSettings(device="cpu"))
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_not_whole_is_refused(run: Path, tmp_path: Path) -> None:
    unfinished = copy_run(run, tmp_path / "unfinished")
    (unfinished / "report.html").unlink()
    with pytest.raises(RunError, match="is not finished"):
        export_run(unfinished, "merged", tmp_path / "out", FAST)
    bare = copy_run(run, tmp_path / "bare")
    shutil.rmtree(bare / "adapter")
    with pytest.raises(RunError, match="no adapter here"):
        export_run(bare, "merged", tmp_path / "out", FAST)
    with pytest.raises(ConfigError, match="dtype 'fp16' is unknown"):
        ExportSettings(dtype="fp16")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="shard_size 'big': expected a size such as 500MB"):
        ExportSettings(shard_size="big")
    with pytest.raises(ConfigError, match="verify=-1"):
        ExportSettings(verify=-1)


def test_the_card_shows_code_that_runs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_run(run, "merged", tmp_path / "out", replace(FAST, license="mit"))
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "license: mit" in card and "F1 on the dev documents was 0.5000" in card and str(tmp_path) not in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(tmp_path / "out")
    names: dict[str, Any] = {}
    exec(code, names)
    encoder = spantune.load(run, device="cpu").encoder
    assert names["ids"]["input_ids"][0].tolist() == encoder.prompt_ids(names["text"])


def test_an_export_says_how_it_is_served(run: Path, tmp_path: Path) -> None:
    exported = export_run(run, "merged", tmp_path / "my model", FAST)
    assert exported.as_dict()["verified"] is None
    serve, ask, extract = (command.line for command in exported.commands)
    assert serve.startswith(f"vllm serve '{tmp_path / 'my model'}' --served-model-name 'my model' --max-model-len ")
    assert serve.endswith("--structured-outputs-config.backend guidance")
    assert "example.json'" in ask and extract.endswith("--model 'my model'")
    request = json.loads((tmp_path / "my model" / "example.json").read_text(encoding="utf-8"))
    grammar = (tmp_path / "my model" / "example.lark").read_text(encoding="utf-8")
    assert request["structured_outputs"] == {"grammar": grammar} and request["model"] == "my model"
    assert all(type(token) is int for token in request["prompt"])
