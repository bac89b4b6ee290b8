"""Scores of predicted documents against gold documents.

An entity is correct if its (start, end, label) is in the gold set of the same document, even if entities are nested or
cross. The protocol `promptcblue` compares (mention, label) instead. Besides these strict figures there are lenient
figures, which ignore the boundary or the label, slices of the corpus, and false alarms. All have 95 % intervals from
the bootstrap over documents. Documents are paired by id; texts that differ and labels outside the label set are errors.
docs/measuring.md says what each figure counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from spantune.core import ConfigError, Document, expect, expect_each, nearest
from spantune.metrics.counts import Bools, Ints, Side
from spantune.metrics.figures import FEWEST_DOCUMENTS, PROTOCOLS, Average, FalseAlarms, Figure, Protocol, Scores
from spantune.metrics.pairing import pair

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Sides = tuple[Side, Side]
    Key = tuple[str, str]

RESAMPLES = 10_000
"""The number of corpora that the bootstrap draws for an interval."""
MACRO, ALARMS = ("strict", "macro"), ("alarms", "per_1000")


def score(
    gold: Iterable[Document],
    predicted: Iterable[Document],
    labels: Iterable[str] | None = None,
    *,
    protocol: Protocol = "cblue",
    train: Iterable[Document] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Scores:
    """Score `predicted` against `gold`.

    The intervals come from the percentile bootstrap over documents. A figure has one if at least FEWEST_DOCUMENTS
    documents have an entity that it counts. A resample in which a label does not occur counts as F1 0 for that label,
    so the interval of a label in few documents is wide. A macro average leaves such a label out.

    Args:
        gold: annotated documents.
        predicted: the same documents with predicted entities.
        labels: the label set; the labels that occur in the documents when absent.
        protocol: what counts as correct.
        train: the training documents, for the slices of surfaces that are, or are not, annotated in them, and for the
            slices by label frequency.
        resamples: the number of resamples of the bootstrap; 0 for no intervals.
        seed: the seed of the bootstrap.

    Raises:
        ConfigError: there is no such protocol, or an argument is no list of documents or labels.
        DataError: the documents do not pair (see `pair`), a label is not in `labels`, or a score is not a probability.
    """
    require_protocol(protocol)
    expect(resamples, int, "resamples", "a whole number, such as 10000")
    expect(seed, int, "seed", "a whole number")
    gold, predicted = _documents(gold, "gold"), _documents(predicted, "predicted")
    train = None if train is None else _documents(train, "train")
    codes = labels_of((*gold, *predicted)) if labels is None else label_codes(labels)
    pairs = pair(gold, predicted)
    from spantune.metrics import counts

    size = len(pairs)
    placed = counts.sides(pairs, codes)
    units = placed if protocol == "cblue" else counts.mentions(*placed)
    tables = _tables(placed, units, gold, codes, train)
    alarms = counts.unannotated(*units, gold)
    bounds = _bounds(tables, alarms, resamples, seed) if pairs and resamples else {}
    figures = {key: _figure(key, table.sum(axis=0), bounds.get(key)) for key, table in tables.items()}
    by_kind: dict[str, dict[str, Figure]] = {}
    for (kind, name), figure in figures.items():
        by_kind.setdefault(kind, {})[name] = figure
    strict, places, by_label = by_kind.pop("strict"), by_kind.pop("places"), by_kind.pop("label", {})
    return Scores(
        micro=strict["micro"],
        labels=by_label,
        documents=size,
        protocol=protocol,
        boundary=places["boundary"],
        relaxed=places["relaxed"],
        partial=places["partial"],
        slices=by_kind,
        alarms=_alarms(alarms, bounds.get(ALARMS)),
        macro=_average(list(by_label.values()), bounds.get(MACRO)),
        notes=_notes(placed, by_label),
    )


def labels_of(documents: Iterable[Document]) -> list[str]:
    """Return the labels of the entities of `documents`, sorted."""
    return sorted({entity.label for document in documents for entity in document.entities})


def _documents(documents: Iterable[Document], name: str) -> list[Document]:
    return list(expect_each(documents, Document, name, "a list of Documents"))


def label_codes(labels: Iterable[str]) -> list[str]:
    """Return label codes without repetitions. `labels` may be a mapping by label, such as `Scores.labels`.

    Raises:
        ConfigError: a member is no text.
    """
    codes = labels.keys() if isinstance(labels, Mapping) else labels
    return list(dict.fromkeys(expect_each(codes, str, "labels", "a list of label codes")))


def require_protocol(name: str) -> None:
    """Check that `name` is a protocol.

    Raises:
        ConfigError: there is no such protocol.
    """
    expect(name, str, "protocol", f"one of {', '.join(PROTOCOLS)}")
    if name not in PROTOCOLS:
        raise ConfigError(f"unknown protocol {name!r}; {nearest(name, PROTOCOLS)}")


def _tables(
    placed: Sides, units: Sides, gold: Sequence[Document], codes: Sequence[str], train: Sequence[Document] | None
) -> dict[Key, Floats]:
    """Return a table of counts [documents, 4] for each figure, by kind and name; empty slices are left out."""
    from spantune.metrics import counts

    size = len(gold)
    strict = counts.strict(*units, size, len(codes))
    tables: dict[Key, Floats] = {("strict", "micro"): strict[:, -1]}
    tables |= {("label", code): strict[:, row] for row, code in enumerate(codes)}
    tables["places", "boundary"] = counts.boundary(*placed, size)
    tables["places", "relaxed"] = counts.relaxed(*placed, size)
    tables["places", "partial"] = counts.partial(*placed, size)
    for part in slices(units, gold, codes, train):
        if part.gold.any() or part.predicted.any():
            tables[part.kind, part.name] = counts.tally(*units, (part.gold, part.predicted), size)
    return tables


def _bounds(tables: Mapping[Key, Floats], alarms: Floats, resamples: int, seed: int) -> dict[Key, Floats]:
    """Return intervals by the kind and name of figures that have one: low and high, each of precision, recall and F1.

    The shape is [2, 3]; that of false alarms, which have one value, is [2].
    """
    import numpy as np

    from spantune.metrics.bootstrap import average, interval, resample
    from spantune.metrics.counts import GOLD, PREDICTED, quotients

    size = len(alarms)
    if size < FEWEST_DOCUMENTS:
        return {}
    counted = np.stack(list(tables.values()), axis=1)
    drawn = resample(np.concatenate((counted.reshape(size, -1), alarms), axis=1), resamples, seed)
    figures = drawn[:, : -alarms.shape[1]].reshape(resamples, *counted.shape[1:])
    by_label = [row for row, (kind, _) in enumerate(tables) if kind == "label"]
    bounds = dict(zip(tables, np.moveaxis(interval(quotients(figures)), 1, 0), strict=True))
    bounds[MACRO] = interval(average(figures[:, by_label]))
    bounds[ALARMS] = interval(1000 * drawn[:, -1] / np.maximum(drawn[:, -2], 1))
    bearing = {key: int((table[:, PREDICTED] + table[:, GOLD] > 0).sum()) for key, table in tables.items()}
    bearing |= {MACRO: bearing["strict", "micro"], ALARMS: int(alarms[:, 0].sum())}
    return {key: value for key, value in bounds.items() if bearing[key] >= FEWEST_DOCUMENTS}


def _figure(key: Key, total: Floats, bounds: Floats | None) -> Figure:
    from spantune.metrics.counts import CORRECT, FOUND, GOLD, PREDICTED

    correct = float(total[CORRECT])
    predicted, gold = int(total[PREDICTED]), int(total[GOLD])
    return Figure(
        int(correct) if correct.is_integer() else correct,
        predicted,
        gold,
        found=int(total[FOUND]) if key[0] == "nesting" else None,
        **(_named(bounds) if predicted or gold else {}),
    )


def _average(figures: Sequence[Figure], bounds: Floats | None) -> Average:
    measured = [figure for figure in figures if figure.gold or figure.predicted]
    if not measured:
        return Average(0.0, 0.0, 0.0)
    means = (
        sum(values) / len(measured) for values in zip(*((f.precision, f.recall, f.f1) for f in measured), strict=True)
    )
    return Average(*means, **_named(bounds))


def _named(bounds: Floats | None) -> dict[str, float]:
    """Return bounds [2, 3], low and high of precision, recall and F1, by the names of their fields."""
    if bounds is None:
        return {}
    names = [f"{name}_{end}" for end in ("low", "high") for name in ("precision", "recall", "f1")]
    return dict(zip(names, bounds.ravel().tolist(), strict=True))


def _alarms(counted: Floats, bounds: Floats | None) -> FalseAlarms | None:
    documents, characters, predicted = (int(number) for number in counted.sum(axis=0))
    low, high = (None, None) if bounds is None or not characters else bounds.tolist()
    return FalseAlarms(documents, characters, predicted, low, high) if documents else None


def _notes(placed: Sides, by_label: Mapping[str, Figure]) -> dict[str, int]:
    """Count what is worth a note but no error: repeated entities, and predicted labels that no gold entity has."""
    notes = {
        f"{name} entity repeated in its document, counted once": side.repeated
        for name, side in zip(("gold", "predicted"), placed, strict=True)
    }
    for code, figure in by_label.items():
        if not figure.gold:
            notes[f"predicted entity of label {code!r}, which no gold entity has"] = figure.predicted
    return {note: count for note, count in notes.items() if count}


ENTITY_LENGTHS = (1, 2, 4, 8, 16)
"""The lower bounds of the slices by the number of characters of an entity."""
TEXT_LENGTHS = (0, 32, 64, 128, 256)
"""The lower bounds of the slices by the number of characters of a text."""
FREQUENCIES = (0, 1, 10, 100, 1000)
"""The lower bounds of the slices by the number of entities that have the label."""


class Slice(NamedTuple):
    """A part of the entities, such as kind "nesting", name "inside".

    `gold` and `predicted` say of each entity of that side whether it is in the slice.
    """

    kind: str
    name: str
    gold: Bools
    predicted: Bools


def slices(
    both: tuple[Side, Side], texts: Sequence[Document], codes: Sequence[str], train: Sequence[Document] | None
) -> Iterator[Slice]:
    """Yield the slices of gold and predicted entities.

    With `train`, label frequencies are counted in it, and there are slices of surfaces that are, or are not, annotated
    in it.
    """
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
        yield Slice("surface", "unseen", *(~side for side in seen))


def _frequency(gold: Side, codes: Sequence[str], train: Sequence[Document] | None) -> Ints:
    """Return the number of entities of each label [labels], counted in `train` if it is given, else in gold."""
    if train is None:
        return np.bincount(gold.label, minlength=len(codes))
    rows = {code: row for row, code in enumerate(codes)}
    labels = [rows[entity.label] for document in train for entity in document.entities if entity.label in rows]
    return np.bincount(np.array(labels, dtype=np.int64), minlength=len(codes))


def _among(side: Side, known: Collection[str]) -> Bools:
    return np.fromiter((surface in known for surface in side.surface), dtype=bool, count=len(side.surface))


def _binned(kind: str, values: Sequence[Ints], bounds: Sequence[int]) -> Iterator[Slice]:
    """Yield slices of `kind` by a value of each gold and each predicted entity: from each bound up to the next."""
    bins = [np.searchsorted(bounds, column, side="right") - 1 for column in values]
    for index, low in enumerate(bounds):
        high = bounds[index + 1] - 1 if index + 1 < len(bounds) else None
        name = f"{low}+" if high is None else str(low) if high == low else f"{low}-{high}"
        yield Slice(kind, name, bins[0] == index, bins[1] == index)
