"""Slots are taken, given back and taken again, and keys and values come out where they went in."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import tiny_model
from spantune.attention import attention_mask
from spantune.cache import FlatCache
from spantune.pack import PADDING, PREFIX

CPU = torch.device("cpu")


def states(values: list[float], size: int = 4) -> torch.Tensor:
    return torch.tensor(values)[None, None, :, None].expand(1, 2, len(values), size).contiguous()


def test_places_are_in_the_order_taken() -> None:
    cache = FlatCache(CPU)
    query = cache.place([0, 0, 1, 2], [0, 1, 2, 2])
    assert query.owner.tolist() == [0, 0, 1, 2] and query.position.tolist() == [0, 1, 2, 2]
    assert cache.places().owner.tolist() == [0, 0, 1, 2] and cache.places().position.tolist() == [0, 1, 2, 2]
    assert cache.get_seq_length() == 4


def test_released_slots_are_used_again_lowest_first() -> None:
    cache = FlatCache(CPU)
    cache.place([0, 1, 2, 1, 2], [0, 1, 1, 2, 2])
    cache.release(1)
    assert cache.places().owner.tolist() == [0, PADDING, 2, PADDING, 2]
    cache.place([3, 3, 3], [1, 2, 3])
    assert cache.places().owner.tolist() == [0, 3, 2, 3, 2, 3]
    assert cache.places().position.tolist() == [0, 1, 1, 2, 2, 3]


def test_keys_and_values_lie_in_their_slots_when_the_store_grows() -> None:
    cache = FlatCache(CPU)
    cache.place([PREFIX] * 3, [0, 1, 2])
    keys, values = cache.update(states([1.0, 2.0, 3.0]), -states([1.0, 2.0, 3.0]), 0)
    assert keys[0, 0, :, 0].tolist() == [1, 2, 3] and values[0, 1, :, 3].tolist() == [-1, -2, -3]
    cache.place([1, 2], [3, 3])
    cache.update(states([4.0, 5.0]), states([4.0, 5.0]), 0)
    cache.release(1)
    many = 700  # beyond the 256 slots that there are at first, more than once
    cache.place([3] * many, list(range(3, 3 + many)))
    keys, _ = cache.update(states([100.0 + i for i in range(many)]), states([0.0] * many), 0)
    assert keys.shape == (1, 2, 5 + many - 1, 4)
    assert keys[0, 0, :5, 0].tolist() == [1, 2, 3, 100, 5]  # the freed slot was taken first
    assert keys[0, 0, 5:, 0].tolist() == [101.0 + i for i in range(many - 1)]
    assert cache.places().owner.tolist() == [0, 0, 0, 3, 2] + [3] * (many - 1)


@given(st.lists(st.one_of(st.integers(1, 4), st.integers(-4, -1)), max_size=40))
@settings(max_examples=50, deadline=None)
def test_every_owner_has_its_tokens_and_no_slot_has_two(steps: list[int]) -> None:
    """Positive: the row takes as many slots as its number; negative: it is released."""
    cache, rows = FlatCache(CPU), dict[int, int]()
    for step in steps:
        if step > 0:
            first = rows.get(step, 0)
            cache.place([step] * step, list(range(first, first + step)))
            rows[step] = first + step
        elif -step in rows:
            cache.release(-step)
            del rows[-step]
        found = cache.places()
        for owner in range(1, 5):
            held = sorted(found.position[found.owner == owner].tolist())
            assert held == list(range(rows.get(owner, 0)))


def test_cached_rows_have_the_logits_of_a_whole_forward_pass() -> None:
    model = tiny_model("gemma3_text")
    prefix, rows = [5, 6, 7, 8, 9], {1: [11, 12, 13, 14, 15, 16], 2: [21, 22, 23, 24]}
    cache = FlatCache(CPU)

    def feed(owners: list[int], positions: list[int], ids: list[int]) -> torch.Tensor:
        query = cache.place(owners, positions)
        mask = attention_mask(model.config, query, cache.places(), torch.float32)
        with torch.no_grad():
            found: torch.Tensor = model(
                input_ids=torch.tensor([ids]),
                position_ids=query.position[None],
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
            ).logits[0]
        return found

    feed([PREFIX] * 5, list(range(5)), prefix)
    feed([1, 1, 2], [5, 6, 5], [11, 12, 21])
    logits = feed([2, 1, 2, 1, 2, 1, 1], [6, 7, 7, 8, 8, 9, 10], [22, 13, 23, 14, 24, 15, 16])
    with torch.no_grad():
        alone = {
            owner: model(input_ids=torch.tensor([prefix + row]), use_cache=False).logits[0]
            for owner, row in rows.items()
        }
    torch.testing.assert_close(logits[[1, 3, 5, 6]], alone[1][-4:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[[0, 2, 4]], alone[2][-3:], rtol=1e-4, atol=1e-4)
