"""Tests of `spantune.extraction.vocabulary`: the bytes of tokens are those that llguidance reads from the JSON."""

from __future__ import annotations

import random
from typing import Any

import pytest
from llguidance import LLTokenizer
from tokenizers import AddedToken, decoders
from transformers import PreTrainedTokenizerFast

from helpers.fakes import byte_tokenizer, pieces_tokenizer
from spantune.extraction.vocabulary import UNSPELLABLE, grammar_tokenizer, token_bytes, without_special_names

SIGNS = ["a", "b", "ab", " ", "  ", "é", "患者", "\n", "<eos>", "<eo", "s>", "[Ä b]", "▁"]


@pytest.mark.parametrize("make", [byte_tokenizer, pieces_tokenizer])
def test_tokens_and_texts_are_as_llguidance_reads_them(make: Any) -> None:
    tokenizer = make()
    size = len(tokenizer) + 7
    stop = tokenizer.eos_token_id
    assert token_bytes(tokenizer) is not None
    ours = grammar_tokenizer(tokenizer, size, stop)
    whole = LLTokenizer(without_special_names(tokenizer), n_vocab=size, eos_token=stop, slices=[])
    for index in range(size):
        assert ours.dbg_tokens([index]) == whole.dbg_tokens([index])
        assert ours.decode_bytes([index]) == whole.decode_bytes([index])
        assert ours.is_special_token(index) == whole.is_special_token(index)
    assert (ours.vocab_size, ours.eos_tokens, ours.is_canonical) == (
        whole.vocab_size,
        whole.eos_tokens,
        whole.is_canonical,
    )
    choose = random.Random(7)
    for _ in range(300):
        text = "".join(choose.choices([*SIGNS, tokenizer.eos_token], k=choose.randrange(6)))
        assert ours.tokenize_str(text) == whole.tokenize_str(text)
        cut = text.encode()[: choose.randrange(9)]
        assert ours.tokenize_partial(cut) == whole.tokenize_partial(cut)


def test_the_name_of_a_special_token_is_text() -> None:
    tokenizer = pieces_tokenizer()
    ours = grammar_tokenizer(tokenizer, len(tokenizer), tokenizer.eos_token_id)
    assert tokenizer.eos_token_id not in ours.tokenize_str("a<eos>b")
    assert ours.decode_str(ours.tokenize_str("a<eos>b")) == "a<eos>b"
    assert (token_bytes(tokenizer) or [])[tokenizer.eos_token_id] == f"{UNSPELLABLE}<eos>".encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda core: setattr(core, "decoder", decoders.Metaspace()),
        lambda core: setattr(core, "decoder", decoders.ByteLevel()),  # whose letters are not those of the names
        lambda core: core.enable_padding(length=8),
        lambda core: core.add_special_tokens([AddedToken("<other>", special=True, normalized=True)]),
    ],
)
def test_other_kinds_are_read_from_json(change: Any) -> None:
    core = pieces_tokenizer().backend_tokenizer
    change(core)
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")
    if core.padding:
        tokenizer.backend_tokenizer.enable_padding(length=8)
    assert token_bytes(tokenizer) is None
