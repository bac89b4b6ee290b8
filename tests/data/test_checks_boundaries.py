"""The check for entities that are annotated with and without a neighbouring word."""

from __future__ import annotations

from pathlib import Path

from spantune.data.boundaries import cut_surfaces, surfaces_of
from spantune.data.raw.document import RawDocument, RawEntity


def document(text: str, *entities: tuple[int, int, str]) -> RawDocument:
    return RawDocument("d", text, tuple(RawEntity(*entity) for entity in entities), Path("f"), 1)


def found(*documents: RawDocument) -> list[tuple[str, str, str, int, int]]:
    surfaces = surfaces_of(documents)
    cases = cut_surfaces(documents, surfaces)
    return [(label, whole, part, surfaces[label, whole], cuts.count) for (label, whole, part), cuts in cases.items()]


def test_a_word_at_either_edge() -> None:
    whole = document("急性阑尾炎病史", (0, 5, "dis"))
    left, right = document("患急性阑尾炎。", (3, 6, "dis")), document("患急性阑尾炎。", (1, 3, "dis"))
    assert found(whole, whole, left, left, left) == [("dis", "急性阑尾炎", "阑尾炎", 2, 3)]
    assert found(whole, right) == [("dis", "急性阑尾炎", "急性", 1, 1)]


def test_words_of_letters() -> None:
    whole = document("A severe headache came.", (2, 17, "sym"))
    part = document("My severe headache.", (10, 18, "sym"))
    assert found(whole, part) == [("sym", "severe headache", "headache", 1, 1)]
    assert found(document("headache pills help", (0, 14, "dru")), document("No headache pills", (3, 11, "dru"))) == [
        ("dru", "headache pills", "headache", 1, 1)
    ]


def test_what_is_no_inconsistency() -> None:
    whole = document("急性阑尾炎", (0, 5, "dis"))
    assert found(whole, document("急性阑尾炎", (2, 5, "sym"))) == []  # the label differs
    assert found(whole, document("阑尾炎", (0, 3, "dis"))) == []  # the longer surface is not annotated
    assert found(whole, document("急性阑尾炎", (0, 5, "dis"), (2, 5, "dis"))) == []  # both are annotated
    far = document("一二三四五阑尾炎", (0, 8, "dis"))
    assert found(far, document("一二三四五阑尾炎", (5, 8, "dis"))) == []  # the distance is more than a word
    comma = document("热，咳", (0, 3, "sym"))
    assert found(comma, document("热，咳", (2, 3, "sym"))) == []  # punctuation is no word
