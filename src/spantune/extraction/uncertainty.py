"""The documents that a model is least sure of: what a person had best correct first.

A document is as sure as its least sure entity: least confidence, taken at the weakest place rather than over the whole
answer, so that long texts are not preferred (lowest token probability, arXiv 2001.02524; the same concern led to the
normalised log-probability of arXiv 1707.05928). A document whose answer had a problem comes before all others. A text
without entities counts as sure, since no score says anything of it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from spantune.core import Document, from_document


@dataclass
class LeastSure:
    """Chooses the `count` least sure of the documents that it is given.

    Args:
        count: how many are wanted.
        repeated: how many had the text of an earlier one, and were passed over.
        unscored: how many had entities without a score, which count as sure.
    """

    count: int
    repeated: int = 0
    unscored: int = 0
    _texts: set[str] = field(default_factory=set)

    def choose(self, documents: Iterable[Document]) -> list[Document]:
        """Return the chosen documents, the least sure first, equals in the order given.

        Each text is taken once. Those without a whole answer, which has nothing to correct, are passed over.
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
    """Return the lowest score of an entity of `document`; 1 where none has a score."""
    return min((entity.score for entity in document.entities if entity.score is not None), default=1.0)


def _rank(document: Document) -> tuple[bool, float]:
    return not from_document(document).has_problem, confidence(document)
