"""Packs of texts that are read: the tokens of several examples in one sequence, and where their characters are.

    tokens      [prefix][text 1][text 2]…
    characters  [characters of 1] gap [characters of 2]…

Positions restart after the prefix, and a token attends to the prefix and to its own example, as in the packs that are
written. The gap is half as wide as the convolution of the head, so that no text sees another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spantune.core import config
from spantune.encoding import SpanExample, grouped, joined
from spantune.models.architecture import causal_lm
from spantune.models.attention import Places, pack_view
from spantune.models.interfaces import CausalLM
from spantune.models.kernels.packs import Spans, spans
from spantune.models.parked import token_rows
from spantune.models.span_head import Band, require_head


def moved(value: Any, device: torch.device) -> Any:
    """Return a tensor, or the values of a mapping, on `device`; anything else as it is.

    To a GPU the copy waits in the order of its work, and the host does not wait for it.
    """
    if isinstance(value, Mapping):
        return {name: moved(inner, device) for name, inner in value.items()}
    if not isinstance(value, Tensor) or value.device.type == device.type:
        return value
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)


@dataclass(frozen=True)
class SpanPack:
    """A pack as tensors, all of type long.

    `ids`, `positions`, `owner` and `reach` are [tokens]; `reach` is None where tokens are in causal order. `token` (the
    index of a character's token), `before`, `after`, `own`, `place` and `room` are [characters], see `Band`. `starts`
    [examples] is the index of the first character of each example, and `grid` [examples, longest text] that of each
    character, with the number of characters behind the last one. `gold` [entities, 3] are first character, last minus
    first, and type. `width` is the most characters of a span, and `spans` are the fields of `Spans`.
    """

    ids: Tensor
    positions: Tensor
    owner: Tensor
    reach: Tensor | None
    token: Tensor
    before: Tensor
    after: Tensor
    own: Tensor
    place: Tensor
    room: Tensor
    starts: Tensor
    grid: Tensor
    gold: Tensor
    width: int
    spans: Mapping[str, Any]

    def to(self, device: torch.device) -> SpanPack:
        """The same pack on `device`."""
        return SpanPack(**moved(vars(self), device))

    @property
    def band(self) -> Band:
        """Where the characters are, for the head."""
        return Band(self.place, self.before, self.after, self.room, self.width)


def pack_spans(
    examples: Sequence[SpanExample], prefix: Sequence[int], budget: int, settings: config.Spans
) -> list[SpanPack]:
    """Make packs of at most `budget` tokens from examples that all begin with `prefix`.

    `settings` are those of the head, with `longest` filled.
    """
    return [layout_spans(group, prefix, settings) for group in grouped(examples, prefix, budget)]


def layout_spans(examples: Sequence[SpanExample], prefix: Sequence[int], settings: config.Spans) -> SpanPack:
    """Make one pack of `examples`, all of which begin with `prefix`."""
    shared, gap = len(prefix), settings.convolution // 2
    longest_text = max(len(example.characters.token) for example in examples)
    width = max(1, min(config.filled(settings.longest), longest_text))
    rows = joined(prefix, examples)
    columns: list[list[int]] = [[] for _ in range(6)]
    starts: list[int] = []
    gold: list[tuple[int, int, int]] = []
    for example, first_token in zip(examples, rows.starts, strict=True):
        characters, size = example.characters, len(example.characters.token)
        move = first_token - shared
        if starts:
            for column in columns:
                column += [0] * gap
        start = len(columns[0])
        starts.append(start)
        columns[0] += [index + move if index >= shared else index for index in characters.token]
        for column, values in zip(columns[1:4], (characters.before, characters.after, characters.own), strict=True):
            column += values
        columns[4] += range(size)
        columns[5] += range(size, 0, -1)
        gold += [(start + first, last - first, label) for first, last, label in example.gold]
    if not columns[0]:  # all texts are empty: one character that is in none of them, for the head to compute
        columns = [[0] for _ in columns]
    token, before, after, own, place, room = (torch.tensor(column, dtype=torch.long) for column in columns)
    is_whole = settings.view == "whole"
    return SpanPack(
        ids=torch.tensor(rows.ids),
        positions=torch.tensor(rows.positions),
        owner=torch.tensor(rows.owner),
        reach=torch.tensor(rows.reach) if is_whole else None,
        token=token,
        before=before,
        after=after,
        own=own,
        place=place,
        room=room.clamp(max=width),
        starts=torch.tensor(starts),
        grid=_grid(starts, [len(example.characters.token) for example in examples], len(token)),
        gold=torch.tensor(gold, dtype=torch.long).reshape(-1, 3),
        width=width,
        spans=spans(rows.owner, is_causal=not is_whole)._asdict(),
    )


def _grid(starts: Sequence[int], sizes: Sequence[int], none: int) -> Tensor:
    """Return the index of each character of each example, and `none` behind the last one."""
    places = torch.arange(max(1, *sizes))[None]
    index = torch.tensor(starts)[:, None] + places
    return index.masked_fill_(places >= torch.tensor(sizes)[:, None], none)


def span_logits(model: CausalLM, pack: SpanPack, dtype: torch.dtype) -> Tensor:
    """Return the logits [characters, width, types] of the spans of a pack, in float32 (see `SpanHead.forward`).

    Args:
        model: a causal LM with a head, with or without PEFT adapters.
        pack: the texts, on the model's device.
        dtype: the type that the model computes in.
    """
    base = causal_lm(model)
    places = Places(pack.owner, pack.positions, pack.reach)
    output = base.base_model(
        input_ids=pack.ids[None],
        position_ids=pack.positions[None],
        use_cache=False,
        **pack_view(base.config, places, Spans(**pack.spans), dtype),
    )
    states = output.last_hidden_state[0][pack.token]
    own = token_rows(base.get_input_embeddings().weight.detach(), pack.own)
    logits: Tensor = require_head(model)(states, own, pack.band)
    return logits
