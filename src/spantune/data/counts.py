"""Count what is in a corpus: labels, nesting, lengths, repeated and ambiguous surfaces."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from spantune.core import DataError, Document, Entity
from spantune.data.sentences import sentence_ends

AMBIGUOUS_SHOWN = 10
"""The most surfaces with several labels that `Statistics.ambiguous` lists."""
BINS = 12
"""The approximate number of bins of a histogram, without its open last bin."""


@dataclass(frozen=True, slots=True)
class Bin:
    """The number of values in [low, high). The last bin of a histogram may have no upper end: `high` is None."""

    low: int
    high: int | None
    count: int

    @property
    def name(self) -> str:
        """The range as people write it: "20–39", "7" or "180 and more"."""
        if self.high is None:
            return f"{self.low} and more"
        return str(self.low) if self.high == self.low + 1 else f"{self.low}–{self.high - 1}"


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts over the documents of a corpus. Lengths are in characters; percentiles are by nearest rank.

    Args:
        documents: the number of documents.
        sentences: the number of sentences.
        entities: the number of entities of each label, the most frequent label first.
        nested: entities inside a longer one.
        depths: the number of entities at each depth; an entity at depth 1 is inside no other.
        crossing: pairs of entities that overlap without one being inside the other.
        shared_spans: spans with several labels.
        without_entities: documents without entities.
        length_p50: the median length of a text.
        length_p90: the length that 90 % of the texts do not exceed.
        length_max: the length of the longest text.
        duplicates: documents whose text an earlier document has.
        surfaces: different surfaces; case matters.
        repeated_surfaces: the share of entities whose surface occurs more than once in their text.
        ambiguous_surfaces: surfaces with several labels.
        ambiguous: the surfaces whose labels disagree most, each with the number of entities of each label.
        characters: a histogram of the lengths of texts.
        entity_characters: a histogram of the lengths of entities.
    """

    documents: int
    sentences: int
    entities: Mapping[str, int]
    nested: int
    depths: Mapping[int, int]
    crossing: int
    shared_spans: int
    without_entities: int
    length_p50: int
    length_p90: int
    length_max: int
    duplicates: int
    surfaces: int
    repeated_surfaces: float
    ambiguous_surfaces: int
    ambiguous: Mapping[str, Mapping[str, int]]
    characters: tuple[Bin, ...]
    entity_characters: tuple[Bin, ...]


def statistics(documents: Iterable[Document]) -> Statistics:
    """Count what is in `documents`.

    Raises:
        DataError: there are no documents.
    """
    documents = list(documents)
    if not documents:
        raise DataError("there are no documents to count; expected at least one")
    lengths = sorted(len(document.text) for document in documents)
    labels = Counter(entity.label for document in documents for entity in document.entities)
    depths: Counter[int] = Counter()
    for document in documents:
        depths.update(map(nesting(document).__getitem__, document.entities))
    surfaces = _surfaces(documents)
    ambiguous = {surface: counts for surface, counts in surfaces.items() if len(counts) > 1}
    by_dissent = sorted(ambiguous.items(), key=lambda pair: (max(pair[1].values()) - pair[1].total(), pair[0]))
    repeated = sum(_repeated(document) for document in documents)
    return Statistics(
        documents=len(documents),
        sentences=sum(map(_sentences, documents)),
        entities=dict(labels.most_common()),
        nested=labels.total() - depths[1],
        depths=dict(sorted(depths.items())),
        crossing=sum(map(_crossing, documents)),
        shared_spans=sum(map(_shared_spans, documents)),
        without_entities=sum(not document.entities for document in documents),
        length_p50=_percentile(lengths, 0.5),
        length_p90=_percentile(lengths, 0.9),
        length_max=lengths[-1],
        duplicates=len(documents) - len({document.text for document in documents}),
        surfaces=len(surfaces),
        repeated_surfaces=round(repeated / (labels.total() or 1), 4),
        ambiguous_surfaces=len(ambiguous),
        ambiguous={surface: dict(counts.most_common()) for surface, counts in by_dissent[:AMBIGUOUS_SHOWN]},
        characters=histogram(lengths),
        entity_characters=histogram([entity.end - entity.start for d in documents for entity in d.entities]),
    )


def histogram(values: Iterable[int]) -> tuple[Bin, ...]:
    """Count non-negative `values` in about `BINS` bins of equal width; an empty tuple without values.

    The width is 1, 2 or 5 times a power of ten. The bins reach to the 99th percentile. Values beyond the bin of the
    99th percentile are counted in this last bin, which is then open.
    """
    ordered = sorted(values)
    if not ordered:
        return ()
    rough = max(1, math.ceil(_percentile(ordered, 0.99) / BINS))
    power = 10 ** (len(str(rough)) - 1)
    width = next(size * power for size in (1, 2, 5, 10) if size * power >= rough)
    edges = range(ordered[0] // width * width, _percentile(ordered, 0.99) + 1, width)
    places = [bisect_left(ordered, edge) for edge in edges] + [len(ordered)]
    counts = [after - before for before, after in pairwise(places)]
    highs = [*edges[1:], None if ordered[-1] >= edges[-1] + width else edges[-1] + width]
    return tuple(Bin(low, high, count) for low, high, count in zip(edges, highs, counts, strict=True))


def nesting(document: Document) -> dict[Entity, int]:
    """Return the depth of every entity: 1 if it is inside no longer one, else one more than the deepest around it."""
    depths: dict[Entity, int] = {}
    for inner in sorted(set(document.entities), key=lambda entity: entity.start - entity.end):
        around = [
            depth
            for outer, depth in depths.items()
            if outer.start <= inner.start
            and inner.end <= outer.end
            and outer.end - outer.start > inner.end - inner.start
        ]
        depths[inner] = max(around, default=0) + 1
    return depths


def _sentences(document: Document) -> int:
    """Count the sentences of the text. Text behind the last end of a sentence counts as one if it is not blank."""
    ends = sentence_ends(document.text)
    return len(ends) + bool(document.text[ends[-1] if ends else 0 :].strip())


def _surfaces(documents: Iterable[Document]) -> dict[str, Counter[str]]:
    """Count the entities of each surface by label."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for document in documents:
        for entity in document.entities:
            counts[document.surface(entity)][entity.label] += 1
    return counts


def _repeated(document: Document) -> int:
    """Count the entities whose surface occurs more than once in the text of the document."""
    return sum(
        document.text.find(surface, document.text.find(surface) + 1) >= 0
        for surface in map(document.surface, document.entities)
    )


def _crossing(document: Document) -> int:
    entities = document.entities
    return sum(
        first.start < second.start < first.end < second.end
        for index, first in enumerate(entities)
        for second in entities[index + 1 :]
    )


def _shared_spans(document: Document) -> int:
    labels: dict[tuple[int, int], set[str]] = {}
    for entity in document.entities:
        labels.setdefault((entity.start, entity.end), set()).add(entity.label)
    return sum(len(names) > 1 for names in labels.values())


def _percentile(ordered: Sequence[int], share: float) -> int:
    return ordered[math.ceil(share * len(ordered)) - 1]
