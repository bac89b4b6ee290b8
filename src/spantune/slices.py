"""Slices of a corpus: which entities are nested, short, rare or new, as masks over both sides.

A slice chooses gold entities by a property that they have among the gold ones, and predicted entities by the same
property among the predicted ones. The properties are the entity's own but for nesting, which needs the others: there
an entity can be found and lie in another slice than its gold one, so that recall and precision count apart. What is
in no slice of a kind is in none; slices that nothing is in are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from spantune.counts import Bools, Ints, Side
from spantune.document import Document

ENTITY_LENGTHS = (1, 2, 4, 8, 16)
"""Lower bounds of the slices by characters of an entity."""
TEXT_LENGTHS = (0, 32, 64, 128, 256)
"""Lower bounds of the slices by characters of a text."""
FREQUENCIES = (0, 1, 10, 100, 1000)
"""Lower bounds of the slices by how many entities have the label."""


class Slice(NamedTuple):
    """Some gold and predicted entities, such as kind "nesting", name "inside"."""

    kind: str
    name: str
    gold: Bools
    predicted: Bools


def slices(
    both: tuple[Side, Side], texts: Sequence[Document], codes: Sequence[str], train: Sequence[Document] | None
) -> Iterator[Slice]:
    """The slices of both sides; labels are counted, and surfaces known, in `train` where it is given."""
    yield Slice("nesting", "nested", *(side.nested for side in both))
    yield Slice("nesting", "inside", *(side.inside for side in both))
    yield Slice("nesting", "flat", *(~side.nested for side in both))
    yield from _binned("entity length", [side.end - side.start for side in both], ENTITY_LENGTHS)
    lengths = np.array([len(document.text) for document in texts], dtype=np.int64)
    yield from _binned("text length", [lengths[side.document] for side in both], TEXT_LENGTHS)
    frequency = _frequency(both[0], codes, train)
    yield from _binned("label frequency", [frequency[side.label] for side in both], FREQUENCIES)
    if train is not None:
        known = {document.surface(entity) for document in train for entity in document.entities}
        seen = [_among(side, known) for side in both]
        yield Slice("surface", "seen", *seen)
        yield Slice("surface", "unseen", *(~one for one in seen))


def _frequency(gold: Side, codes: Sequence[str], train: Sequence[Document] | None) -> Ints:
    """How many entities have each label, in `train` or else in gold."""
    if train is None:
        return np.bincount(gold.label, minlength=len(codes))
    rows = {code: row for row, code in enumerate(codes)}
    labels = [rows[entity.label] for document in train for entity in document.entities if entity.label in rows]
    return np.bincount(np.array(labels, dtype=np.int64), minlength=len(codes))


def _among(side: Side, known: Collection[str]) -> Bools:
    return np.fromiter((surface in known for surface in side.surface), dtype=bool, count=len(side.surface))


def _binned(kind: str, values: Sequence[Ints], bounds: Sequence[int]) -> Iterator[Slice]:
    """Slices of `kind` by `values` of gold and predicted entities: from each bound to before the next."""
    places = [np.searchsorted(bounds, column, side="right") - 1 for column in values]
    for place, low in enumerate(bounds):
        high = bounds[place + 1] - 1 if place + 1 < len(bounds) else None
        name = f"{low}+" if high is None else str(low) if high == low else f"{low}-{high}"
        yield Slice(kind, name, places[0] == place, places[1] == place)
