"""Which predicted document belongs to which gold one: by id, or by text where two files have no ids in common.

Nothing is paired by likeness: a document without a counterpart, a repeated id and a text that differs are refused.
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
    alone = sorted(_by_id(gold, "gold").keys() ^ by_id.keys())
    if alone:
        side = "predicted" if alone[0] in by_id else "gold"
        raise DataError(
            f"document {alone[0]!r} is {side} only ({len(alone)} such of {len(gold)} gold and {len(predicted)} "
            "predicted); every document needs its counterpart: score the predictions of this very corpus"
        )
    pairs = [(document, by_id[document.id]) for document in gold]
    for one, other in pairs:
        require_same_text(one, other)
    return pairs


def align(gold: Sequence[Document], predicted: Sequence[Document]) -> list[Document]:
    """`predicted` under the ids of `gold` where no id is in both and the texts are the same ones.

    Files of formats without ids are called by file and line, so that ids of two such files never agree. Texts in the
    same order are paired in that order, else by text where none occurs twice. All others are returned as they are, for
    `pair` to judge.
    """
    names = [document.id for document in gold]
    if set(names) & {document.id for document in predicted} or len(gold) != len(predicted):
        return list(predicted)
    if all(one.text == other.text for one, other in zip(gold, predicted, strict=True)):
        return [replace(other, id=name) for name, other in zip(names, predicted, strict=True)]
    by_text = {document.text: document.id for document in gold}
    if len(by_text) < len(gold) or by_text.keys() != {document.text for document in predicted}:
        return list(predicted)
    return [replace(document, id=by_text[document.text]) for document in predicted]


def require_same_text(gold: Document, predicted: Document) -> None:
    """Check that both documents have one text.

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
        repeated = next(name for name, count in Counter(document.id for document in documents).items() if count > 1)
        raise DataError(f"document {repeated!r} occurs twice among the {side} ones; ids must be unique: rename one")
    return by_id
