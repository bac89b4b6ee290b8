"""The documents of a page: drawn with their entities, with the values that the page's filters need.

Documents are drawn here and shown by the browser fifty at a time: a page holds a document once as text and once as
markup for gold and for each prediction that differs from gold. An error is one whole number, so that a filter over
kinds and labels compares numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from spantune.core import Document, Entity, draw_entities, label_colors, replacing
from spantune.data import Bin, Statistics, nesting, statistics
from spantune.metrics import ANSWER_KINDS, KINDS, Judged, Outcome
from spantune.report.html import embed, number, render

PAGE = 50
"""The number of documents that are shown at a time."""
VIEW_KINDS: tuple[str, ...] = (*KINDS, *ANSWER_KINDS)


Row = list[object]
"""A document as the script of a page reads it: a JSON array that begins with id and text."""


def rows(outcome: Outcome, labels: Sequence[str]) -> list[Row]:
    """Return all documents with their predictions: those with an error first, in the order of the corpus."""
    ordered = sorted(outcome.documents, key=lambda judged: not judged.wrong)
    return [_row([judged], labels, kinds=True) for judged in ordered]


def differing(outcomes: Sequence[Outcome], labels: Sequence[str]) -> list[Row]:
    """Return the documents on which the predictions of several systems differ, in the order of the corpus."""
    return [
        _row(systems, labels, kinds=False)
        for systems in zip(*(outcome.documents for outcome in outcomes), strict=True)
        if len({frozenset(judged.predicted.entities) for judged in systems}) > 1
    ]


def _row(systems: Sequence[Judged], labels: Sequence[str], kinds: bool) -> Row:
    """Return a document as the script reads it.

    Its columns are id, text, drawings (gold first), codes of its errors, and then, for each prediction, the number of
    errors, what was wrong with the answer or dropped from it, and the raw answer where something was wrong with it. A
    drawing that equals that of gold is 0. With `kinds` gold shows its errors.
    """
    gold = systems[0].gold
    gold_kinds = {error.gold: error.kind for error in systems[0].errors if error.gold} if kinds else None
    drawings: list[object] = [draw_entities(gold, labels, gold_kinds)]
    for judged in systems:
        predicted_kinds = {error.predicted: error.kind for error in judged.errors if error.predicted}
        markup = draw_entities(judged.predicted, labels, predicted_kinds)
        drawings.append(0 if markup == drawings[0] else markup)
    codes = sorted({code for judged in systems for code in _codes(judged, labels)})
    answers = [
        [[kind, list(parts)] for kind, parts in (*judged.answer.items(), *_below_threshold(judged))]
        for judged in systems
    ]
    raw_answers = [judged.extraction.answer if judged.extraction.has_problem else "" for judged in systems]
    return [gold.id, gold.text, drawings, codes, [judged.wrong for judged in systems], answers, raw_answers]


def _below_threshold(judged: Judged) -> list[tuple[str, list[str]]]:
    """Describe the entities that a threshold dropped. They are no errors of their own: gold shows them as missed."""
    described = [
        f"{judged.predicted.surface(entity)} {entity.label} {'' if entity.score is None else round(entity.score, 6)}"
        for entity in judged.extraction.below_threshold
    ]
    return [("left out by the threshold", [text.strip() for text in described])] if described else []


def _codes(judged: Judged, labels: Sequence[str]) -> set[int]:
    """Return the errors of a document and of its answer, each as one number of kind, gold and predicted label."""
    no_label = len(labels)

    def code(kind: str, gold: Entity | None, predicted: Entity | None) -> int:
        number = VIEW_KINDS.index(kind)
        for entity in (gold, predicted):
            number = number * (no_label + 1) + (labels.index(entity.label) if entity else no_label)
        return number

    codes = {code(error.kind, error.gold, error.predicted) for error in judged.errors}
    return codes | {code(kind, None, None) for kind in judged.answer}


def write_page(path: Path, documents: Sequence[Document], title: str, names: Mapping[str, str] | None = None) -> None:
    """Write the page of `documents` to `path` as one self-contained HTML file.

    Args:
        path: the file.
        documents: the annotated documents.
        title: the title of the page.
        names: code to name of the task's labels; the order gives the colours. Without it, and for labels that are not
            in it, the order is that of the sorted codes.

    Raises:
        DataError: there are no documents, or the file cannot be written.
    """
    counts = statistics(documents)
    labels = list(dict.fromkeys([*(names or {}), *sorted(counts.entities)]))
    page = render(
        "browse.html.j2",
        "browse.js.j2",
        title=title,
        statistics=counts,
        key_figures=_key_figures(counts),
        colours=label_colors(labels),
        names=names or {},
        bars=_bars,
        size=PAGE,
        data=embed([_corpus_row(document, list(counts.entities), labels) for document in documents]),
    )
    with replacing(path) as file:
        file.write(page)


def _corpus_row(document: Document, listed: Sequence[str], labels: Sequence[str]) -> Row:
    """Return id, text, places of the labels among those `listed`, whether entities nest, and the drawing."""
    label_indices = sorted({listed.index(entity.label) for entity in document.entities})
    nested = any(depth > 1 for depth in nesting(document).values())
    return [document.id, document.text, label_indices, nested, draw_entities(document, labels)]


def _key_figures(counts: Statistics) -> dict[str, str]:
    entities = sum(counts.entities.values())
    return {
        "documents": number(counts.documents),
        "sentences": number(counts.sentences),
        "entities": number(entities),
        "nested": number(counts.nested),
        "deepest": str(max(counts.depths, default=0)),
        "crossing": number(counts.crossing),
        "without entities": number(counts.without_entities),
        "repeated texts": number(counts.duplicates),
        "surfaces found twice in their text": f"{counts.repeated_surfaces:.1%}",
        "surfaces with several labels": f"{number(counts.ambiguous_surfaces)} of {number(counts.surfaces)}",
    }


def _bars(bins: Sequence[Bin]) -> list[tuple[str, int, float]]:
    """Return the range, count and length in percent of every bin of a histogram."""
    highest = max((bin.count for bin in bins), default=0) or 1
    return [(bin.name, bin.count, round(100 * bin.count / highest, 1)) for bin in bins]
