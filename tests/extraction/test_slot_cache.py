"""Cache slots are taken, shared and returned, and hold what was written into them."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.fakes import tiny_model
from spantune.extraction.slot_cache import INSTRUCTION, SlotCache, bytes_per_token
from spantune.models import Run

CPU = torch.device("cpu")


def states(values: list[float], size: int = 4) -> torch.Tensor:
    return torch.tensor(values)[None, None, :, None].expand(1, 2, len(values), size).contiguous()


def test_slots_are_taken_lowest_first_and_used_again() -> None:
    cache = SlotCache(2, 10, 8, CPU)
    assert cache.take(INSTRUCTION, 2) == [0, 1]
    one, other = cache.open(), cache.open()
    assert cache.take(one, 2) == [2, 3] and cache.take(other, 1) == [4] and cache.room == 3
    cache.close(one)
    assert cache.room == 5 and cache.open() == one and cache.take(one, 3) == [2, 3, 5]


def test_every_row_begins_with_the_instruction() -> None:
    cache = SlotCache(3, 6, 20, CPU)
    cache.slots[INSTRUCTION, :4] = torch.tensor(cache.take(INSTRUCTION, 4), dtype=torch.int32) + 7
    cache.share(4)
    assert (cache.slots[:, :4] == torch.tensor([7, 8, 9, 10])).all() and cache.room == 16
    cache.share(3)  # a text that the tokenizer merged with its end
    assert cache.room == 17 and cache.take(cache.open(), 1) == [3]


def test_rows_take_whole_pages_whose_neighbours_make_one_run() -> None:
    cache = SlotCache(2, 40, 32, CPU, page=4, dtype=torch.float64)
    assert cache.take(INSTRUCTION, 6) == [0, 1, 2, 3, 4, 5]
    cache.share(5)
    assert cache.runs(INSTRUCTION) == [Run(0, 5, 0)] and cache.room == 24
    one, other = cache.open(), cache.open()
    assert cache.take(one, 3) == [8, 9, 10] and cache.take(other, 1) == [12]
    assert cache.take(one, 7) == [11, 16, 17, 18, 19, 20, 21]
    assert cache.runs(one) == [Run(5, 9, 8), Run(9, 15, 16)] and cache.runs(other) == [Run(5, 6, 12)]
    assert cache.room == 2 and len(cache.take(one, 1) + cache.take(other, 1)) == 2  # the room that any rows can take
    cache.close(one)
    cache.close(other)
    assert cache.room == 24
    cache.destination = torch.tensor([3])
    assert cache.update(states([1.0]), states([2.0]), 0)[1].dtype == torch.float64


def test_keys_and_values_lie_in_their_slots() -> None:
    cache = SlotCache(2, 10, 8, CPU)
    cache.destination = torch.tensor([3, 0, 5])
    keys, values = cache.update(states([1.0, 2.0, 3.0]), -states([1.0, 2.0, 3.0]), 0)
    assert keys.shape == (9, 2, 4) and keys[[3, 0, 5], 0, 0].tolist() == [1, 2, 3]
    cache.destination = torch.tensor([8])  # no row owns it
    cache.update(states([9.0]), states([9.0]), 0)
    assert values[[3, 0, 5], 1, 3].tolist() == [-1, -2, -3]


@given(st.lists(st.one_of(st.integers(1, 4), st.integers(-4, -1)), max_size=40))
@settings(max_examples=50, deadline=None)
def test_no_slot_has_two_owners_and_none_is_lost(steps: list[int]) -> None:
    """A positive step takes as many slots as the row's number; a negative one returns the row."""
    cache, rows, held = SlotCache(4, 200, 200, CPU), dict[int, int](), dict[int, list[int]]()
    for step in steps:
        if step > 0:
            row = rows.setdefault(step, 0) or cache.open()
            rows[step] = row
            held.setdefault(step, []).extend(cache.take(row, step))
        elif -step in rows:
            cache.close(rows.pop(-step))
            del held[-step]
        taken = [slot for slots in held.values() for slot in slots]
        assert len(taken) == len(set(taken)) == 200 - cache.room
    for row in rows.values():
        cache.close(row)
    assert cache.room == 200 and sorted(cache.take(cache.open(), 200)) == list(range(200))


def test_the_size_of_a_token_is_what_a_cache_takes() -> None:
    for family in ("phi3", "gemma3_text", "qwen3"):
        model = tiny_model(family)
        cache = SlotCache(1, 8, 7, CPU)
        for layer in range(model.config.num_hidden_layers):
            cache.destination = torch.tensor([0])
            shape = (1, model.config.num_key_value_heads, 1, model.model.layers[layer].self_attn.head_dim)
            stores = cache.update(torch.zeros(shape), torch.zeros(shape), layer)
        held = model.config.num_hidden_layers * sum(store.numel() * 4 for store in stores)
        assert held == 8 * bytes_per_token(model.config, torch.float32)
