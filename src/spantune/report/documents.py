"""The documents of a page: their drawings, and the values by which the page filters them.

The browser shows PAGE documents at a time. A page holds, for each document, its text, the markup of its gold drawing,
and the markup of each predicted drawing that differs from the gold one. An error is encoded as one whole number, so
that the filters over kinds and labels only compare numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from spantune.core import Document, Entity, draw_entities, label_colors, replacing
from spantune.data import Bin, Statistics, nesting, statistics
from spantune.metrics import ANSWER_KINDS, KINDS, Judged, Outcome
from spantune.report.html import embed, number, render

PAGE = 50
"""The number of documents that a page shows at a time."""
VIEW_KINDS: tuple[str, ...] = (*KINDS, *ANSWER_KINDS)
"""The kinds of errors by which a page filters: those of entities, and those of answers."""


Row = list[object]
"""A document as the script of a page reads it: a JSON array that begins with the id and the text."""


def rows(outcome: Outcome, labels: Sequence[str]) -> list[Row]:
    """Return a row for each document with its prediction: first the documents with an error, in corpus order.

    Args:
        outcome: the sorted errors.
        labels: the label codes in the order of the page.
    """
    ordered = sorted(outcome.documents, key=lambda judged: not judged.wrong)
    return [_row([judged], labels, kinds=True) for judged in ordered]


def differing(outcomes: Sequence[Outcome], labels: Sequence[str]) -> list[Row]:
    """Return a row for each document for which systems predicted different entities, in the order of the corpus.

    Args:
        outcomes: the sorted errors of each system, for the same documents in the same order.
        labels: the label codes in the order of the page.
    """
    return [
        _row(systems, labels, kinds=False)
        for systems in zip(*(outcome.documents for outcome in outcomes), strict=True)
        if len({frozenset(judged.predicted.entities) for judged in systems}) > 1
    ]


def _row(systems: Sequence[Judged], labels: Sequence[str], kinds: bool) -> Row:
    """Return the row of a document.

    Its columns are: the id, the text, the drawings, the numbers of its errors (see `_codes`), and three lists with an
    entry for each prediction: the number of errors, the problems of the answer with the dropped entities, and the raw
    answer, which is "" if the answer has no problem. The gold drawing comes first; a predicted drawing that equals it
    is 0.

    Args:
        systems: the same document, judged with the prediction of each system.
        labels: the label codes in the order of the page.
        kinds: whether the gold drawing shows the errors of the first system.
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
    """Describe the entities that a threshold dropped, as a group for the row.

    They are not counted as further errors. If one of them is correct, the gold drawing shows it as missed.
    """
    described = [
        f"{judged.predicted.surface(entity)} {entity.label} {'' if entity.score is None else round(entity.score, 6)}"
        for entity in judged.extraction.below_threshold
    ]
    return [("left out by the threshold", [text.strip() for text in described])] if described else []


def _codes(judged: Judged, labels: Sequence[str]) -> set[int]:
    """Return the errors of a document and of its answer, each as one whole number.

    The number is (kind * n + gold label) * n + predicted label, all as indices, where n is the number of labels plus
    one; the last index stands for no entity.
    """
    no_label = len(labels)

    def code(kind: str, gold: Entity | None, predicted: Entity | None) -> int:
        number = VIEW_KINDS.index(kind)
        for entity in (gold, predicted):
            number = number * (no_label + 1) + (labels.index(entity.label) if entity else no_label)
        return number

    codes = {code(error.kind, error.gold, error.predicted) for error in judged.errors}
    return codes | {code(kind, None, None) for kind in judged.answer}


def write_page(path: Path, documents: Sequence[Document], title: str, names: Mapping[str, str] | None = None) -> None:
    """Write a page that shows annotated documents, as one self-contained HTML file.

    Args:
        path: the file to write.
        documents: the annotated documents.
        title: the title of the page.
        names: code to name of the labels of a task; the order determines the colours. Labels that are not in it follow,
            sorted by code.

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
    """Return the row of a document: id, text, indices of its labels in `listed`, whether it is nested, the drawing."""
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
    """Return (range, count, length of the bar in percent) for every bin of a histogram."""
    highest = max((bin.count for bin in bins), default=0) or 1
    return [(bin.name, bin.count, round(100 * bin.count / highest, 1)) for bin in bins]
