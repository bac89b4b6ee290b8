"""Attention masks by owner and position: examples of a pack do not see each other, and windows count in the example."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from helpers.fakes import tiny_model
from helpers.packs import FAMILIES, examples, packed, states_of
from spantune.core import ModelError
from spantune.encoding import PREFIX, Example
from spantune.models import Places
from spantune.models.attention import attention_mask, check_attention, segments


def allowed(mask: torch.Tensor) -> list[list[bool]]:
    rows: list[list[bool]] = (mask[0, 0] == 0).tolist()
    return rows


def places(pairs: list[tuple[int, int]]) -> Places:
    return Places(torch.tensor([owner for owner, _ in pairs]), torch.tensor([position for _, position in pairs]))


NOBODY = -1  # the owner of padding
token = st.tuples(st.sampled_from([NOBODY, PREFIX, 1, 2, 3]), st.integers(0, 12))


@given(
    queries=st.lists(token.filter(lambda pair: pair[0] > 0), min_size=1, max_size=6),
    keys=st.lists(token, min_size=1, max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_a_query_sees_prefix_and_own_example_up_to_itself_within_the_window(
    queries: list[tuple[int, int]], keys: list[tuple[int, int]]
) -> None:
    config = tiny_config("gemma3_text")
    masks = attention_mask(config, places(queries), places(keys), torch.float32)
    assert isinstance(masks, dict) and sorted(masks) == ["full_attention", "sliding_attention"]
    for kind, reach in (("full_attention", 99), ("sliding_attention", config.sliding_window)):
        assert masks[kind].shape == (1, 1, len(queries), len(keys))
        assert allowed(masks[kind]) == [
            [key in (PREFIX, own) and 0 <= at - place < reach for key, place in keys] for own, at in queries
        ]


def tiny_config(family: str, **changes: Any) -> Any:
    if family == "gemma3_text":
        changes = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"], **changes}
    return AutoConfig.for_model(family, num_hidden_layers=2, **changes)


def test_a_model_without_layer_kinds_gets_one_mask_and_its_window() -> None:
    every = places([(1, position) for position in range(5)])
    windowed = attention_mask(tiny_config("mistral", sliding_window=2), every, every, torch.float32)
    full = attention_mask(tiny_config("llama"), every, every, torch.float32)
    assert isinstance(windowed, torch.Tensor) and isinstance(full, torch.Tensor)
    assert allowed(windowed) == [[0 <= query - key < 2 for key in range(5)] for query in range(5)]
    assert allowed(full) == [[key <= query for key in range(5)] for query in range(5)]


def test_a_window_that_is_switched_off_is_not_applied() -> None:
    every = places([(1, position) for position in range(5)])
    config = AutoConfig.for_model("phi3", sliding_window=2)
    config.use_sliding_window = False
    mask = attention_mask(config, every, every, torch.float32)
    assert isinstance(mask, torch.Tensor) and allowed(mask)[4][0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_keys_are_as_far_down_as_the_type_reaches(dtype: torch.dtype) -> None:
    both = places([(1, 0), (2, 0)])
    mask = attention_mask(tiny_config("llama"), both, both, dtype)
    assert isinstance(mask, torch.Tensor) and mask.dtype == dtype
    assert mask[0, 0, 0, 1] == torch.finfo(dtype).min and mask[0, 0, 0, 0] == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_perturbing_one_example_leaves_the_others_bit_equal(family: str) -> None:
    model, all_examples = tiny_model(family, vocabulary=280), examples()
    before = states_of(model, all_examples)
    changed = list(all_examples)
    victim = changed[1]
    changed[1] = Example(victim.id, (*victim.ids[:20], *(token ^ 1 for token in victim.ids[20:])), victim.answer_start)
    after = states_of(model, changed)
    for number in (0, 2, 3):
        assert torch.equal(before[number], after[number])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_a_window_counted_by_pack_index_would_give_other_states(family: str) -> None:
    """A check of the test above: on these examples, counting by pack index gives different states."""
    model = tiny_model(family, vocabulary=280)
    pack = packed(examples())
    right = Places(pack.owner, pack.positions)
    by_index = Places(pack.owner, torch.arange(len(pack.ids)))
    states = [
        model.base_model(
            input_ids=pack.ids[None],
            position_ids=pack.positions[None],
            attention_mask=attention_mask(model.config, counted, counted, torch.float32),
            use_cache=False,
        ).last_hidden_state
        for counted in (right, by_index)
    ]
    assert (states[0] - states[1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_by_segments_is_attention_under_the_mask(family: str) -> None:
    """Only what the mask hides is skipped, with a shared prefix and without one."""
    model = tiny_model(family, vocabulary=280)
    for prefix in (None, ()):
        pack = packed(examples(), prefix)
        inputs = {"input_ids": pack.ids[None], "position_ids": pack.positions[None], "use_cache": False}
        counted = Places(pack.owner, pack.positions)
        inputs["attention_mask"] = attention_mask(model.config, counted, counted, torch.float32)
        parts = segments(counted, counted)
        assert parts is not None and len(parts) == (5 if prefix is None else 4)
        assert sum(len(part.keys) * (part.queries.stop - part.queries.start) for part in parts) < len(pack.ids) ** 2
        with torch.no_grad():
            masked = model.base_model(**inputs).last_hidden_state
            skipped = model.base_model(**inputs, segments=parts).last_hidden_state
        torch.testing.assert_close(skipped, masked, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "kind"),
    [("qwen3_next", "linear_attention"), ("llama4_text", "chunked_attention"), ("mamba", "linear_attention")],
)
def test_layers_that_would_mix_examples_are_refused(family: str, kind: str) -> None:
    config = AutoConfig.for_model(family)
    if not getattr(config, "layer_types", None):
        pytest.skip("this release of transformers does not name the layers of this model")
    with pytest.raises(ModelError, match=rf"{family}.*{kind}.*would mix"):
        check_attention(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_and_sliding_attention_are_taken(family: str) -> None:
    check_attention(tiny_model(family).config)


def test_soft_capped_attention_is_refused() -> None:
    with pytest.raises(ModelError, match=r"gemma2.*caps its attention logits"):
        check_attention(AutoConfig.for_model("gemma2"))
    check_attention(AutoConfig.for_model("gemma2", attn_logit_softcapping=None))
