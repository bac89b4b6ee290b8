"""The key-value cache of a decoding batch: rows take slots for their tokens and give them back.

    slot      0 … P-1        P        P+1      P+2     …
    holds     instruction    row 1    row 3    row 1   …

The cache holds the instruction once, then the tokens of all rows in any order. `slots[row, position]` is the slot of a
row's position, and the first positions of every row are those of the instruction. Nothing is padded or moved, slots of
finished rows are used again, and the size is fixed when the cache is made. Rows take slots in pages. With pages of one
slot, no slot is left unused. With larger pages, the keys of a row lie in few runs of consecutive slots, which a CPU can
multiply without copying them (see `models.kernels.rows_joint`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from spantune.models import ModelConfig, Run, head_size, kv_heads

INSTRUCTION = 0  # the row in which the instruction is computed


class SlotCache(Cache):
    """The keys and values of every layer, each [slots, heads, head size].

    Args:
        rows: the most rows at a time.
        longest: the most positions of a row.
        capacity: the slots of all rows and the instruction together, a multiple of `page`.
        device: the device of the tensors.
        page: how many consecutive slots a row takes at a time.
        dtype: the type in which keys and values are stored; None for that of the model.
    """

    def __init__(
        self,
        rows: int,
        longest: int,
        capacity: int,
        device: torch.device,
        page: int = 1,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(layers=[])
        assert capacity % page == 0, "the slots are whole pages"
        self.capacity, self.longest = capacity, longest
        self._page, self._dtype = page, dtype
        self.padding_row = rows + 1  # the row of padding tokens; they share one slot behind all others
        self.slots = torch.zeros(rows + 2, longest, dtype=torch.int32, device=device)
        self.destination = torch.zeros(0, dtype=torch.long, device=device)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._free = list(range(0, capacity, page))[::-1]  # the first slots of free pages
        self._rows = list(range(1, rows + 1))[::-1]
        self._held: dict[int, list[int]] = {INSTRUCTION: []}  # the first slots of each row's pages
        self._lengths: dict[int, int] = {INSTRUCTION: 0}

    @property
    def stores(self) -> list[tuple[Tensor, Tensor]]:
        """The keys and the values of each layer; empty before the first pass."""
        return list(zip(self._keys, self._values, strict=True))

    @property
    def room(self) -> int:
        """How many tokens have slots for certain, whichever rows they belong to; exact with pages of one slot."""
        return self._page * len(self._free) - (self._page - 1) * (len(self._held) - 1)

    def open(self) -> int:
        """Open a row, which begins with the instruction; return its number."""
        row = self._rows.pop()
        self._held[row], self._lengths[row] = [], 0
        return row

    def take(self, row: int, count: int) -> list[int]:
        """Take slots for the next `count` tokens of `row`; return them, one for each token. There must be room."""
        held, length, taken = self._held[row], self._lengths[row], []
        for place in range(length, length + count):
            if place % self._page == 0:
                held.append(self._free.pop())
            taken.append(held[-1] + place % self._page)
        self._lengths[row] = length + count
        return taken

    def runs(self, row: int) -> list[Run]:
        """Return the runs of consecutive slots that a row has taken, with the positions that they hold."""
        position = 0 if row == INSTRUCTION else self._lengths[INSTRUCTION]
        end, runs = position + self._lengths[row], list[Run]()
        for slot in self._held[row]:
            last = min(position + self._page, end)
            if runs and slot == runs[-1].slot + runs[-1].end - runs[-1].position:
                runs[-1] = runs[-1]._replace(end=last)
            else:
                runs.append(Run(position, last, slot))
            position = last
        return runs

    def close(self, row: int) -> None:
        """Free a row and its slots."""
        self._free += self._held.pop(row)[::-1]
        self._rows.append(row)

    def share(self, length: int) -> None:
        """Let every row begin with the first `length` positions of the instruction; free the slots behind them."""
        held, kept = self._held[INSTRUCTION], -(-length // self._page)
        self._free += held[kept:][::-1]
        del held[kept:]
        self._lengths[INSTRUCTION] = length
        self.slots[:, :length] = self.slots[INSTRUCTION, :length].clone()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store keys and values [1, heads, tokens, size] at `destination`; return those of all slots of the layer."""
        if layer_idx == len(self._keys):
            for store, states in ((self._keys, key_states), (self._values, value_states)):
                shape = (self.capacity + 1, states.shape[1], states.shape[3])
                store.append(states.new_empty(shape, dtype=self._dtype))
        for store, states in ((self._keys, key_states), (self._values, value_states)):
            kept = store[layer_idx]
            kept.index_copy_(0, self.destination, states[0].transpose(0, 1).to(kept.dtype))
        return self._keys[layer_idx], self._values[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0. Positions are always passed to the model, so it need not derive them from this."""
        return 0


def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return the bytes of the keys and values of one token in all layers of a model."""
    return int(2 * config.num_hidden_layers * kv_heads(config) * head_size(config) * dtype.itemsize)
