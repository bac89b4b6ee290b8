"""The kernel of `spantune::row_attention` for a CPU: each block by itself, slow and plainly right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from spantune.models import RowView, Span


@contextmanager
def on_cpu() -> Iterator[None]:
    """Rows of compiled layers on a CPU go to the computation below, as they go to the Triton kernel on a GPU."""
    library = torch.library.Library("spantune", "IMPL", "CPU")
    library.impl("row_attention", _attend)
    yield
    library._destroy()


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
