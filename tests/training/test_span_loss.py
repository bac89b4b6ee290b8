"""The loss of reading spans equals its formula on dense matrices, and a head can learn its examples exactly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.fakes import byte_tokenizer
from helpers.reading import DOCUMENTS, drawn_texts, learnt, logits_of, reader, span_encoder, span_pack, spans_settings
from helpers.strategies import texts
from spantune.core import Document, Entity
from spantune.extraction import Extractor
from spantune.models import SpanPack
from spantune.training.span_loss import zlpr


def by_formula(logits: Tensor, pack: SpanPack, documents: list[Document], longest: int) -> Tensor:
    """Return the sum over texts, and the mean over types, of the loss with one term for each kind of span.

    The terms are log(1 + Σ exp(logit)) over the spans that are no entities and log(1 + Σ exp(-logit)) over entities.
    """
    total = logits.new_zeros(())
    for document, start in zip(documents, pack.starts.tolist(), strict=True):
        for label, code in enumerate(("dis", "sym")):
            gold = {(e.start, e.end) for e in document.entities if e.label == code}
            others, entities = logits.new_ones(()), logits.new_ones(())
            for first in range(len(document.text)):
                for end in range(first + 1, min(len(document.text), first + longest) + 1):
                    logit = logits[start + first, end - first - 1, label]
                    if (first, end) in gold:
                        entities = entities + (-logit).exp()
                    else:
                        others = others + logit.exp()
            total = total + (others.log() + entities.log()) / 2
    return total


@pytest.mark.parametrize("longest", [6, 12])
def test_the_loss_is_that_of_the_formula(longest: int) -> None:
    """Some texts have no entities, one is empty, one entity has two types, and one is annotated twice."""
    twice = Document("e", "ab", (Entity(0, 2, "dis"), Entity(0, 2, "sym"), Entity(0, 2, "dis")))
    documents = [*DOCUMENTS, twice]
    pack = span_pack(span_encoder(spans_settings(longest=longest)), documents)
    logits = torch.randn(len(pack.token), pack.width, 2, dtype=torch.float64) * 3
    ours, wanted = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found, formula = zlpr(ours, pack), by_formula(wanted, pack, documents, longest)
    torch.testing.assert_close(found, formula)
    (gradient,) = torch.autograd.grad(found, ours)
    torch.testing.assert_close(gradient, torch.autograd.grad(formula, wanted)[0])
    assert not gradient[~pack.band.inside].any()


@pytest.mark.parametrize("scale", [0.0, 60.0, 2000.0])
def test_gradients_are_finite_whatever_the_logits_are(scale: float) -> None:
    """They are finite also without spans, without gold entities, and if every score is certain and wrong."""
    pack = span_pack(span_encoder(spans_settings()), DOCUMENTS)
    logits = torch.full((len(pack.token), pack.width, 2), scale)
    logits[pack.gold.unbind(1)] = -scale
    logits[~pack.band.inside] = float("nan") if scale == 0 else scale
    logits.requires_grad_()
    loss = zlpr(logits, pack)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and gradient.isfinite().all()


def test_a_text_without_entities_is_pushed_down_only() -> None:
    documents = [Document("?", "abc it")]
    pack = span_pack(span_encoder(spans_settings()), documents)
    logits = torch.randn(len(pack.token), pack.width, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(zlpr(logits, pack), logits)
    assert (gradient[pack.band.inside] > 0).all()


RARE = "".join(chr(code) for code in (0x1F469, 0x200D, 0x2695, 0x301, 0x202E, 0x5D0, 0x0, 0x7F, 0x20000))


@pytest.mark.no_cover
def test_a_head_learns_by_heart_and_gives_back_exactly_what_it_has_learnt() -> None:
    """Spans of every kind: inside a token of several characters, of parts of characters, nested, and of two types."""
    inside = Document("0", "abcde entit it", (Entity(1, 2, "sym"), Entity(0, 3, "dis"), Entity(7, 9, "dis")))
    odd = Document("1", RARE, (Entity(0, 3, "dis"), Entity(3, 4, "sym"), Entity(5, 7, "sym"), Entity(8, 9, "dis")))
    documents = [inside, odd, *drawn_texts(5, longest=14), Document("2", ""), Document("3", "no")]
    settings_ = spans_settings()
    model, encoder = reader(settings=settings_), span_encoder(settings_)
    learnt(model, [span_pack(encoder, documents)], steps=100, rate=0.02)
    read = Extractor(model, encoder).extract(documents)
    gold = [{(e.start, e.end, e.label) for e in document.entities} for document in documents]
    assert sum(map(len, gold)) >= 20
    assert [{(e.start, e.end, e.label) for e in document.entities} for document in read] == gold
    shuffled = Extractor(model, encoder).extract(documents[::-1])[::-1]
    assert [[(e.start, e.end, e.label) for e in d.entities] for d in shuffled] == [
        [(e.start, e.end, e.label) for e in d.entities] for d in read
    ]


MODEL = reader("llama", spans_settings(longest=4))


@given(st.lists(texts, min_size=1, max_size=3))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_any_texts_have_finite_logits_and_a_loss(given_texts: list[str]) -> None:
    documents = [
        Document(str(number), text, (Entity(0, 1, "dis"), Entity(len(text) - 1, len(text), "sym")) if text else ())
        for number, text in enumerate(given_texts)
    ]
    pack = span_pack(span_encoder(spans_settings(longest=4), byte_tokenizer()), documents)
    logits = logits_of(MODEL, pack)
    loss = zlpr(logits, pack)
    assert logits.isfinite().all() and loss.isfinite() and loss >= 0
