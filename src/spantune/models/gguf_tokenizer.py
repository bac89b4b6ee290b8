"""A tokenizer made from the vocabulary inside a GGUF file.

Two kinds are supported: Gemma's SentencePiece BPE and SmolLM's byte-level BPE. Each is built like its original, with
the token ids of the file. transformers is not used: its releases 5.17 and 5.23 differ on Gemma's spaces, and neither
splits digits as SmolLM does. Other kinds are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from spantune.core import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


Metadata: TypeAlias = Mapping[str, Any]
"""The key-value header of a GGUF file."""
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # token types of GGUF
STRING, ARRAY = 8, 9  # value types of GGUF; all others are numbers of fixed width
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def read_metadata(path: Path) -> Metadata:
    """Read the key-value header of a GGUF file; for Gemma this takes a second, and ten with `gguf.GGUFReader`.

    Raises:
        ModelError: it is not a GGUF file of version 3.
    """
    with path.open("rb") as file:
        head = file.read(24)
        if head[:8] != b"GGUF\x03\0\0\0":
            raise ModelError(f"{path}: begins with {head[:8]!r}, expected a GGUF file of version 3")
        (pairs,) = struct.unpack("<Q", head[16:])
        return {_value(file, STRING): _value(file, _number(file, "I")) for _ in range(pairs)}


def build_tokenizer(metadata: Metadata) -> Tokenizer:
    """Return the tokenizer that the header describes; it adds neither bos nor eos to a text.

    Raises:
        ModelError: the vocabulary is of another kind.
    """
    kind = (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"])
    builders = {("llama", "default"): _gemma, ("gpt2", "smollm"): _smollm}
    if kind not in builders:
        raise ModelError(f"vocabulary of kind {kind}, expected one of {sorted(builders)}; use the original tokenizer")
    return builders[kind](metadata)


def _gemma(metadata: Metadata) -> Tokenizer:
    """Build SentencePiece BPE: pieces with higher scores merge first, and runs of white space before all others.

    In the original, HTML tags are single user-defined pieces. Here no merge leads to them, so that `<sub>` in a text
    becomes three ordinary pieces: llguidance refuses a text with user-defined pieces.
    """
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    tokens = [token.replace(" ", "▁") for token in metadata["tokenizer.ggml.tokens"]]
    rank: dict[str, float] = {}
    kinds, scores = metadata["tokenizer.ggml.token_type"], metadata["tokenizer.ggml.scores"]
    for token, kind, score in zip(tokens, kinds, scores, strict=True):
        if kind == NORMAL:
            rank[token] = -score
        elif kind == USER_DEFINED and set(token) in ({"▁"}, {"\n"}, {"\t"}):
            rank[token] = len(token) - 1000.0
    merges = sorted(
        (order, -cut, token[:cut], token[cut:])
        for token, order in rank.items()
        for cut in range(1, len(token))
        if token[:cut] in rank and token[cut:] in rank
    )
    pairs = [(left, right) for *_, left, right in merges]
    tokenizer = Tokenizer(BPE(_ids(tokens), pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    _add_special(tokenizer, [*_control(metadata), "<start_of_image>", "<end_of_image>"])
    return tokenizer


def _smollm(metadata: Metadata) -> Tokenizer:
    """Build byte-level BPE, with every digit split off before."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    pairs = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE(_ids(metadata["tokenizer.ggml.tokens"]), pairs))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    _add_special(tokenizer, _control(metadata))
    return tokenizer


def _ids(tokens: list[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens)}


def _control(metadata: Metadata) -> list[str]:
    pairs = zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True)
    return [token for token, kind in pairs if kind == CONTROL]


def _add_special(tokenizer: Tokenizer, tokens: list[str]) -> None:
    from tokenizers import AddedToken

    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokens])


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return file.read(_number(file, "Q")).decode("utf-8")
    if kind == ARRAY:
        inner, length = _number(file, "I"), _number(file, "Q")
        return [_value(file, inner) for _ in range(length)]
    return _number(file, NUMBERS[kind])


def _number(file: BinaryIO, code: str) -> Any:
    return struct.unpack(f"<{code}", file.read(struct.calcsize(f"<{code}")))[0]
