"""Packs for reading spans: the tokens of several examples in one sequence, and their characters in another one.

    tokens      [prefix][text 1][text 2]…
    characters  [characters of 1] gap [characters of 2]…

The positions of each example begin after the prefix, and a token attends to the prefix and to its own example, as in
packs for writing. The gap is half as wide as the head's convolution, so that no text influences another one.
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
    """Return a tensor, or a mapping with its tensors, on `device`; any other value is returned unchanged.

    A copy to a GPU is queued there; the host does not wait for it.
    """
    if isinstance(value, Mapping):
        return {name: moved(inner, device) for name, inner in value.items()}
    if not isinstance(value, Tensor) or value.device.type == device.type:
        return value
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)


@dataclass(frozen=True)
class SpanPack:
    """A pack as tensors of type long. `characters` counts the characters of all texts and the gaps between them.

    Attributes:
        ids: [tokens], the token ids.
        positions: [tokens], the position of each token if the prefix and its example stood alone.
        owner: [tokens], 0 for the prefix and 1, 2, … for the examples.
        reach: [tokens], the last position that each token attends to; None in causal order.
        token: [characters], the index of the character's token.
        before: [characters], the number of characters of its token before it.
        after: [characters], the number of characters of its token after it.
        own: [characters], the token id of the character by itself.
        place: [characters], the index of the character in its text; 0 in gaps.
        room: [characters], the number of spans that begin at the character (see `Band`); 0 in gaps.
        starts: [examples], the index of the first character of each example.
        grid: [examples, longest text], the index of each character of each example; the number of `characters` where a
            shorter text has no more of them.
        gold: [entities, 3], the first character, the last one minus the first one, and the type of each gold entity.
        width: the most characters of a span.
        spans: the fields of `Spans`.
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
        """Return the same pack on `device`."""
        return SpanPack(**moved(vars(self), device))

    @property
    def band(self) -> Band:
        """The places of the characters, which the head needs."""
        return Band(self.place, self.before, self.after, self.room, self.width)


def pack_spans(
    examples: Sequence[SpanExample], prefix: Sequence[int], budget: int, settings: config.Spans
) -> list[SpanPack]:
    """Make packs from examples that all begin with `prefix`.

    Args:
        examples: the examples.
        prefix: the token ids that all of them begin with; each pack holds them once.
        budget: the maximum number of tokens in a pack.
        settings: the settings of the head, with `longest` filled in.
    """
    return [layout_spans(group, prefix, settings) for group in grouped(examples, prefix, budget)]


def layout_spans(examples: Sequence[SpanExample], prefix: Sequence[int], settings: config.Spans) -> SpanPack:
    """Make one pack of `examples`, which all begin with `prefix`."""
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
    if not columns[0]:  # all texts are empty: the head gets one character that belongs to no text
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
    """Return the index of each character of each example [examples, longest], and `none` after its last character."""
    places = torch.arange(max(1, *sizes))[None]
    index = torch.tensor(starts)[:, None] + places
    return index.masked_fill_(places >= torch.tensor(sizes)[:, None], none)


def span_logits(model: CausalLM, pack: SpanPack, dtype: torch.dtype) -> Tensor:
    """Return the logits [characters, width, types] of the spans of a pack, in float32 (see `SpanHead.forward`).

    Args:
        model: a causal LM with a span head, with or without PEFT adapters.
        pack: the pack, on the model's device.
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
