"""Batches of texts for reading spans, and how their packs become smaller if memory is short."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.extractors import encoder as answer_encoder
from helpers.fakes import byte_tokenizer
from helpers.reading import drawn_texts, span_encoder, spans_settings
from spantune.core import Document, Entity, config
from spantune.encoding import SpanExample, shared_prefix
from spantune.models import SpanPack, layout_spans
from spantune.training import Collator

SETTINGS = spans_settings()
ENCODER = span_encoder(SETTINGS, byte_tokenizer())


def collator(budget: int) -> Collator:
    return Collator(config.Train(), ENCODER.prefix, budget, 0, SETTINGS)


def examples(texts: list[str]) -> list[SpanExample]:
    return [ENCODER.example(Document(str(number), text)) for number, text in enumerate(texts)]


def test_a_batch_counts_its_examples_and_the_tokens_of_its_packs() -> None:
    chosen = [ENCODER.example(document) for document in drawn_texts(9)]
    batch = collator(200)(chosen)
    assert batch.weight == 9 and batch.padding == 0 and len(batch.parts) > 1
    assert batch.tokens == sum(len(example.ids) - 1 for example in chosen) + len(batch.parts)
    packs = [part for part in batch.parts if isinstance(part, SpanPack)]
    assert sum(len(pack.starts) for pack in packs) == 9 and all(len(pack.ids) <= 200 for pack in packs)
    gold = sum(len(document.entities) for document in drawn_texts(9))
    assert sum(len(pack.gold) for pack in packs) == gold


def test_a_pack_that_does_not_fit_is_halved_down_to_one_text() -> None:
    made, chosen = collator(500), examples(["x" * 40, "y" * 30, "z" * 10])
    (pack,) = made(chosen).parts
    assert made.lower(pack) and made.limits == {"pack_tokens": 41}
    parts = made(chosen).parts
    assert sorted(len(part.ids) for part in parts if isinstance(part, SpanPack)) == [41, 41]
    (single,) = made(chosen[:1]).parts
    assert not made.lower(single)


def test_a_text_beside_empty_ones_is_alone() -> None:
    """Empty texts take no memory: halving the pack would give the same pack again, without end."""
    pack = layout_spans(examples(["", "x" * 40, ""]), ENCODER.prefix, SETTINGS)
    assert not collator(500).lower(pack)


@pytest.mark.parametrize("changes", [{}, {"normalize": "examples"}, {"pack": "none"}])
def test_the_shares_of_a_written_step_make_up_the_step(changes: dict[str, Any]) -> None:
    texts = ["abc", "entity", "it", "a" * 40, "b", "en" * 9, "abc ab"]
    chosen = [answer_encoder().example(Document(text, text, (Entity(0, 1, "dis"),))) for text in texts]
    whole = Collator(config.Train(**changes), chosen[0].ids[: shared_prefix(chosen)], 300, 0)
    batch = whole(chosen)
    batches = []
    for rank in range(3):
        whole.rank, whole.ranks = rank, 3
        batches.append(whole(chosen))
    assert {part.weight for part in batches} == {batch.weight}
    assert all(part.examples == tuple(chosen) for part in batches)
    rows = sum(len(getattr(part, "index", getattr(part, "input_ids", ()))) for b in batches for part in b.parts)
    assert rows == sum(len(getattr(part, "index", getattr(part, "input_ids", ()))) for part in batch.parts)


def test_a_rank_without_a_share_has_an_empty_batch() -> None:
    alone = collator(200)
    alone.rank, alone.ranks = 1, 2
    batch = alone(examples(["a"]))
    assert (batch.parts, batch.weight, batch.tokens) == ((), 1, 0)
