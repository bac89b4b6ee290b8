"""Unite corpora: a document of a later one replaces the one with the same text in an earlier one.

This is how corrected documents come back into a corpus. A document that replaces another one takes its position and
its id, so that splits and comparisons of runs stay as they were. Documents with new texts are appended in their order.
Texts that occur several times in one corpus are not reduced. If another text already has the id of an appended
document, the document gets a new id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spantune.core import Document, Entity


@dataclass(frozen=True)
class Merged:
    """The united documents, and what became of the documents of the later corpora.

    Args:
        documents: all documents. Those of the first corpus, or their replacements, come first.
        places: for each document, the index in the first corpus of the document that it is or that it replaced; None
            if a later corpus added it.
        added: the number of documents whose text no earlier corpus has.
        replaced: the number of documents that replaced earlier ones because their annotation differs.
        unchanged: the number of documents that an earlier corpus has with the same annotation; the earlier ones stay.
        renamed: the number of documents that got a new id, because another text had theirs.
        left_out: the number of earlier documents that were dropped, because a later corpus has their text fewer times.
    """

    documents: tuple[Document, ...]
    places: tuple[int | None, ...]
    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    renamed: int = 0
    left_out: int = 0

    def described(self) -> str:
        """Say in words what became of the documents of the later corpora."""
        parts = [f"{self.added} added", f"{self.replaced} replaced by the later annotation of their text"]
        parts += [f"{self.unchanged} unchanged"] if self.unchanged else []
        parts += [f"{self.renamed} with a new id, since theirs is that of another text"] if self.renamed else []
        parts += [f"{self.left_out} left out, since a later file has their text fewer times"] if self.left_out else []
        return ", ".join(parts)


def merge_corpora(corpora: Sequence[tuple[str, Sequence[Document]]]) -> Merged:
    """Unite corpora, each given with the name of its file. Where two have the same text, the later one is right.

    Args:
        corpora: at least one pair (file name, documents). The file name serves to make ids unique.
    """
    _, first = corpora[0]
    merged = Merged(tuple(first), tuple(range(len(first))))
    for name, documents in corpora[1:]:
        merged = _updated(merged, name, documents)
    return merged


def conflicting(documents: Sequence[Document]) -> list[Document]:
    """Return the first document of each text that has different annotations in `documents`."""
    first: dict[str, Document] = {}
    annotations: dict[str, set[tuple[Entity, ...]]] = {}
    for document in documents:
        first.setdefault(document.text, document)
        annotations.setdefault(document.text, set()).add(document.entities)
    return [first[text] for text, different in annotations.items() if len(different) > 1]


def count_predicted(documents: Sequence[Document]) -> int:
    """Count the documents with scores. Scores show that a model predicted the entities and nobody corrected them."""
    return sum(any(entity.score is not None for entity in document.entities) for document in documents)


def _updated(merged: Merged, name: str, documents: Sequence[Document]) -> Merged:
    """Return `merged` with the documents of one more corpus, whose file is `name`."""
    earlier: dict[str, list[Document]] = {}
    later: dict[str, list[Document]] = {}
    for document in merged.documents:
        earlier.setdefault(document.text, []).append(document)
    for document in documents:
        later.setdefault(document.text, []).append(document)
    changed = {
        text: same
        for text, same in later.items()
        if text in earlier and _annotations(same) != _annotations(earlier[text])
    }
    kept: list[tuple[Document, int | None]] = []
    extra: list[tuple[Document, int | None]] = []  # documents of a text that occurred fewer times before
    for document, place in zip(merged.documents, merged.places, strict=True):
        if document.text not in changed:
            kept.append((document, place))
        elif document is earlier[document.text][0]:
            new, old = changed[document.text], earlier[document.text]
            kept += [(replace(after, id=before.id), place) for after, before in zip(new, old, strict=False)]
            extra += [(after, place) for after in new[len(old) :]]
    added = [(document, None) for document in documents if document.text not in earlier]
    used = {document.id for document, _ in kept}
    stem, renamed = Path(name).stem, 0
    for document, place in (*extra, *added):
        free = _free_id(document.id, stem, used)
        renamed += free != document.id
        used.add(free)
        kept.append((document if free == document.id else replace(document, id=free), place))
    replacing = sum(len(same) for same in changed.values())
    return Merged(
        tuple(document for document, _ in kept),
        tuple(place for _, place in kept),
        merged.added + len(added),
        merged.replaced + replacing,
        merged.unchanged + len(documents) - len(added) - replacing,
        merged.renamed + renamed,
        merged.left_out + sum(max(0, len(earlier[text]) - len(same)) for text, same in changed.items()),
    )


def _annotations(documents: Sequence[Document]) -> list[tuple[Entity, ...]]:
    """Return the entities of each of `documents`, which have one text. Entities are equal whatever their scores are."""
    return [document.entities for document in documents]


def _free_id(id: str, stem: str, used: set[str]) -> str:
    """Return `id`, or if it is used the first unused id of STEM:ID, STEM:ID-2, STEM:ID-3, …"""
    free, number = id, 1
    while free in used:
        free = f"{stem}:{id}" if number == 1 else f"{stem}:{id}-{number}"
        number += 1
    return free
