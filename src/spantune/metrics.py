"""Entity scores of predicted documents against gold ones, and their errors sorted by kind.

An entity is correct when its (start, end, label) is in the gold set of the same document, however entities nest or
cross; protocol `promptcblue` compares (mention, label) instead. Beside these strict figures stand those that forgive a
boundary or a label, slices of the corpus, and false alarms; all have 95 % intervals, by the bootstrap over documents.
Documents are paired by id, and a pair whose texts differ or that holds a label outside the label set is refused, not
skipped. What each figure counts is written in docs/measuring.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from spantune.document import Document, Entity
from spantune.errors import ConfigError, nearest
from spantune.figures import PROTOCOLS, Average, FalseAlarms, Figure, Protocol, Scores
from spantune.pairing import pair, require_same_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from spantune.counts import Side

    Floats = NDArray[np.float64]
    Sides = tuple[Side, Side]
    Key = tuple[str, str]

__all__ = [
    "KINDS", "PROTOCOLS", "RESAMPLES", "Average", "Error", "FalseAlarms", "Figure", "Kind", "Protocol", "Scores",
    "errors", "pair", "require_protocol", "score",
]  # fmt: skip

Kind = Literal["correct", "type", "boundary", "boundary+type", "missed", "spurious"]
KINDS: tuple[Kind, ...] = get_args(Kind)
RESAMPLES = 10_000
"""Corpora drawn for an interval."""
MACRO, ALARMS = ("strict", "macro"), ("alarms", "per_1000")


@dataclass(frozen=True)
class Error:
    """A gold entity, a predicted one, or both as a pair, and what became of it (`correct` too)."""

    kind: Kind
    gold: Entity | None
    predicted: Entity | None


# What is scored, and options that callers give by name: a dataclass for four of them would be made for each call.


def score(
    gold: Sequence[Document],
    predicted: Sequence[Document],
    labels: Sequence[str],
    *,
    protocol: Protocol = "cblue",
    train: Sequence[Document] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Scores:
    """Score `predicted` against `gold`; `train` adds the slices of surfaces that are, or are not, annotated in it.

    The intervals are those of the percentile bootstrap over documents; a figure without any entity has none, nor has
    any with `resamples=0`. A resample that lacks a label altogether counts as F1 0, so that the interval of a label
    seen in very few documents is wide; a macro average leaves such a label out.

    Raises:
        ConfigError: there is no such protocol.
        DataError: the documents do not pair (see `pair`), a label is not in `labels`, or a score is no probability.
    """
    require_protocol(protocol)
    pairs, codes = pair(gold, predicted), list(dict.fromkeys(labels))
    from spantune import counts

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


def require_protocol(name: str) -> None:
    """Check that `name` is a protocol.

    Raises:
        ConfigError: it is not.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"unknown protocol {name!r}; {nearest(name, PROTOCOLS)}")


def _tables(
    placed: Sides, units: Sides, gold: Sequence[Document], codes: Sequence[str], train: Sequence[Document] | None
) -> dict[Key, Floats]:
    """Counts [documents, 4] by kind and name of figure; empty slices are left out."""
    from spantune import counts
    from spantune.slices import slices

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
    """Intervals [2, precision + recall + F1] of every figure and of the macro average, and [2] of the false alarms."""
    import numpy as np

    from spantune.bootstrap import average, interval, quotients, resample

    size = len(alarms)
    counted = np.stack(list(tables.values()), axis=1)
    drawn = resample(np.concatenate((counted.reshape(size, -1), alarms), axis=1), resamples, seed)
    figures = drawn[:, : -alarms.shape[1]].reshape(resamples, *counted.shape[1:])
    by_label = [row for row, (kind, _) in enumerate(tables) if kind == "label"]
    bounds = dict(zip(tables, np.moveaxis(interval(quotients(figures)), 1, 0), strict=True))
    bounds[MACRO] = interval(average(figures[:, by_label]))
    bounds[ALARMS] = interval(1000 * drawn[:, -1] / np.maximum(drawn[:, -2], 1))
    return bounds


def _figure(key: Key, total: Floats, bounds: Floats | None) -> Figure:
    from spantune.counts import CORRECT, FOUND, GOLD, PREDICTED

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
    """Bounds [2, precision + recall + F1] by the names of their fields."""
    if bounds is None:
        return {}
    names = [f"{name}_{end}" for end in ("low", "high") for name in ("precision", "recall", "f1")]
    return dict(zip(names, bounds.ravel().tolist(), strict=True))


def _alarms(counted: Floats, bounds: Floats | None) -> FalseAlarms | None:
    documents, characters, predicted = (int(number) for number in counted.sum(axis=0))
    low, high = (None, None) if bounds is None or not characters else bounds.tolist()
    return FalseAlarms(documents, characters, predicted, low, high) if documents else None


def _notes(placed: Sides, by_label: Mapping[str, Figure]) -> dict[str, int]:
    """What was met and is no error: repeated entities, and labels that no gold entity has."""
    notes = {
        f"{name} entity repeated in its document, counted once": side.repeated
        for name, side in zip(("gold", "predicted"), placed, strict=True)
    }
    for code, figure in by_label.items():
        if not figure.gold:
            notes[f"predicted entity of label {code!r}, which no gold entity has"] = figure.predicted
    return {note: count for note, count in notes.items() if count}


def errors(gold: Document, predicted: Document) -> list[Error]:
    """Pair the entities of one text one to one and name what became of each, in reading order.

    Exact matches are paired first, then equal spans, then overlaps: those of the same label before the
    others, the largest overlap first.

    Raises:
        DataError: the texts differ.
    """
    require_same_text(gold, predicted)
    true, guessed = set(gold.entities), set(predicted.entities)
    found = [Error("correct", entity, entity) for entity in true & guessed]
    true, guessed = true - guessed, guessed - true
    for one, other in _candidates(true, guessed):
        if one in true and other in guessed:
            true.remove(one)
            guessed.remove(other)
            found.append(Error(_kind(one, other), one, other))
    found += [Error("missed", entity, None) for entity in true]
    found += [Error("spurious", None, entity) for entity in guessed]
    return sorted(found, key=_position)


def _candidates(true: Iterable[Entity], guessed: Iterable[Entity]) -> list[tuple[Entity, Entity]]:
    """Overlapping pairs, best first: equal spans, then same label, then by overlap, then by position."""
    pairs = [(one, other) for one in true for other in guessed if _overlap(one, other) > 0]

    def rank(both: tuple[Entity, Entity]) -> tuple[bool, bool, int, Entity, Entity]:
        one, other = both
        same_span = (one.start, one.end) == (other.start, other.end)
        return (not same_span, one.label != other.label, -_overlap(one, other), one, other)

    return sorted(pairs, key=rank)


def _overlap(one: Entity, other: Entity) -> int:
    """Characters that both cover; negative for a gap."""
    return min(one.end, other.end) - max(one.start, other.start)


def _kind(gold: Entity, predicted: Entity) -> Kind:
    if (gold.start, gold.end) == (predicted.start, predicted.end):
        return "correct" if gold.label == predicted.label else "type"
    return "boundary" if gold.label == predicted.label else "boundary+type"


def _position(error: Error) -> tuple[Entity, int]:
    entity = error.gold or error.predicted
    assert entity is not None
    return (entity, KINDS.index(error.kind))
