"""The span head equals its formula, with any autocast and at any place of a text; and it is saved and loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from helpers.fakes import MERGES, byte_tokenizer, tiny_model
from helpers.reading import DOCUMENTS, TASK, reader, span_encoder, span_pack, spans_settings, with_head
from spantune.core import Label, ModelError, TaskSpec
from spantune.models import SpanHead, SpanPack, head_of, load_head, make_head, read_head_config, save_head
from spantune.models.span_head import EDGE_SIZE, POINTER_SIZE, Band, band


def inputs(pack: SpanPack, hidden: int = 32) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(len(pack.token), hidden, generator=draw), torch.randn(len(pack.token), hidden, generator=draw)


def head(**changes: Any) -> SpanHead:
    made: SpanHead | None = head_of(with_head(tiny_model(vocabulary=280), spans_settings(**changes)))
    assert made is not None
    return made.eval()


@pytest.mark.parametrize("width", [1, 2, 5, 8, 13])
def test_a_band_is_the_diagonals_of_the_product(width: int) -> None:
    for rows in (1, 4, 5, 12, 13, 27):
        query, key = torch.randn(2, rows, 6).double().unbind()
        product = torch.zeros(rows, rows + width).double()
        product[:, :rows] = query @ key.T
        wanted = torch.stack([product[row, row : row + width] for row in range(rows)])
        torch.testing.assert_close(band(query, key, width), wanted)


def by_formula(made: SpanHead, states: Tensor, own: Tensor, before: list[int], after: list[int]) -> Tensor:
    """Return the logits [characters, characters, types] of one text, by first and last character, span by span."""
    size = len(states)
    normed = layer_norm(states, states.shape[-1:], made.norm.weight, made.norm.bias)
    row = normed @ made.state.weight.T + made.state.bias + layer_norm(own, own.shape[-1:]) @ made.own.weight.T
    row = row + torch.stack(
        [made.before.weight[min(b, 7)] + made.after.weight[min(a, 7)] for b, a in zip(before, after, strict=True)]
    )
    row = gelu(row)
    if made.convolution is not None:
        weight, half = made.convolution.weight, made.config.convolution // 2
        around = [
            sum(weight[:, :, k] @ row[c + k - half] for k in range(2 * half + 1) if 0 <= c + k - half < size)
            for c in range(size)
        ]
        row = row + gelu(torch.stack([term + made.convolution.bias for term in around]))  # type: ignore[operator]
    pointers = row @ made.pointer.weight.T + made.pointer.bias
    turned = [complex(0, 10_000 ** (-2 * pair / POINTER_SIZE)) for pair in range(POINTER_SIZE // 2)]
    pairs = torch.view_as_complex(pointers.double().view(size, 2, -1, 2))
    place = torch.arange(size)[:, None, None]
    pairs = pairs * torch.exp(torch.tensor(turned)[None, None] * place)
    query, key = pairs.unbind(1)
    pointed = (query[:, None] * key[None].conj()).real.sum(-1) / math.sqrt(POINTER_SIZE)
    types = made.types
    if made.names is not None:
        named = layer_norm(made.label_states, made.label_states.shape[-1:]) @ made.names.weight.T
        types = types + torch.stack((named[:, :EDGE_SIZE], named[:, EDGE_SIZE:]))
    edges = row @ made.edges.weight.T + made.edges.bias
    first, last = (edges[:, part] @ of.T / 8 for part, of in zip((slice(0, 64), slice(64, None)), types, strict=True))
    return pointed.float()[:, :, None] + first[:, None] + last[None] + made.bias


@pytest.mark.parametrize("types", ["names", "learnt"])
@pytest.mark.parametrize("convolution", [0, 1, 5])
def test_logits_are_those_of_the_formula_text_by_text(types: str, convolution: int) -> None:
    """Each text has the logits that it has alone, although the texts of the pack follow each other."""
    settings = spans_settings(types=types, convolution=convolution, longest=7)
    made = head(types=types, convolution=convolution, longest=7)
    pack = span_pack(span_encoder(settings), [document.with_entities(()) for document in DOCUMENTS])
    states, own = inputs(pack)
    logits = made(states, own, pack.band)
    assert logits.shape == (len(pack.token), 7, 2)
    seen = torch.zeros(logits.shape[:2], dtype=torch.bool)
    for start, document in zip(pack.starts.tolist(), DOCUMENTS, strict=True):
        part = slice(start, start + len(document.text))
        if not document.text:
            continue
        wanted = by_formula(made, states[part], own[part], pack.before[part].tolist(), pack.after[part].tolist())
        for first in range(len(document.text)):
            for more in range(min(7, len(document.text) - first)):
                torch.testing.assert_close(
                    logits[start + first, more], wanted[first, first + more], rtol=1e-4, atol=1e-4
                )
                seen[start + first, more] = True
    assert torch.equal(seen, pack.band.inside)


def test_the_head_computes_in_float32_whatever_the_states_and_the_autocast_are() -> None:
    pack = span_pack(span_encoder(spans_settings()), DOCUMENTS)
    made, (states, own) = head(), inputs(pack)
    rough = states.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(rough, own.to(torch.bfloat16), pack.band)
    assert found.dtype == torch.float32
    assert torch.equal(found, made(rough.float(), own.to(torch.bfloat16).float(), pack.band))


@pytest.mark.parametrize("start", [1, 1000, 100_000])
def test_a_span_has_the_same_logit_wherever_it_is_in_a_text(start: int) -> None:
    made = head(convolution=0)
    size = 12
    states, own = (torch.randn(size, 32) for _ in range(2))
    none = torch.zeros(size, dtype=torch.long)
    room = torch.arange(size, 0, -1)
    at_first, later = (
        made(states, own, Band(torch.arange(size) + moved, none, none, room, size)) for moved in (0, start)
    )
    torch.testing.assert_close(at_first, later, rtol=0, atol=2e-5)
    assert (made(states, own, Band(2 * torch.arange(size), none, none, room, size)) - at_first).abs().max() > 1e-2


def test_characters_far_inside_a_token_count_as_the_last_place_that_is_known() -> None:
    made = head(convolution=0)
    states, own = torch.randn(2, 3, 32).unbind()
    zero, room = torch.zeros(3, dtype=torch.long), torch.tensor([3, 2, 1])
    near, far_, further = (made(states, own, Band(torch.arange(3), zero + n, zero, room, 3)) for n in (6, 7, 500))
    assert torch.equal(far_, further) and not torch.equal(near, far_)


def test_dropout_is_for_training_only() -> None:
    pack = span_pack(span_encoder(spans_settings()), DOCUMENTS)
    made, given = head(dropout=0.5), inputs(pack)
    assert torch.equal(made(*given, pack.band), made(*given, pack.band))
    made.train()
    assert not torch.equal(made(*given, pack.band), made(*given, pack.band))


def test_types_are_made_from_the_embedded_names_and_descriptions() -> None:
    model, tokenizer = tiny_model(vocabulary=280), byte_tokenizer(MERGES)
    made = head()
    table = model.get_input_embeddings().weight.detach()
    for row, text in enumerate(["disease an illness", "symptom"]):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        torch.testing.assert_close(made.label_states[row], table[ids].mean(0))
    assert "label_states" not in dict(made.named_parameters())
    learnt = head(types="learnt")
    assert learnt.names is None and "label_states" not in learnt.state_dict()


def test_a_label_whose_name_is_a_space_has_a_finite_embedding() -> None:
    task = TaskSpec(labels=(Label(code="dis"), Label(code=" ")), instruction="Find.")
    made = make_head(tiny_model(vocabulary=280), byte_tokenizer(MERGES), task, spans_settings())
    assert bool(made.label_states[0].any()) and not bool(made.label_states[1].any())


def test_a_head_of_a_bf16_model_is_in_float32() -> None:
    made = head_of(with_head(tiny_model(vocabulary=280).to(torch.bfloat16), spans_settings()))
    assert made is not None
    assert {value.dtype for value in made.state_dict().values()} == {torch.float32}


def test_a_head_is_saved_and_loaded_bit_for_bit(tmp_path: Path) -> None:
    model = reader()
    made = head_of(model)
    assert made is not None
    made.set_thresholds(0.2, {"sym": 0.75})
    save_head(made, tmp_path)
    other = tiny_model(vocabulary=280)
    loaded = load_head(other, tmp_path, TASK)
    assert head_of(other) is loaded and not loaded.training and loaded.config == made.config
    assert loaded.config.settings == spans_settings(dropout=loaded.config.settings.dropout)
    assert loaded.state_dict().keys() == made.state_dict().keys()
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in loaded.state_dict().items())
    pack = span_pack(span_encoder(spans_settings()), DOCUMENTS)
    assert torch.equal(loaded(*inputs(pack), pack.band), made(*inputs(pack), pack.band))
    assert torch.sigmoid(loaded.thresholds.double()).tolist() == pytest.approx([0.2, 0.75])


def test_a_threshold_that_is_the_score_of_a_candidate_lets_it_pass() -> None:
    """The threshold is kept as a float32 logit; this must be exactly the logit of the candidate."""
    made = head()
    for logit in torch.linspace(-3, 13, 500).tolist():
        kept = torch.tensor(logit, dtype=torch.float32)
        made.set_thresholds(torch.sigmoid(kept.double()).item(), {})
        assert made.thresholds.tolist() == [kept.item()] * 2


def test_values_that_are_given_are_saved_instead_of_the_head_s_own(tmp_path: Path) -> None:
    made = head()
    before = made.bias.detach().clone()
    save_head(made, tmp_path, {"bias": before + 1})
    loaded = load_head(tiny_model(vocabulary=280), tmp_path, TASK)
    assert (
        torch.equal(loaded.bias, before + 1)
        and torch.equal(loaded.types, made.types)
        and torch.equal(made.bias, before)
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_head(head(), tmp_path)
    return tmp_path


def change(folder: Path, **values: Any) -> None:
    path = folder / "head.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def load_into_a_model(folder: Path, **sizes: Any) -> None:
    load_head(tiny_model(vocabulary=280, **sizes), folder, TASK)


@pytest.mark.parametrize("name", ["head.json", "head.safetensors"])
def test_an_adapter_without_its_head(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ModelError, match=rf"no {name} here, and the task is answered by reading spans"):
        load_into_a_model(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', "\ufeffnull", "[" * 100_000])
def test_a_damaged_configuration_of_a_head(saved: Path, text: str) -> None:
    (saved / "head.json").write_text(text)
    with pytest.raises(ModelError, match=r"head\.json is damaged \(.*restore it"):
        read_head_config(saved, TASK)


@pytest.mark.parametrize(
    "values",
    [
        {"labels": []},
        {"size": 0},
        {"size": 33},
        {"convolution": 4},
        {"longest": "12"},
        {"view": "both"},
        {"extra": 1},
    ],
)
def test_a_configuration_of_no_head(saved: Path, values: dict[str, Any]) -> None:
    change(saved, **values)
    with pytest.raises(ModelError, match=r"head\.json is damaged"):
        load_into_a_model(saved)


def test_a_head_of_other_labels_or_of_another_model(saved: Path) -> None:
    labels = (Label(code="sym"), Label(code="dis"))  # the same labels in another order
    with pytest.raises(ModelError, match="the head reads the labels dis, sym, and the task has sym, dis"):
        read_head_config(saved, TASK.model_copy(update={"labels": labels}))
    with pytest.raises(ModelError, match=r"hidden size 32 and 2 layers, and this has 32 and 3"):
        load_into_a_model(saved, num_hidden_layers=3)


def test_weights_that_are_not_those_of_the_configuration(saved: Path) -> None:
    weights = load_file(saved / "head.safetensors")
    path = saved / "head.safetensors"
    save_file({name: value for name, value in weights.items() if name != "bias"}, path)
    with pytest.raises(ModelError, match=r"is not that of head\.json; it differs in bias"):
        load_into_a_model(saved)
    save_file(weights | {"bias": torch.zeros(3)}, path)
    with pytest.raises(ModelError, match="differs in bias"):
        load_into_a_model(saved)
    save_file(weights | {"bias": torch.tensor([0.0, math.nan])}, path)
    with pytest.raises(ModelError, match="bias"):
        load_into_a_model(saved)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ModelError, match=r"the head is damaged: head\.safetensors cannot be read"):
        load_into_a_model(saved)
