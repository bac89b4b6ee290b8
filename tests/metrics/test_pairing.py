"""Documents without common ids are paired by equal texts only."""

from __future__ import annotations

from spantune.core import Document, Entity
from spantune.metrics import align


def documents(stem: str, *texts: str) -> list[Document]:
    return [Document(f"{stem}-{number}", text) for number, text in enumerate(texts)]


def ids(found: list[Document]) -> list[str]:
    return [document.id for document in found]


def test_equal_texts_in_order_are_paired_in_order() -> None:
    gold, predicted = documents("g", "a", "b", "a"), documents("p", "a", "b", "a")
    predicted[2] = predicted[2].with_entities([Entity(0, 1, "x")])
    aligned = align(gold, predicted)
    assert ids(aligned) == ["g-0", "g-1", "g-2"] and aligned[2].entities


def test_texts_in_another_order_are_paired_where_each_occurs_once() -> None:
    gold = documents("g", "a", "b")
    assert ids(align(gold, documents("p", "b", "a"))) == ["g-1", "g-0"]
    assert ids(align(documents("g", "a", "b", "a"), documents("p", "b", "a", "a"))) == ["p-0", "p-1", "p-2"]


def test_other_documents_are_left_for_pair_to_refuse() -> None:
    gold = documents("g", "a", "b")
    for other in (documents("p", "a", "c"), documents("p", "a"), documents("g", "b", "a"), documents("p", "a", "a")):
        assert align(gold, other) == other
