"""Tokenizer files in a model folder, in the form that llama.cpp's converter reads.

The converter expects the files that came with the model: `tokenizer.model` for SentencePiece, and the class that
`tokenizer_config.json` names. Files that transformers has written lack both. So the base model's own files are copied.
A bundled model came from a GGUF file; for it, `tokenizer.model` is made from the vocabulary of that file.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spantune.core import to_json
from spantune.export.source import Source
from spantune.models import bundled_vocabulary

PIECES, SETTINGS = "tokenizer.model", "tokenizer_config.json"
FILES = ("tokenizer.json", PIECES, SETTINGS, "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")
CONTROL, USER_DEFINED, UNKNOWN, BYTE = 3, 4, 2, 6  # the kinds of tokens, in GGUF and in SentencePiece
BPE = 2  # SentencePiece's number for the model type BPE


def write_tokenizer_files(source: Source, folder: Path) -> None:
    """Write the tokenizer of a run's base model into the model folder `folder`; the chat template there is kept.

    Raises:
        ModelError: the package of a bundled model is missing or was changed.
        OSError: the files cannot be written.
    """
    base = source.files.folder
    for name in FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    prefix, _, bundled = source.recipe.model.source.partition(":")
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    if prefix == "bundled" and not (base / PIECES).is_file():
        vocabulary = bundled_vocabulary(bundled)
        if vocabulary["tokenizer.ggml.model"] == "llama":
            (folder / PIECES).write_bytes(sentencepiece_model(vocabulary))
            settings["added_tokens_decoder"] = _added(vocabulary)
            settings |= {"add_bos_token": vocabulary["tokenizer.ggml.add_bos_token"], "add_eos_token": False}
    if source.files.config.model_type == "phi3" and not (folder / PIECES).is_file():
        settings["tokenizer_class"] = "GPT2Tokenizer"  # the converter tells Phi-4 from Phi-3 by this class
    (folder / SETTINGS).write_text(to_json(settings, indent=2) + "\n", encoding="utf-8")


def sentencepiece_model(vocabulary: Mapping[str, Any]) -> bytes:
    """Return a `tokenizer.model` for the SentencePiece BPE in a GGUF file's header.

    `vocabulary` has the fields `tokenizer.ggml.…` of the header. The file is a Protocol Buffers message, `ModelProto`
    of SentencePiece.
    """
    columns = ("tokens", "scores", "token_type")
    rows = zip(*(vocabulary[f"tokenizer.ggml.{name}"] for name in columns), strict=True)
    unknown = vocabulary["tokenizer.ggml.unknown_token_id"]
    pieces = [
        _field(1, _field(1, token.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind))
        for token, score, kind in (
            (token, score, UNKNOWN if index == unknown else kind) for index, (token, score, kind) in enumerate(rows)
        )
    ]
    special = b""
    for place, name in enumerate(("unknown", "bos", "eos", "padding")):
        index = vocabulary[f"tokenizer.ggml.{name}_token_id"]
        special += _number(40 + place, index) + _field(45 + place, vocabulary["tokenizer.ggml.tokens"][index].encode())
    has_bytes = BYTE in vocabulary["tokenizer.ggml.token_type"]  # byte tokens spell text that has no other token
    trainer = _number(3, BPE) + _number(4, len(pieces)) + _number(35, int(has_bytes)) + special
    normalizer = _field(1, b"identity") + _number(3, 0) + _number(4, 0) + _number(5, 1)  # escapes spaces, nothing else
    return b"".join(pieces) + _field(2, trainer) + _field(3, normalizer)


def _added(vocabulary: Mapping[str, Any]) -> dict[str, dict[str, object]]:
    """Return the tokens that are not part of the BPE, in the form of `tokenizer_config.json`."""
    tokens, kinds = vocabulary["tokenizer.ggml.tokens"], vocabulary["tokenizer.ggml.token_type"]
    return {
        str(index): {"content": token, "special": kind == CONTROL}
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    }


def _field(number: int, content: bytes) -> bytes:
    """Return a field of a Protocol Buffers message that holds bytes."""
    return bytes(_varint(number << 3 | 2)) + bytes(_varint(len(content))) + content


def _number(number: int, value: int) -> bytes:
    """Return a field of a Protocol Buffers message that holds a number."""
    return bytes(_varint(number << 3)) + bytes(_varint(value))


def _varint(value: int) -> Iterator[int]:
    while value > 127:
        yield value & 127 | 128
        value >>= 7
    yield value
