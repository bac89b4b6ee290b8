"""The documents that a model is least sure of, which a person should correct first.

The confidence of a document is the lowest score of its entities. It is not a mean or a product over the whole answer,
so that long texts are not preferred (lowest token probability, arXiv 2001.02524; for the same reason arXiv 1707.05928
normalises the log-probability by length). A document whose answer had a problem comes before all others. A text without
entities counts as sure, since there is no score for it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from spantune.core import Document, from_document


@dataclass
class LeastSure:
    """Chooses the `count` least sure documents.

    Args:
        count: how many documents to choose.
        repeated: the number of documents that were skipped because an earlier document has the same text.
        unscored: the number of documents with an entity that has no score; such an entity counts as sure.
    """

    count: int
    repeated: int = 0
    unscored: int = 0
    _texts: set[str] = field(default_factory=set)

    def choose(self, documents: Iterable[Document]) -> list[Document]:
        """Return the chosen documents, the least sure first; equally sure ones stay in the order given.

        Each text is taken once. A document without a whole answer is skipped, since it has nothing to correct.
        """
        return heapq.nsmallest(self.count, self._candidates(documents), key=_rank)

    def _candidates(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            if from_document(document).status.is_failure:
                continue
            if document.text in self._texts:
                self.repeated += 1
                continue
            self._texts.add(document.text)
            self.unscored += any(entity.score is None for entity in document.entities)
            yield document


def confidence(document: Document) -> float:
    """Return the lowest score of the entities of `document`; 1 if no entity has a score."""
    return min((entity.score for entity in document.entities if entity.score is not None), default=1.0)


def _rank(document: Document) -> tuple[bool, float]:
    return not from_document(document).has_problem, confidence(document)
