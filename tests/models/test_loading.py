"""A model is loaded only if it is what its folder and its published configuration say."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from helpers.fakes import CHATML, byte_tokenizer
from helpers.own_code import save_own_code
from helpers.packs import examples, packed
from spantune.core import ConfigError, ModelError, config, parse_config
from spantune.models import (
    NAME,
    attach,
    card_problems,
    load,
    load_adapter,
    load_config_of,
    load_tokenizer,
    pick_device,
    pick_dtype,
)
from spantune.models.loading import PHI4_IDS, is_phi4
from spantune.training import pack_loss, train

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, which the test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@no_gpu
def test_a_gpu_that_is_not_there_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.device=cuda.*no CUDA GPU.*model\.device=auto"):
        load(config.Model(source=str(tiny_folder), device="cuda"))
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")


def test_types_are_as_named_and_auto_is_one_of_them() -> None:
    cpu = torch.device("cpu")
    assert pick_dtype("bf16", cpu) == torch.bfloat16
    assert pick_dtype("fp32", cpu) == torch.float32
    assert pick_dtype("auto", cpu) in (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(("base", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_whole_folder_loads(tiny_folder: Path, base: Any, dtype: torch.dtype) -> None:
    loaded = load(config.Model(source=str(tiny_folder), base=base, device="cpu"))
    assert {p.dtype for p in loaded.model.parameters()} == {dtype} and loaded.dtype == dtype
    assert not loaded.model.training and loaded.path == tiny_folder
    assert loaded.model.config._attn_implementation == NAME
    assert loaded.tokenizer.decode(loaded.tokenizer("肺 abc")["input_ids"]) == "肺 abc"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_part_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=str(folder)):
        load(config.Model(source=str(folder), device="cpu"))


def test_the_readers_say_which_folder_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"{tmp_path}.*tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(ModelError, match=rf"{tmp_path}.*config\.json cannot be read"):
        load_config_of(tmp_path)


def test_a_model_of_unknown_layers_is_refused_before_its_weights(folder: Path) -> None:
    settings = AutoConfig.from_pretrained(folder)
    settings.layer_types = ["full_attention", "linear_attention"]
    settings.save_pretrained(folder)
    with pytest.raises(ModelError, match="linear_attention"):
        load(config.Model(source=str(folder), device="cpu"))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1}),  # attention sinks
        ("rwkv", {}),  # no attention
    ],
)
def test_attention_that_ours_cannot_compute_is_refused(folder: Path, family: str, changes: dict[str, int]) -> None:
    from transformers import AutoModelForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 280, "pad_token_id": 2, **changes}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape)).save_pretrained(folder)
    with pytest.raises(ModelError, match=f"{folder}: the model cannot be loaded"):
        load(config.Model(source=str(folder), device="cpu"))


def test_eos_as_padding_is_refused_unless_waived(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"EOS and PAD are one token.*pad_token"):
        load(config.Model(source=str(folder), device="cpu"))
    assert load(config.Model(source=str(folder), device="cpu", verify=False)).tokenizer.pad_token == "<|im_end|>"


def phi4_config(folder: Path, **changes: Any) -> Any:
    """Return a configuration of Phi-4's shape as it is on disk, without weights."""
    rope = {"rope_type": "default", "rope_theta": 250000.0}
    shape = {"hidden_size": 5120, "vocab_size": 100352, "rope_parameters": rope, "pad_token_id": 100349, **changes}
    AutoConfig.for_model("phi3", **shape).save_pretrained(folder)
    return load_config_of(folder)


def phi4_tokenizer(folder: Path) -> Any:
    """Return a byte-level tokenizer whose special tokens have Phi-4's ids; the vocabulary has a gap before them."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(BPE({**letters, **PHI4_IDS, "<|dummy_85|>": 100349}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (*PHI4_IDS, "<|dummy_85|>")]
    )
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|dummy_85|>"}
    PreTrainedTokenizerFast(tokenizer_object=core, chat_template=CHATML, **names).save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def phi4(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    """A function that returns Phi-4's tokenizer as in the current upload."""
    folder = tmp_path_factory.mktemp("phi4")
    phi4_tokenizer(folder)
    return lambda: load_tokenizer(folder)


def test_the_current_upload_of_phi4_agrees_with_its_card(tmp_path: Path, phi4: Callable[[], Any]) -> None:
    settings, tokenizer = phi4_config(tmp_path), phi4()
    assert is_phi4(settings) and [tokenizer.convert_tokens_to_ids(token) for token in PHI4_IDS] == list(
        PHI4_IDS.values()
    )
    assert card_problems(settings, tokenizer) == []


def test_an_upload_from_before_the_tokenizer_fix_is_recognised(tmp_path: Path, phi4: Callable[[], Any]) -> None:
    settings, tokenizer = phi4_config(tmp_path), phi4()
    tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
    shared, eos = card_problems(settings, tokenizer)
    assert "EOS and PAD are one token ('<|endoftext|>')" in shared
    assert "EOS must be <|im_end|> (100265), found '<|endoftext|>'" in eos


