"""Masked tokens: which tokens are masked, that each sees both sides of its own text only, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.fakes import MERGES, byte_tokenizer
from helpers.reading import DOCUMENTS, drawn_texts, reader, span_encoder, spans_settings
from helpers.strategies import texts
from spantune.core import ConfigError, Document, ModelError, config, parse_config
from spantune.encoding import SpanExample
from spantune.training.collator import Collator
from spantune.training.loss import PackTensors, pack_loss
from spantune.training.masked import MaskedExample, mask, pack_masked, placeholder

PLACEHOLDER = 270
ENCODER = span_encoder(spans_settings())


def encoded(*documents: Document) -> list[SpanExample]:
    return [ENCODER.example(document) for document in documents]


def loss_of(made: Any, pack: PackTensors) -> torch.Tensor:
    return pack_loss(made, pack, torch.float32)


@given(st.lists(texts, max_size=4), st.integers(0, 2**31))
def test_the_tokens_behind_the_placeholders_are_the_targets(drawn: list[str], seed: int) -> None:
    examples = encoded(*(Document(str(number), text) for number, text in enumerate(drawn)))
    masked = mask(examples, PLACEHOLDER, seed)
    assert masked == mask(examples, PLACEHOLDER, seed)
    for example, hidden in zip(examples, masked, strict=True):
        assert (
            len(hidden.ids) == len(example.ids)
            and hidden.ids[: example.text_start + 1] == example.ids[: example.text_start + 1]
        )
        restored = list(hidden.ids)
        for place, target in zip(hidden.places, hidden.targets, strict=True):
            assert restored[place] == PLACEHOLDER
            restored[place] = target
        assert tuple(restored) == example.ids


def test_about_a_third_of_the_tokens_is_masked_and_others_in_every_step() -> None:
    examples = encoded(*drawn_texts(40))
    first, second = mask(examples, PLACEHOLDER, 1), mask(examples, PLACEHOLDER, 2)
    count, tokens = sum(len(example.places) for example in first), sum(len(example.ids) for example in examples)
    assert 0.25 < count / tokens < 0.35
    assert [example.places for example in first] != [example.places for example in second]


def test_the_loss_is_that_of_the_texts_alone() -> None:
    made = reader()
    masked = mask(encoded(*DOCUMENTS, *drawn_texts(5)), PLACEHOLDER, 7)
    (packed,) = pack_masked(masked, ENCODER.prefix, 4096)
    alone = sum(loss_of(made, pack) for example in masked for pack in pack_masked([example], ENCODER.prefix, 4096))
    assert len(pack_masked(masked, ENCODER.prefix, 100)) > 1
    torch.testing.assert_close(loss_of(made, packed), alone, rtol=1e-5, atol=1e-5)
    targets = sum(len(example.targets) for example in masked)
    assert sorted(packed.targets.tolist()) == sorted(target for example in masked for target in example.targets)
    batch = Collator(config.Train(batch_examples=16), ENCODER.prefix, 4096, spans=spans_settings())(masked)
    assert batch.weight == targets and len(batch.parts) == 1


def test_a_masked_token_is_seen_from_both_sides_and_from_its_own_text_only() -> None:
    made = reader()
    own, other = encoded(Document("a", "abcdefghijk"), Document("b", "other text"))
    place = own.text_start + 4

    def prediction(last: int, of_other: int) -> torch.Tensor:
        """Return the loss of one masked token after one token of its text and one of the other text were changed."""
        ids = [*own.ids[:place], PLACEHOLDER, *own.ids[place + 1 : -1], last]
        changed = (*other.ids[:-1], of_other)
        examples = [
            MaskedExample("a", tuple(ids), (place,), (own.ids[place],)),
            MaskedExample("b", changed, (), ()),
        ]
        return loss_of(made, pack_masked(examples, ENCODER.prefix, 4096)[0])

    plain = prediction(own.ids[-1], other.ids[-1])
    assert torch.equal(plain, prediction(own.ids[-1], 5)), "another text is not seen"
    assert not torch.allclose(plain, prediction(5, other.ids[-1]), atol=1e-4), "what comes later is seen"


def test_the_placeholder_is_a_token_that_the_vocabulary_has() -> None:
    tokenizer = byte_tokenizer(MERGES)
    assert placeholder(tokenizer) == tokenizer.get_vocab()["_"]
    tokenizer.add_tokens(["<mask>"])
    assert placeholder(tokenizer) == len(tokenizer) - 1
    tokenizer.mask_token = "<|im_end|>"
    assert placeholder(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_vocabulary_without_a_placeholder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer(MERGES)
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda self: {"a": 0})
    with pytest.raises(ModelError, match=r"needs a token that stands for a masked one, .* none of <mask>, \[MASK\], _"):
        placeholder(tokenizer)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": {"answer": "jsonl"}}, r"train\.masked_epochs needs task\.answer=spans and spans\.view=whole"),
        ({"spans": {"view": "causal"}}, r"train\.masked_epochs needs task\.answer=spans and spans\.view=whole"),
        ({"train": {"max_minutes": 5}}, r"no share of train\.max_minutes: set train\.epochs or train\.max_steps"),
    ],
)
def test_what_has_no_masked_tokens_is_refused(changed: dict[str, dict[str, Any]], message: str) -> None:
    plain: dict[str, dict[str, Any]] = {
        "model": {"source": "x"},
        "data": {"train": "x"},
        "task": {"labels": ["a"], "answer": "spans"},
        "train": {"masked_epochs": 2},
    }
    sections = {name: plain.get(name, {}) | changed.get(name, {}) for name in {*plain, *changed}}
    with pytest.raises(ConfigError, match=message):
        parse_config(sections)
