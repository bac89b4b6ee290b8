"""The documents of a report as its page shows them: gold and predictions drawn, with what the filters look for.

Drawn here, by `drawing`, and shown by the browser fifty at a time: a page holds a document once as text and once as
markup for gold and for each prediction that differs from it, and needs no second drawing program. An error is one whole
number, so that a filter over kind and labels is a comparison of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spantune.core import Document, replacing
from spantune.data import Bin, Statistics, nesting, statistics
from spantune.metrics import ANSWER_KINDS, KINDS, Error, Judged, Outcome
from spantune.report.html import colours, draw, embed, number, render

PAGE = 50
"""Documents that are shown at once."""
VIEW_KINDS: tuple[str, ...] = (*KINDS, *ANSWER_KINDS)


def rows(outcome: Outcome, labels: Sequence[str]) -> list[Any]:
    """Every document with its prediction, those with an error before the others, each in the order of the corpus."""
    ordered = sorted(outcome.documents, key=lambda document: not document.wrong)
    return [_row([document], labels, kinds=True) for document in ordered]


def differing(outcomes: Sequence[Outcome], labels: Sequence[str]) -> list[Any]:
    """The documents on which the predictions of several systems differ, in the order of the corpus."""
    together = zip(*(outcome.documents for outcome in outcomes), strict=True)
    differ = (several for several in together if len({frozenset(one.predicted.entities) for one in several}) > 1)
    return [_row(several, labels, kinds=False) for several in differ]


def _row(systems: Sequence[Judged], labels: Sequence[str], kinds: bool) -> list[object]:
    """Return a document as the script reads it.

    Its columns are id, text, drawings (gold first), codes of its errors, and then, for each prediction, the number of
    errors, what was wrong with the answer or dropped from it, and the raw answer where something was wrong with it. A
    drawing that equals that of gold is 0. With `kinds` gold shows its errors.
    """
    gold = systems[0].gold
    gold_kinds = {error.gold: error.kind for error in systems[0].errors if error.gold} if kinds else None
    drawings: list[object] = [draw(gold, labels, gold_kinds)]
    for judged in systems:
        predicted_kinds = {error.predicted: error.kind for error in judged.errors if error.predicted}
        markup = draw(judged.predicted, labels, predicted_kinds)
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
    none = len(labels)
    found = {_code(KINDS.index(error.kind), *_places(error, labels), none + 1) for error in judged.errors}
    return found | {_code(VIEW_KINDS.index(kind), none, none, none + 1) for kind in judged.answer}


def _places(error: Error, labels: Sequence[str]) -> tuple[int, int]:
    """The places of the gold and of the predicted label; no label is the place after the last."""
    one, other = (labels.index(side.label) if side else len(labels) for side in (error.gold, error.predicted))
    return one, other


def _code(kind: int, gold: int, predicted: int, size: int) -> int:
    return (kind * size + gold) * size + predicted


def write_page(path: Path, documents: Sequence[Document], title: str) -> None:
    """Write the page of `documents` to `path` as one HTML file that needs nothing else.

    Raises:
        DataError: there are no documents, or the file cannot be written.
    """
    found = statistics(documents)
    labels = list(found.entities)
    page = render(
        "browse.html.j2",
        "browse.js.j2",
        title=title,
        found=found,
        key_figures=_key_figures(found),
        colours=colours(labels),
        bars=_bars,
        size=PAGE,
        data=embed([_corpus_row(document, labels) for document in documents]),
    )
    with replacing(path) as file:
        file.write(page)


def _corpus_row(document: Document, labels: Sequence[str]) -> list[Any]:
    """A document as the script reads it: id, text, places of its labels, whether entities nest, markup."""
    places = sorted({labels.index(entity.label) for entity in document.entities})
    nested = any(depth > 1 for depth in nesting(document).values())
    return [document.id, document.text, places, nested, draw(document, labels)]


def _key_figures(found: Statistics) -> dict[str, str]:
    entities = sum(found.entities.values())
    return {
        "documents": number(found.documents),
        "sentences": number(found.sentences),
        "entities": number(entities),
        "nested": number(found.nested),
        "deepest": str(max(found.depths, default=0)),
        "crossing": number(found.crossing),
        "without entities": number(found.without_entities),
        "repeated texts": number(found.duplicates),
        "surfaces found twice in their text": f"{found.repeated_surfaces:.1%}",
        "surfaces with several labels": f"{number(found.ambiguous_surfaces)} of {number(found.surfaces)}",
    }


def _bars(bins: Sequence[Bin]) -> list[tuple[str, int, float]]:
    """The range, count and length in percent of every bin of a histogram."""
    most = max((one.count for one in bins), default=0) or 1
    return [(one.name, one.count, round(100 * one.count / most, 1)) for one in bins]
