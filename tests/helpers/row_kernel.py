"""A CPU implementation of `spantune::row_attention`, slow and easy to check, and passes of rows with and without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from spantune.extraction.slot_cache import SlotCache
from spantune.models import RowView, Span, blocks_of, unread_mask, windows

CPU = torch.device("cpu")


@contextmanager
def on_cpu() -> Iterator[None]:
    """Inside the block, rows of compiled layers on a CPU use the computation below in place of the Triton kernel."""
    library = torch.library.Library("spantune", "IMPL", "CPU")
    library.impl("row_attention", _attend)
    try:
        yield
    finally:
        library._destroy()


def written(made: Any, cache: SlotCache, *, compiled: bool) -> Tensor:
    """Return the logits of two rows that are fed in two passes; with `compiled`, the second pass is padded."""
    found = []
    for position, counts in ((0, (5, 3)), (5, (1, 4))):
        spans = [Span(1, 0, counts[0], position), Span(2, counts[0], counts[1], 3 * (position > 0))]
        places = [place for span in spans for place in range(span.position, span.position + span.queries)]
        padding = (compiled and position > 0) * 3
        slots = torch.tensor([*range(position + 3 * (position > 0), 16)][: sum(counts)] + [cache.capacity] * padding)
        rows = torch.tensor([span.row for span in spans for _ in range(span.queries)] + [cache.padding_row] * padding)
        positions = torch.tensor(places + [0] * padding)
        cache.slots[rows, positions] = slots.int()
        cache.destination = slots
        view = RowView(cache.slots, windows(made.config), spans)
        if compiled:
            blocks = torch.tensor([*blocks_of(spans, 2), (0, 0, 0, 0)])
            view = RowView(cache.slots, windows(made.config), (), blocks, None, cache.stores, slots)
        with torch.inference_mode():
            output = made(
                input_ids=torch.arange(7, 7 + len(slots))[None],
                position_ids=positions[None],
                attention_mask=unread_mask(made.config, torch.float32, CPU),
                past_key_values=cache,
                use_cache=True,
                rows=view,
            )
        found.append(output.logits[0, : sum(counts)])
    return torch.cat(found)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, slots: Tensor, blocks: Tensor, scale: float, window: int
) -> Tensor:
    heads, tokens, size = query.shape
    attended = query.new_zeros(1, tokens, heads, size)
    for row, first, count, position in blocks.tolist():
        if count:
            span, of_block = Span(row, 0, count, position), query[None, :, first : first + count]
            view = RowView(slots, [window or None], [span])
            attended[:, first : first + count] = view.attend(0, of_block, key, value, scale)
    return attended
