"""A flat key-value cache: the instruction's entries once, then the tokens of all rows in any order.

    slot      0 … P-1        P        P+1      P+2     …
    owner     prefix         row 1    row 3    row 1   …   -1 = free
    position  0 … P-1        P        P        P+1     …

One forward pass takes the next tokens of every row as one sequence, so nothing is padded, forced
tokens of one row do not hold up the others, and a finished row's slots are used again. It holds keys
and values only; which slot may be seen by whom is the business of `attention`.
"""

from __future__ import annotations

import heapq
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from spantune.attention import Places
from spantune.pack import PADDING


class FlatCache(Cache):
    """Keys and values of every layer, [1, heads, slots, head size], grown on demand."""

    def __init__(self, device: torch.device):
        super().__init__(layers=[])
        self.device = device
        self.used = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._owner = torch.full((256,), PADDING, dtype=torch.long, device=device)
        self._position = torch.zeros(256, dtype=torch.long, device=device)
        self._slots = torch.zeros(0, dtype=torch.long, device=device)
        self._free: list[int] = []
        self._rows: dict[int, list[int]] = {}

    def place(self, owners: list[int], positions: list[int]) -> Places:
        """Take a slot for each token of the next forward pass; returns the places of these tokens."""
        slots = []
        for owner in owners:
            if self._free:
                slot = heapq.heappop(self._free)
            else:
                slot, self.used = self.used, self.used + 1
            slots.append(slot)
            self._rows.setdefault(owner, []).append(slot)
        while self.used > len(self._owner):
            self._owner = torch.cat([self._owner, torch.full_like(self._owner, PADDING)])
            self._position = torch.cat([self._position, torch.zeros_like(self._position)])
        self._slots = torch.tensor(slots, device=self.device)
        query = Places(torch.tensor(owners, device=self.device), torch.tensor(positions, device=self.device))
        self._owner[self._slots] = query.owner
        self._position[self._slots] = query.position
        return query

    def places(self) -> Places:
        """The places of all slots in use, free ones among them with owner -1."""
        return Places(self._owner[: self.used], self._position[: self.used])

    def release(self, owner: int) -> None:
        """Give a finished row's slots back."""
        slots = self._rows.pop(owner)
        self._owner[torch.tensor(slots, device=self.device)] = PADDING
        for slot in slots:
            heapq.heappush(self._free, slot)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the states of the placed tokens; returns the layer's keys and values of all slots in use."""
        if layer_idx == len(self._keys):
            self._keys.append(_empty(key_states, len(self._owner)))
            self._values.append(_empty(value_states, len(self._owner)))
        for store, states in ((self._keys, key_states), (self._values, value_states)):
            if store[layer_idx].shape[2] < self.used:
                grown = _empty(states, len(self._owner))
                grown[:, :, : store[layer_idx].shape[2]] = store[layer_idx]
                store[layer_idx] = grown
            store[layer_idx].index_copy_(2, self._slots, states)
        return self._keys[layer_idx][:, :, : self.used], self._values[layer_idx][:, :, : self.used]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Slots in use; positions are always given, so that no model derives them from this."""
        return self.used


def _empty(states: Tensor, slots: int) -> Tensor:
    return states.new_zeros((1, states.shape[1], slots, states.shape[3]))
