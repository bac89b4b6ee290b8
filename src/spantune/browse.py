"""One self-contained HTML page to look through a corpus: counts, filters, and every document with its entities drawn.

The documents are drawn here, by `drawing`, and shown by the browser fifty at a time: the page holds each of them once
as text and once as markup, some two kilobytes a sentence, and needs no second drawing program. Everything that came
from data is escaped, and the page's policy allows its own script and style and nothing else, from nowhere. Without
JavaScript the counts are shown, and no documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spantune.corpus import Bin, Statistics, nesting, statistics
from spantune.document import Document
from spantune.drawing import draw
from spantune.formats.files import replacing
from spantune.page import colours, embed, number, render

PAGE = 50
"""Documents that are shown at once."""


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
        data=embed([_row(document, labels) for document in documents]),
    )
    with replacing(path) as file:
        file.write(page)


def _row(document: Document, labels: Sequence[str]) -> list[Any]:
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
