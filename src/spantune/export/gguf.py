"""GGUF files for llama.cpp and the programs built on it: merged weights, or only the adapter.

llama.cpp's own converters write the file from a folder of float32 weights, so that the sum of base and adapter is
rounded once. Then llama.cpp computes the file, and the result is compared with the run. An adapter is converted from
its plain form, since llama.cpp knows no scale other than alpha / rank.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from spantune.core import ConfigError, DataError, nearest, waiting
from spantune.export.adapter import base_name, save_adapter
from spantune.export.card import write_card
from spantune.export.gguf_check import Run, compare, read_back
from spantune.export.gguf_tokenizer_files import write_tokenizer_files
from spantune.export.llama_cpp import (
    ADAPTER_SCRIPT,
    CHECKOUT_VARIABLE,
    MODEL_SCRIPT,
    convert,
    has_server,
    quantize,
    quantizer,
    require_architecture,
)
from spantune.export.merged import copy_terms, merge, save_model
from spantune.export.source import Source
from spantune.export.verify import Written
from spantune.models import count_weights, fold_lora

CONVERTED = ("f32", "f16", "bf16", "q8_0")
"""The types that the converter writes."""
QUANTIZED = (
    *("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_0", "q4_1", "q4_k_s", "q4_k_m"),
    *("q5_0", "q5_1", "q5_k_s", "q5_k_m", "q6_k", "iq4_nl", "iq4_xs"),
)
"""The types that llama.cpp's own tool makes from f16."""
FLOAT_BYTES = 4
NO_SERVER = (
    "llama.cpp has not computed the file, since none of its servers is installed: only the number of its weights and "
    "some of its embeddings were compared; pip install xllamacpp, and export again"
)


def write_gguf(source: Source, out: Path) -> Written:
    """Write a run as a GGUF file into the folder `out`, and compare what llama.cpp computes with the run.

    Raises:
        ConfigError: llama.cpp's converter is not installed, or does not know the model, its tokenizer or the type.
        ModelError: the base or the adapter cannot be loaded; Differs: the export computes something else than the run.
        DataError: the disk is full. OSError, SafetensorError: the files cannot be written.
    """
    kind = _kind(source)
    if source.settings.as_adapter:
        base_name(source)  # raises an error for a run without an adapter
    require_architecture(source.files.config.architectures[0])
    source.task.save(out)
    copy_terms(source, out)
    write = _write_adapter if source.settings.as_adapter else _write_model
    with TemporaryDirectory(prefix=".gguf-", dir=out.parent) as work:
        written = write(source, out, Path(work), kind)
    write_card(source, "gguf", out)
    return written


def file_name(source: Source) -> str:
    """Return the name of the GGUF file of a run, such as `demo-q8_0.gguf` or `demo-lora-f16.gguf`."""
    part = "-lora" if source.settings.as_adapter else ""
    return f"{source.folder.path.resolve().name}{part}-{source.settings.quantize.lower()}.gguf"


def _kind(source: Source) -> str:
    """Return the type of the weights in lower case.

    Raises:
        ConfigError: the type is unknown, or the tool that makes it is not installed.
    """
    kind = source.settings.quantize.lower()
    if source.settings.as_adapter and kind not in CONVERTED:
        raise ConfigError(f"--quantize {kind}: an adapter is written as {', '.join(CONVERTED)}")
    if kind in QUANTIZED and quantizer() is None:
        raise ConfigError(
            f"--quantize {kind} needs llama.cpp's tool llama-quantize, which is not on the PATH; build llama.cpp and "
            f"name its folder in {CHECKOUT_VARIABLE}, or choose one of {', '.join(CONVERTED)}"
        )
    if kind not in (*CONVERTED, *QUANTIZED):
        raise ConfigError(f"--quantize {kind!r} is unknown; {nearest(kind, (*CONVERTED, *QUANTIZED))}")
    return kind


def _write_model(source: Source, out: Path, work: Path, kind: str) -> Written:
    _require_room(source, work)
    run = Run.of(source, merge(source).model)
    with _folder(source, work / "merged") as folder:
        save_model(_float(source), run.model, folder)
    place = out / file_name(source)
    _convert(source, work / "merged", place, kind)
    shutil.rmtree(work / "merged")
    if not source.documents:
        return Written()
    if not has_server():
        return Written(read_back(run, place), (NO_SERVER,))
    return compare(run, place, kind)


def _write_adapter(source: Source, out: Path, work: Path, kind: str) -> Written:
    plain = work / "plain"
    plain.mkdir()
    save_adapter(fold_lora(source.adapter), base_name(source), plain)
    with _folder(source, work / "base") as base:
        source.files.config.save_pretrained(str(base))
    place = out / file_name(source)
    with waiting("Converting the adapter to GGUF …"):
        convert(ADAPTER_SCRIPT, ["--base", work / "base", "--outtype", kind, plain], place)
    if not source.documents:
        return Written()
    run = Run.of(source, merge(source).model)
    if not has_server():
        return Written(None, (NO_SERVER,))
    _require_room(source, work)
    with _folder(source, work / "base") as folder:
        save_model(_float(source), source.load_base(), folder)
    weights = work / "base.gguf"
    _convert(source, work / "base", weights, "f16")
    return compare(run, weights, kind, adapter=place)


def _float(source: Source) -> Source:
    """Return the same source, with float32 as the type of saved weights."""
    return replace(source, settings=replace(source.settings, dtype="fp32"))


@contextmanager
def _folder(source: Source, folder: Path) -> Iterator[Path]:
    """Yield a model folder for configuration and weights; the tokenizer is written into it after the block."""
    folder.mkdir(exist_ok=True)
    yield folder
    source.files.tokenizer.save_pretrained(str(folder))
    write_tokenizer_files(source, folder)


def _convert(source: Source, folder: Path, place: Path, kind: str) -> None:
    """Convert a model folder to a GGUF file of the type `kind`."""
    if kind in CONVERTED:
        with waiting(f"Converting to GGUF ({kind}) …"):
            convert(MODEL_SCRIPT, ["--outtype", kind, "--model-name", source.folder.path.resolve().name, folder], place)
        return
    whole = folder.with_name("whole.gguf")
    _convert(source, folder, whole, "f16")
    tool = quantizer()
    assert tool is not None
    with waiting(f"Quantising to {kind} …"):
        quantize(tool, whole, place, kind)
    whole.unlink()


def _require_room(source: Source, work: Path) -> None:
    """Check that the disk has room for float32 weights and a 16-bit GGUF file.

    Raises:
        DataError: it has not.
    """
    needed = count_weights(source.files.folder) * (FLOAT_BYTES + FLOAT_BYTES // 2)
    free = shutil.disk_usage(work).free
    if free < needed:
        raise DataError(
            f"an export as GGUF needs {needed / 1e9:.1f} GB, since it is made from float32 weights, and the disk has "
            f"{free / 1e9:.1f} GB free; free some space, or name a place on another disk",
            path=work.parent,
        )
