"""Packs of texts that are read: each text has the logits and gradients that it has alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import dense_kernel
from helpers.fakes import byte_tokenizer
from helpers.packs import FAMILIES
from helpers.reading import (
    DOCUMENTS,
    by_example,
    logits_of,
    reader,
    span_encoder,
    span_pack,
    span_step,
    spans_settings,
)
from spantune.core import Document, config
from spantune.encoding import PREFIX, SpanEncoder, SpanExample
from spantune.encoding.spans import Characters
from spantune.models import layout_spans, pack_spans, require_head
from spantune.models.span_head import Band

VIEWS = ["whole", "twice", "causal"]


def logits_by_text(model: Any, encoder: SpanEncoder, documents: Sequence[Document]) -> list[Tensor]:
    """Return the logits [characters, width, types] of each text; all texts are in one pack."""
    pack = span_pack(encoder, documents)
    with torch.no_grad():
        return by_example(logits_of(model, pack), pack, [len(document.text) for document in documents])


def assert_the_same_apart(model: Any, encoder: SpanEncoder) -> None:
    together = logits_by_text(model, encoder, DOCUMENTS)
    loss, gradients = span_step(model, span_pack(encoder, DOCUMENTS))
    summed = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
    alone = 0.0
    for document, wanted in zip(DOCUMENTS, together, strict=True):
        (found,) = logits_by_text(model, encoder, [document])
        torch.testing.assert_close(found, wanted[:, : found.shape[1]], rtol=1e-5, atol=1e-5)
        assert not wanted[:, found.shape[1] :].any()
        part, own = span_step(model, span_pack(encoder, [document]))
        alone += part
        for name, gradient in own.items():
            summed[name] += gradient
    assert alone == pytest.approx(loss, rel=1e-5)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert (summed[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name


@pytest.mark.no_cover
@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_is_the_same_packed_and_by_itself(family: str) -> None:
    settings = spans_settings()
    assert_the_same_apart(reader(family), span_encoder(settings))


@pytest.mark.parametrize("changes", [{"view": "twice"}, {"view": "causal"}, {"instruction": True}, {"convolution": 0}])
def test_a_text_is_the_same_packed_and_by_itself_in_every_view(changes: dict[str, Any]) -> None:
    settings = spans_settings(**changes)
    assert_the_same_apart(reader("gemma3_text", settings), span_encoder(settings))


@pytest.mark.parametrize("instruction", [False, True])
@pytest.mark.parametrize("view", VIEWS)
def test_packs_by_their_spans_are_packs_under_the_mask(view: str, instruction: bool) -> None:
    settings = spans_settings(view=view, instruction=instruction)
    model, encoder = reader("gemma3_text", settings), span_encoder(settings)
    loss, gradients = span_step(model, span_pack(encoder, DOCUMENTS))
    with dense_kernel.on_cpu():
        by_kernel, found = span_step(model, span_pack(encoder, DOCUMENTS))
    assert by_kernel == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        assert (found[name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-7, name


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("family", ["phi3", "gemma3_text"])
def test_no_text_sees_another(family: str, view: str) -> None:
    """Attention and convolution stay in a text: its logits are bit-equal if the last or the first text changes."""
    settings = spans_settings(view=view)
    model, encoder = reader(family, settings), span_encoder(settings, byte_tokenizer())
    texts = ["abcde it", "entity", "xyz 肺炎"]
    before = logits_by_text(model, encoder, [Document("?", text) for text in texts])
    for changed in range(3):
        others = [*texts]
        others[changed] = others[changed].translate(str.maketrans("aeny", "bfox"))  # the number of tokens is the same
        after = logits_by_text(model, encoder, [Document("?", text) for text in others])
        for number in range(3):
            assert torch.equal(before[number], after[number]) is (number != changed)


def test_the_order_of_documents_does_not_matter() -> None:
    settings = spans_settings()
    model, encoder = reader(), span_encoder(settings)
    wanted = logits_by_text(model, encoder, DOCUMENTS)
    found = logits_by_text(model, encoder, DOCUMENTS[::-1])[::-1]
    for mine, its in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)


def moved_by(family: str, view: str, changed: int, **sizes: Any) -> list[int]:
    """Return the characters of a text of 20 whose logits change with the character at `changed`."""
    settings = spans_settings(view=view, convolution=0, longest=1)
    model = reader(family, settings, **sizes)
    encoder = span_encoder(settings, byte_tokenizer())
    text = "x" * 20
    other = text[:changed] + "y" + text[changed + 1 :]
    pair = [logits_by_text(model, encoder, [Document("?", string)])[0][:, 0] for string in (text, other)]
    return torch.nonzero((pair[0] - pair[1]).abs().amax(1) > 0)[:, 0].tolist()


@pytest.mark.parametrize("changed", [0, 9, 19])
def test_what_a_character_sees_of_its_text(changed: int) -> None:
    assert moved_by("phi3", "whole", changed) == list(range(20))
    assert moved_by("phi3", "twice", changed) == list(range(20))
    assert moved_by("phi3", "causal", changed) == list(range(changed, 20))


@pytest.mark.parametrize("changed", [0, 9, 19])
def test_a_sliding_window_reaches_as_far_to_both_sides(changed: int) -> None:
    sizes = {"num_hidden_layers": 1, "sliding_window": 4}
    near = [place for place in range(20) if abs(place - changed) < 4]
    assert moved_by("mistral", "whole", changed, **sizes) == near
    assert moved_by("mistral", "causal", changed, **sizes) == [place for place in near if place >= changed]


def test_a_convolution_sees_the_characters_around_in_causal_order_too() -> None:
    settings = spans_settings(view="causal", longest=1)
    model, encoder = reader("phi3", settings), span_encoder(settings, byte_tokenizer())
    before, after = (logits_by_text(model, encoder, [Document("?", text)])[0] for text in ("x" * 9, "x" * 8 + "y"))
    assert [bool((before[at] != after[at]).any()) for at in range(9)] == [False] * 6 + [True] * 3


@pytest.mark.parametrize("view", VIEWS)
def test_logits_are_the_head_s_over_the_states_of_transformers(view: str) -> None:
    """One text through the plain model, causally or with a mask by which all tokens but the first see everything."""
    settings = spans_settings(view=view)
    model, encoder = reader("phi3", settings), span_encoder(settings)
    document = Document("?", 'abc "肺炎" entity')
    example = encoder.example(document)
    (logits,) = logits_by_text(model, encoder, [document])
    mask = torch.zeros(1, 1, len(example.ids), len(example.ids))
    if view == "whole":
        mask[0, 0, 0, 1:] = torch.finfo(torch.float32).min
    else:
        mask.masked_fill_(torch.ones_like(mask).triu(1).bool(), torch.finfo(torch.float32).min)
    base = model.get_base_model()
    with torch.no_grad():
        states = base.model(input_ids=torch.tensor([example.ids]), attention_mask=mask).last_hidden_state[0]
        table, places = base.get_input_embeddings().weight, example.characters
        columns = (range(len(document.text)), places.before, places.after, range(len(document.text), 0, -1))
        where = Band(*(torch.tensor(list(column)) for column in columns), width=12)
        wanted = require_head(model)(states[list(places.token)], table[list(places.own)], where)
    torch.testing.assert_close(logits, wanted * where.inside[:, :, None], rtol=1e-4, atol=1e-4)


def test_the_layout_of_a_pack() -> None:
    settings = spans_settings(longest=3)
    encoder = span_encoder(settings, byte_tokenizer())
    pack = span_pack(encoder, [Document("1", "ab肺"), Document("2", ""), Document("3", "c")])
    assert pack.owner.tolist() == [PREFIX] + [1] * 5 + [3]
    assert pack.positions.tolist() == [0, 1, 2, 3, 4, 5, 1]
    assert pack.reach is not None and pack.reach.tolist() == [0, 5, 5, 5, 5, 5, 1]
    assert pack.token.tolist() == [1, 2, 5, 0, 0, 0, 0, 6]  # two characters are between the texts
    assert pack.place.tolist() == [0, 1, 2, 0, 0, 0, 0, 0]
    assert pack.room.tolist() == [3, 2, 1, 0, 0, 0, 0, 1]
    assert pack.starts.tolist() == [0, 5, 7]
    assert pack.grid.tolist() == [[0, 1, 2], [8, 8, 8], [7, 8, 8]]
    assert pack.width == 3 and len(pack.gold) == 0


def test_characters_of_a_text_without_tokens_stay_at_the_prefix() -> None:
    """Spaces that a tokenizer drops have no token of their own and must not get one of another text."""
    characters = Characters(token=(1, 1), before=(0, 0), after=(0, 0), own=(5, 5))
    spaces = SpanExample("spaces", (8, 9), 2, characters)
    word = SpanExample("word", (8, 9, 7), 2, Characters((2,), (0,), (0,), (7,)))
    pack = layout_spans([word, spaces, word], (8, 9), spans_settings(convolution=0))
    assert pack.token.tolist() == [2, 1, 1, 3]


def test_texts_are_spread_over_packs_of_the_budget() -> None:
    settings = spans_settings()
    encoder = span_encoder(settings, byte_tokenizer())
    texts = [Document(str(size), "x" * size) for size in (5, 30, 8, 0, 3, 12)]
    packs = pack_spans([encoder.example(document) for document in texts], encoder.prefix, 20, settings)
    sizes = [len(pack.ids) for pack in packs]
    assert sum(sizes) - len(packs) == 58 and max(sizes) == 31
    assert all(size <= 20 for size in sorted(sizes)[:-1])
    assert sum(len(pack.starts) for pack in packs) == 6


@pytest.mark.parametrize("convolution", [0, 5])
def test_a_pack_of_empty_texts_has_a_loss_of_zero(convolution: int) -> None:
    settings = spans_settings(convolution=convolution)
    model, encoder = reader("phi3", settings), span_encoder(settings)
    loss, gradients = span_step(model, span_pack(encoder, [Document("1", ""), Document("2", "")]))
    assert loss == 0 and gradients and not any(gradient.any() for gradient in gradients.values())


def test_a_pack_moves_with_all_that_is_in_it() -> None:
    pack = span_pack(span_encoder(spans_settings()), DOCUMENTS).to(torch.device("meta"))
    held = [*vars(pack).values(), *pack.spans.values()]
    assert {value.device.type for value in held if isinstance(value, Tensor)} == {"meta"}
    assert pack.width == 12 and pack.spans["causal"] == 1


def test_examples_of_another_prefix_are_refused() -> None:
    encoder = span_encoder(spans_settings())
    with pytest.raises(AssertionError):
        layout_spans([encoder.example(DOCUMENTS[0])], (7,), config.Spans(longest=9))
