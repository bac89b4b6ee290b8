"""GGUF export: what is refused before any computation, the tokenizer's files, and errors of the converter."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from helpers.run_folders import READING, save_run
from spantune.core import ConfigError, DataError, ModelError
from spantune.export import ExportSettings, export_run, gguf, llama_cpp
from spantune.export.gguf_tokenizer_files import sentencepiece_model

FAST = ExportSettings(verify=0, device="cpu")
VOCABULARY = {
    "tokenizer.ggml.tokens": ["<pad>", "<eos>", "<bos>", "<unk>", "\n\n", "▁", "a", "b", "ab", "▁ab", "患者"],
    "tokenizer.ggml.scores": [-1000.0] * 5 + [-1.0, -2.0, -3.0, 0.0, -0.5, -0.25],
    "tokenizer.ggml.token_type": [3, 3, 3, 3, 4, 1, 1, 1, 1, 1, 1],
    "tokenizer.ggml.unknown_token_id": 3,
    "tokenizer.ggml.bos_token_id": 2,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.padding_token_id": 0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A run that writes answers, over a model in a local folder with an unpublished tokenizer."""
    return save_run(tmp_path_factory.mktemp("runs") / "plain", tiny_folder)


def test_a_sentencepiece_model_is_made_of_a_vocabulary() -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(sentencepiece_model(VOCABULARY))
    assert [processor.IdToPiece(index) for index in range(11)] == VOCABULARY["tokenizer.ggml.tokens"]
    assert [processor.GetScore(index) for index in range(5, 11)] == [-1.0, -2.0, -3.0, 0.0, -0.5, -0.25]
    assert (processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id()) == (3, 2, 1, 0)
    assert processor.IsControl(2) and processor.IsUnknown(3) and not processor.IsControl(6)
    assert processor.encode("ab") == [8] and processor.encode("b ab") == [7, 9]  # no space is added before the text


def test_types_and_models_that_cannot_be_converted_are_refused_first(
    run: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "merge", None)  # fails if weights are loaded
    monkeypatch.setenv("PATH", str(tmp_path))

    def refused(**settings: object) -> str:
        with pytest.raises(ConfigError) as error:
            export_run(run, "gguf", tmp_path / "out", ExportSettings(verify=0, device="cpu", **settings))  # type: ignore[arg-type]
        assert not (tmp_path / "out").exists()
        return str(error.value)

    assert "did you mean 'q8_0'" in refused(quantize="q80")
    assert "llama-quantize" in refused(quantize="Q4_K_M")
    assert "an adapter is written as" in refused(quantize="q4_k_m", as_adapter=True)
    monkeypatch.setenv(llama_cpp.CHECKOUT_VARIABLE, str(tmp_path))
    assert "no convert_hf_to_gguf.py there" in refused()
    (tmp_path / llama_cpp.MODEL_SCRIPT).write_text('@register("LlamaForCausalLM")\n')
    assert "does not know models of the architecture Phi3ForCausalLM" in refused()
    monkeypatch.delenv(llama_cpp.CHECKOUT_VARIABLE)
    monkeypatch.setattr(llama_cpp, "require_extra", _refuse)
    assert refused() == "gguf is not installed"


def _refuse(*_: object) -> None:
    raise ConfigError("gguf is not installed")


def test_a_run_that_reads_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    reading = save_run(tmp_path / "runs" / "reading", tiny_folder, READING)
    with pytest.raises(ConfigError, match="reads spans with a head"):
        export_run(reading, "gguf", tmp_path / "out", FAST)


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        (
            "NotImplementedError: BPE pre-tokenizer was not recognized - update",
            ConfigError,
            "does not know this model's",
        ),
        ("OSError: [Errno 28] No space left on device", DataError, "No space left on device"),
        ("AssertionError: something", ModelError, "fails: AssertionError: something"),
    ],
)
def test_failures_of_a_converter_are_one_sentence_and_leave_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, kind: type[Exception], message: str
) -> None:
    checkout = tmp_path / "llama.cpp"
    checkout.mkdir()
    script = f'"Phi3ForCausalLM"\nimport sys\nprint({said!r}, file=sys.stderr)\nsys.exit(1)\n'
    (checkout / llama_cpp.MODEL_SCRIPT).write_text(script)
    monkeypatch.setenv(llama_cpp.CHECKOUT_VARIABLE, str(checkout))
    with pytest.raises(kind, match=message):
        export_run(run, "gguf", tmp_path / "out", FAST)
    assert [path.name for path in tmp_path.iterdir()] == ["llama.cpp"]


def test_a_converter_gets_the_base_models_tokenizer_and_float32_weights(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "llama.cpp"
    checkout.mkdir()
    script = (
        '"Phi3ForCausalLM"\nimport json, pathlib, sys\nkind, name, folder, _, place = sys.argv[2], *sys.argv[4:8]\n'
        "folder = pathlib.Path(folder)\n"
        "read = lambda name: json.loads((folder / name).read_text())\n"
        "said = [kind, name, read('config.json')['dtype'], read('tokenizer_config.json')['tokenizer_class']]\n"
        "pathlib.Path(place).write_text(json.dumps(said))\n"
    )
    (checkout / llama_cpp.MODEL_SCRIPT).write_text(script)
    monkeypatch.setenv(llama_cpp.CHECKOUT_VARIABLE, str(checkout))
    exported = export_run(run, "gguf", tmp_path / "out", ExportSettings(quantize="Q8_0", verify=0, device="cpu"))
    assert exported.verified is None
    place = tmp_path / "out" / "plain-q8_0.gguf"
    assert json.loads(place.read_text()) == ["q8_0", "plain", "float32", "GPT2Tokenizer"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {place.name, "README.md", "Modelfile", "example.json", "example.gbnf", "task.json"}
    assert "llama-server -m plain-q8_0.gguf" in (tmp_path / "out" / "README.md").read_text()


def test_a_server_that_ends_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "llama-server"
    tool.write_text(f"#!{sys.executable}\nprint('error loading model: not a GGUF')\n")
    tool.chmod(0o755)
    monkeypatch.setenv(llama_cpp.SERVER_VARIABLE, str(tool))
    with (
        pytest.raises(ModelError, match="error loading model: not a GGUF"),
        llama_cpp.serving(tmp_path / "x.gguf", 512),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["llama-server"]
