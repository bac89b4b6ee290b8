"""`spantune.extraction.vocabulary`: the bytes of tokens equal those that llguidance reads from tokenizer.json."""

from __future__ import annotations

import random
from typing import Any

import pytest
from llguidance import LLTokenizer
from tokenizers import AddedToken, decoders
from transformers import PreTrainedTokenizerFast

from helpers.fakes import byte_tokenizer, pieces_tokenizer
from spantune.extraction.vocabulary import UNSPELLABLE, Spelling, grammar_tokenizer, token_bytes, without_special_names

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
        lambda core: setattr(core, "decoder", decoders.ByteLevel()),  # its letters differ from those in the names
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


@pytest.mark.parametrize("make", [byte_tokenizer, pieces_tokenizer])
def test_offsets_are_the_lengths_of_decoded_prefixes(make: Any) -> None:
    tokenizer = make()
    decode = tokenizer.backend_tokenizer.decode
    spelling, choose, spelt = Spelling(tokenizer), random.Random(3), 0
    for _ in range(200):
        text = "".join(choose.choices(["a", "b", "ab", " ", "é", "患者", "\n", "骺"], k=choose.randrange(9)))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        written = decode(ids, skip_special_tokens=False)
        offsets = spelling.offsets(ids, written)
        assert offsets is not None and len(offsets) == len(ids)
        for place, offset in enumerate(offsets):
            before = decode(ids[:place], skip_special_tokens=False)
            assert offset == len(before) or before.endswith("\ufffd"), "inside a character any offset of it will do"
        noise = choose.choices(range(len(tokenizer)), k=6)
        written = decode(noise, skip_special_tokens=False)
        offsets = spelling.offsets(noise, written)
        assert offsets is None or "\ufffd" not in written
        spelt += offsets is not None
    assert spelt
    other = make()
    other.backend_tokenizer.decoder = decoders.Metaspace()
    assert Spelling(other).offsets([1], "a") is None
