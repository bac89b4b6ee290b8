"""Pair predicted documents with gold documents: by id, or by text where two files have no ids in common.

A document without a counterpart, a repeated id and texts that differ are errors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from spantune.core import DataError, Document


def pair(gold: Sequence[Document], predicted: Sequence[Document]) -> list[tuple[Document, Document]]:
    """Pair gold and predicted documents by id, in the order of `gold`.

    Raises:
        DataError: an id is repeated or on one side only, or the texts of a pair differ.
    """
    by_id = _by_id(predicted, "predicted")
    unpaired = sorted(_by_id(gold, "gold").keys() ^ by_id.keys())
    if unpaired:
        side = "predicted" if unpaired[0] in by_id else "gold"
        raise DataError(
            f"document {unpaired[0]!r} is {side} only ({len(unpaired)} such of {len(gold)} gold and {len(predicted)} "
            "predicted); every document needs its counterpart: score the predictions of this very corpus"
        )
    pairs = [(document, by_id[document.id]) for document in gold]
    for gold_document, document in pairs:
        require_same_text(gold_document, document)
    return pairs


def align(gold: Sequence[Document], predicted: Sequence[Document]) -> list[Document]:
    """Return `predicted` with the ids of `gold`, if they have no id in common and have the same texts.

    In formats without ids, ids are made from file and line, so two files of such a format never have ids in common. If
    the texts are in the same order, documents are paired in that order. Otherwise they are paired by text, if no text
    occurs twice. In all other cases `predicted` is returned unchanged, and `pair` raises an error.
    """
    ids = [document.id for document in gold]
    if set(ids) & {document.id for document in predicted} or len(gold) != len(predicted):
        return list(predicted)
    if [document.text for document in gold] == [document.text for document in predicted]:
        return [replace(document, id=id) for id, document in zip(ids, predicted, strict=True)]
    by_text = {document.text: document.id for document in gold}
    if len(by_text) < len(gold) or by_text.keys() != {document.text for document in predicted}:
        return list(predicted)
    return [replace(document, id=by_text[document.text]) for document in predicted]


def require_same_text(gold: Document, predicted: Document) -> None:
    """Check that both documents have the same text.

    Raises:
        DataError: they differ.
    """
    if gold.text != predicted.text:
        raise DataError(
            f"document {gold.id!r}: the gold text ({len(gold.text)} characters) and the predicted one "
            f"({len(predicted.text)}) differ, so that offsets cannot be compared; extract from this corpus again",
            field="text",
        )


def _by_id(documents: Sequence[Document], side: str) -> dict[str, Document]:
    by_id = {document.id: document for document in documents}
    if len(by_id) < len(documents):
        repeated = next(id for id, count in Counter(document.id for document in documents).items() if count > 1)
        raise DataError(f"document {repeated!r} occurs twice among the {side} ones; ids must be unique: rename one")
    return by_id
