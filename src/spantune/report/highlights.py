"""The highlights of a report: the most instructive errors, and confident predictions that may be missing in gold.

Errors of the same kind with the same labels and the same surface are one pattern. The weight of a pattern is the sum of
the scores of its predictions, so that confident and frequent errors come first. A missed entity, or a prediction
without a score, has the weight UNSURE. To show various errors, at most VARIED patterns of the same kind and labels are
chosen as long as there are others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from spantune.core import Document, Entity, draw_entities
from spantune.metrics import Error, Judged, Outcome

MOST_ERRORS = 10
"""The number of patterns of errors that are shown."""
MOST_DOUBTS = 50
"""The maximum number of shown predictions that may be missing in gold."""
CONFIDENT = 0.9
"""The lowest score with which a prediction makes the gold annotation doubtful."""
UNSURE = 0.5
"""The weight of an error without a score."""
VARIED = 2
"""The number of patterns of the same kind and labels that are chosen before patterns of other kinds."""
LONGEST = 60
"""The maximum number of characters of a surface in a title; longer surfaces are cut."""
AROUND = 60
"""The number of characters of context that are shown on each side of an error."""


@dataclass(frozen=True)
class Highlight:
    """An error that is shown as an example of its pattern.

    Args:
        document: the id of its document.
        title: its kind, surface and labels.
        reason: what the error is, and how often the surface occurs, in words.
        gold: the drawing of the gold entity in its context, as HTML.
        predicted: the drawing of the predicted entity in the same context, as HTML.
        score: the score of the prediction; None if there is none.
        count: the number of errors of the pattern.
    """

    document: str
    title: str
    reason: str
    gold: str
    predicted: str
    score: float | None
    count: int = 1


@dataclass(frozen=True)
class Context:
    """Counts from which errors are explained: how often each surface has each label.

    Args:
        labels: the label codes, whose order determines the colours.
        trained: surface to label to count in the training documents; None if these are not known.
        gold: surface to label to count in the scored gold documents.
        found: (surface, label) to the number of correct predictions.
    """

    labels: Sequence[str]
    trained: Mapping[str, Counter[str]] | None
    gold: Mapping[str, Counter[str]]
    found: Counter[tuple[str, str]]

    @classmethod
    def of(cls, outcome: Outcome, labels: Sequence[str], train: Sequence[Document]) -> Context:
        """Count the surfaces of the gold documents of `outcome` and of the training documents, if there are any."""
        found = Counter(
            (judged.gold.surface(error.gold), error.gold.label)
            for judged in outcome.documents
            for error in judged.errors
            if error.kind == "correct" and error.gold
        )
        gold = _surfaces(judged.gold for judged in outcome.documents)
        return cls(labels, _surfaces(train) if train else None, gold, found)


def instructive(outcome: Outcome, context: Context) -> list[Highlight]:
    """Return one Highlight for each of at most MOST_ERRORS patterns of errors, sorted by falling weight."""
    patterns: dict[tuple[str, str, str, str], list[tuple[Judged, Error]]] = defaultdict(list)
    for judged in outcome.documents:
        for error in judged.errors:
            if error.kind != "correct":
                patterns[_pattern(judged, error)].append((judged, error))
    ranked = sorted(patterns, key=lambda key: (-_weight(patterns[key]), -len(patterns[key])))
    of_kind: Counter[tuple[str, str, str]] = Counter()
    chosen: list[tuple[str, str, str, str]] = []
    others: list[tuple[str, str, str, str]] = []
    for key in ranked:
        of_kind[key[:3]] += 1
        (chosen if of_kind[key[:3]] <= VARIED else others).append(key)
    chosen = sorted((chosen + others)[:MOST_ERRORS], key=ranked.index)
    return [_highlight(patterns[key], context) for key in chosen]


def doubts(outcome: Outcome, context: Context) -> list[Highlight]:
    """Return the predictions that are not correct although their score is at least CONFIDENT, by falling score."""
    found = [
        (judged, error)
        for judged in outcome.documents
        for error in judged.errors
        if error.kind != "correct" and error.predicted and (error.predicted.score or 0) >= CONFIDENT
    ]
    found.sort(key=lambda pair: -(_score(pair[1]) or 0))
    return [_doubt(judged, error, context) for judged, error in found]


def _surfaces(documents: Iterable[Document]) -> dict[str, Counter[str]]:
    surfaces: dict[str, Counter[str]] = defaultdict(Counter)
    for document in documents:
        for entity in document.entities:
            surfaces[document.surface(entity)][entity.label] += 1
    return surfaces


def _pattern(judged: Judged, error: Error) -> tuple[str, str, str, str]:
    """Return the pattern of an error: kind, gold label, predicted label, and surface without regard to case."""
    labels = error.gold.label if error.gold else "", error.predicted.label if error.predicted else ""
    return (error.kind, *labels, judged.gold.surface(_shown(error)).casefold())


def _shown(error: Error) -> Entity:
    entity = error.gold or error.predicted
    assert entity is not None
    return entity


def _score(error: Error) -> float | None:
    return error.predicted.score if error.predicted else None


def _weight(errors: Sequence[tuple[Judged, Error]]) -> float:
    scores = [_score(error) for _, error in errors]
    return round(sum(UNSURE if score is None else score for score in scores), 6)


def _highlight(errors: Sequence[tuple[Judged, Error]], context: Context) -> Highlight:
    """Describe a pattern by its error with the highest score."""
    judged, error = max(errors, key=lambda pair: _score(pair[1]) or 0)
    parts = [_difference(judged, error)]
    if len(errors) > 1:
        documents = len({judged.gold.id for judged, _ in errors})
        where = "one document" if documents == 1 else f"{documents} documents"
        parts.append(f"{len(errors)} errors of this kind on this text, in {where}.")
    if error.gold:
        surface = judged.gold.surface(error.gold)
        right = context.found[surface, error.gold.label]
        parts += [f"Elsewhere the model found it {_times(right)}."] if right else []
        parts += _in_training(surface, context)
    elif error.predicted:
        parts += _in_training(judged.gold.surface(error.predicted), context)
    return _drawn(judged, error, context, " ".join(parts), len(errors))


def _doubt(judged: Judged, error: Error, context: Context) -> Highlight:
    assert error.predicted is not None
    surface, label = judged.gold.surface(error.predicted), error.predicted.label
    parts = [_difference(judged, error)]
    elsewhere = context.gold.get(surface, Counter())[label]
    parts += [f"Gold has {_quoted(surface)} as {label} {_times(elsewhere)} in these documents."] if elsewhere else []
    parts += _in_training(surface, context)
    return _drawn(judged, error, context, " ".join(parts), 1)


def _difference(judged: Judged, error: Error) -> str:
    """Describe in one sentence what was predicted and what gold has."""
    score = _score(error)
    sure = "" if score is None else f" with score {score:.2f}"
    gold, predicted = error.gold, error.predicted
    if predicted is None:
        return "Gold has it, and nothing was predicted here."
    if gold is None:
        return f"Predicted{sure}; gold has nothing here."
    if error.kind == "type":
        return f"Predicted as {predicted.label}{sure}; gold has {gold.label}."
    in_words = f"{_quoted(judged.gold.surface(predicted))} as {predicted.label}"
    return f"Predicted {in_words}{sure}; gold has {_quoted(judged.gold.surface(gold))} as {gold.label}."


def _in_training(surface: str, context: Context) -> list[str]:
    """Describe how the training documents annotate a surface; an empty list if these documents are not known."""
    if context.trained is None:
        return []
    counts = context.trained.get(surface)
    if not counts:
        return [f"The training documents never annotate {_quoted(surface)}."]
    labels = ", ".join(f"{count} \u00d7 {label}" for label, count in sorted(counts.items(), key=lambda x: (-x[1], x)))
    return [f"The training documents annotate {_quoted(surface)} as {labels}."]


def _quoted(surface: str) -> str:
    line = " ".join(surface.split())
    return f"\u201c{line if len(line) <= LONGEST else f'{line[: LONGEST - 1]}…'}\u201d"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _drawn(judged: Judged, error: Error, context: Context, reason: str, count: int) -> Highlight:
    entities = [entity for entity in (error.gold, error.predicted) if entity]
    begin, end = min(entity.start for entity in entities), max(entity.end for entity in entities)
    document, shift = _cropped(judged.gold, begin, end)

    def drawing(entity: Entity | None) -> str:
        placed = [replace(entity, start=entity.start + shift, end=entity.end + shift)] if entity else []
        return draw_entities(document.with_entities(placed), context.labels, dict.fromkeys(placed, error.kind))

    return Highlight(
        document=judged.gold.id,
        title=_title(judged, error),
        reason=reason,
        gold=drawing(error.gold),
        predicted=drawing(error.predicted),
        score=_score(error),
        count=count,
    )


def _title(judged: Judged, error: Error) -> str:
    """Name an error: its kind, its text and its labels."""
    quoted = _quoted(judged.gold.surface(_shown(error)))
    gold, predicted = (entity.label if entity else "nothing" for entity in (error.gold, error.predicted))
    labels = gold if gold == predicted else f"gold {gold}, predicted {predicted}"
    return f"{error.kind}: {quoted}, {labels}"


def _cropped(document: Document, begin: int, end: int) -> tuple[Document, int]:
    """Return the part of a document around [begin, end), without entities, and the number to add to its offsets."""
    first, last = max(0, begin - AROUND), min(len(document.text), end + AROUND)
    before, after = "\u2026" if first else "", "\u2026" if last < len(document.text) else ""
    return Document(document.id, f"{before}{document.text[first:last]}{after}"), len(before) - first