def test_a_wrong_rope_base_is_recognised(tmp_path: Path, phi4: Callable[[], Any]) -> None:
    settings = phi4_config(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    assert card_problems(settings, phi4()) == ["Phi-4's RoPE base must be 250000, found 10000.0; mend config.json"]


def test_another_chat_template_is_recognised(tmp_path: Path, phi4: Callable[[], Any]) -> None:
    settings, tokenizer = phi4_config(tmp_path), phi4()
    tokenizer.chat_template = CHATML.replace("<|im_sep|>", "\n")
    (problem,) = card_problems(settings, tokenizer)
    assert problem.startswith("the chat template is not Phi-4's")


def test_wrong_special_ids_are_recognised(tmp_path: Path) -> None:
    settings = phi4_config(tmp_path)
    problems = card_problems(settings, byte_tokenizer())
    assert [problem for problem in problems if "must have id" in problem] == [
        f"Phi-4's {token} must have id {index}; take the tokenizer of the current upload"
        for token, index in PHI4_IDS.items()
    ]


def test_a_model_of_another_shape_is_not_held_to_phi4s_card(tmp_path: Path) -> None:
    settings = phi4_config(tmp_path, hidden_size=3072, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    assert not is_phi4(settings) and card_problems(settings, byte_tokenizer()) == []


@no_gpu
@pytest.mark.parametrize("base", ["nf4", "int8"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # bitsandbytes warns about types and CPUs
def test_a_quantised_base_trains_an_adapter_for_the_exact_one(folder: Path, tmp_path: Path, base: Any) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes, of the extra of that name, is not installed")
    from bitsandbytes.functional import dequantize_4bit

    loaded = load(config.Model(source=str(folder), base=base, device="cpu"))
    assert loaded.quantized and loaded.model.lm_head.weight.dtype == loaded.dtype
    exact = load(config.Model(source=str(folder), base="fp32", device="cpu")).model
    for name, module in loaded.model.named_modules():
        if name.endswith("_proj"):
            weight = module.weight
            stored = dequantize_4bit(weight.data, weight.quant_state) if base == "nf4" else weight * weight.SCB[:, None]
            exact.get_submodule(name).weight.data.copy_(stored if base == "nf4" else stored / 127)
    found = {}
    for name, model, dtype in (("quantised", loaded.model, loaded.dtype), ("exact", exact, torch.float32)):
        torch.manual_seed(1)
        adapted, _ = attach(model, config.Lora(rank=4, alpha=8))
        for key, parameter in adapted.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter, std=0.1)
        with torch.no_grad():
            adapted.eval()(input_ids=torch.arange(30)[None], use_cache=False)  # extraction comes before training
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            pack_loss(adapted.train(), packed(examples()), dtype).backward()
        found[name] = {key: p.grad for key, p in adapted.named_parameters() if p.grad is not None}
        if name == "quantised":
            adapted.save_pretrained(str(tmp_path / "adapter"))
    assert len(found["exact"]) == 16
    for key, gradient in found["exact"].items():
        assert (found["quantised"][key] - gradient).norm() < 0.2 * gradient.norm(), key
    plain = load_adapter(load(config.Model(source=str(folder), base="fp32", device="cpu")).model, tmp_path / "adapter")
    assert sum("lora_" in key for key, _ in plain.named_parameters()) == 16


@no_gpu
def test_a_base_or_an_optimizer_that_needs_bitsandbytes_says_so(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Callable[..., dict[str, Any]]
) -> None:
    monkeypatch.setattr("spantune.core.extras.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError,
        match=r"model\.base=nf4 needs bitsandbytes, which is not installed; run pip install .*\[bitsandbytes\]'",
    ):
        load(config.Model(source=str(tiny_folder), base="nf4", device="cpu"))
    recipe = parse_config(tree(tmp_path / "runs", train={"optimizer": "adamw_8bit"}))
    with pytest.raises(
        ConfigError, match=r"train\.optimizer=adamw_8bit needs bitsandbytes, which is not installed; run pip install"
    ):
        train(recipe)
    assert not (tmp_path / "runs").exists()


READ_ALL = """
import sys
from pathlib import Path
from spantune.core import ModelError, config
from spantune.models import load, load_config_of, load_tokenizer
from spantune.training.plan import skeleton

steps = {
    "config": load_config_of,
    "tokenizer": load_tokenizer,
    "skeleton": lambda folder: skeleton(load_config_of(folder)),
    "model": lambda folder: load(config.Model(source=str(folder), base="fp32", device="cpu")),
}
for name in ("config", "tokenizer", "model"):
    for step, read in steps.items():
        try:
            read(Path(sys.argv[1]) / name)
        except ModelError as error:
            if "wants to run code of its own (auto_map), which spantune never does; take" in str(error):
                print("refused", name, step)
print("left", sys.stdin is not None and len(sys.stdin.readlines()))
"""


@pytest.mark.no_cover
@pytest.mark.parametrize("answers", ["y\n" * 20, None])
def test_the_code_of_a_folder_is_neither_run_nor_asked_for(tmp_path: Path, answers: str | None) -> None:
    for part in ("config", "tokenizer", "model"):
        save_own_code(tmp_path / part, tmp_path / "marker", part)  # type: ignore[arg-type]
    command = [sys.executable, "-c", READ_ALL, str(tmp_path)]
    command = command if answers else ["sh", "-c", '"$@" <&-', "sh", *command]
    ended = subprocess.run(command, input=answers, capture_output=True, text=True, check=False)
    refused = [("config", "config"), ("config", "skeleton"), ("config", "model"), ("tokenizer", "tokenizer")]
    lines = [f"refused {name} {step}" for name, step in (*refused, ("model", "skeleton"), ("model", "model"))]
    assert ended.stdout.splitlines() == [*lines, f"left {20 if answers else False}"], ended.stderr[-2000:]
    assert not (tmp_path / "marker").exists()


def test_a_known_model_that_brings_code_is_loaded_without_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from transformers.utils.logging import disable_progress_bar

    folder = save_own_code(tmp_path / "model", tmp_path / "marker", "native")
    disable_progress_bar()
    capfd.readouterr()
    loaded = load(config.Model(source=str(folder), base="fp32", device="cpu"))
    assert type(loaded.model).__name__ == "Phi3ForCausalLM" and type(loaded.model).__module__.startswith(
        "transformers."
    )
    assert capfd.readouterr() == ("", "") and not caplog.records and not (tmp_path / "marker").exists()
