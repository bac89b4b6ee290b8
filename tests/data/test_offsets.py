"""Wrong offsets: how they are recognised, the shift that applies to a whole file, and where an entity is moved to."""

from __future__ import annotations

from pathlib import Path

import pytest

from spantune.data.offsets import Shift, fault, repaired_span, shared_shift
from spantune.data.raw.document import RawDocument, RawEntity

TEXTS = ["患者😀腹痛三天，🏥查血钾", "𠮷先生咳嗽", "头痛伴恶心"]
TRUE = [[("腹痛", 3), ("三天", 5), ("血钾", 10)], [("咳嗽", 3)], [("头痛", 0), ("恶心", 3)]]


def document(text: str, *entities: tuple[str | None, int, int]) -> RawDocument:
    rows = tuple(RawEntity(start, end, "x", surface) for surface, start, end in entities)
    return RawDocument("d", text, rows, Path("f"), 1)


def stated(unit: str = "", by: int = 0) -> list[RawDocument]:
    """Return the documents with start offsets counted in `unit` and `by` too large."""

    def size(text: str) -> int:
        return len(text.encode("utf-16-le")) // 2 if unit == "utf-16" else len(text.encode()) if unit else len(text)

    found = []
    for text, entities in zip(TEXTS, TRUE, strict=True):
        rows = [
            (surface, size(text[:start]) + by, size(text[: start + len(surface)]) + by) for surface, start in entities
        ]
        found.append(document(text, *rows))
    return found


@pytest.mark.parametrize(
    ("entity", "name"),
    [
        (("腹痛", 2, 4), None),
        ((None, 2, 4), None),
        (("腹痛", 2, 3), "end-mismatch"),
        (("腹痛", 2, 2), "end-mismatch"),
        (("腹痛", 2, 9), "end-mismatch"),
        (("腹痛", 1, 3), "surface-mismatch"),
        (("腹痛", 3, 5), "surface-mismatch"),
        (("腹痛", 4, 6), "out-of-range"),
        (("腹痛", -3, -1), "out-of-range"),
        ((None, 0, 6), "out-of-range"),
        ((None, 3, 3), "empty-span"),
        (("腹痛", 4, 3), "empty-span"),
    ],
)
def test_fault(entity: tuple[str | None, int, int], name: str | None) -> None:
    one = document("患者腹痛。", entity)
    assert fault(one, one.entities[0]) == name


@pytest.mark.parametrize(
    ("unit", "by", "shift", "words"),
    [
        ("", 1, Shift(-1), "offsets are 1-based: each start is 1 too large"),
        ("", -1, Shift(1), "each start is 1 too small"),
        ("", 5, Shift(-5), "each start is 5 too large"),
        ("utf-16", 0, Shift(unit="UTF-16 code units"), "offsets count UTF-16 code units, not code points"),
        ("utf-8", 0, Shift(unit="UTF-8 bytes"), "offsets count UTF-8 bytes, not code points"),
    ],
)
def test_the_rule_of_a_file_is_recognised_and_mends_it(unit: str, by: int, shift: Shift, words: str) -> None:
    documents = stated(unit, by)
    found = shared_shift(documents)
    assert found == shift
    assert str(found) == words
    where = [[repaired_span(one.text, entity, found) for entity in one.entities] for one in documents]
    assert where == [[(start, start + len(surface)) for surface, start in its] for its in TRUE]


def test_a_right_file_has_no_rule() -> None:
    assert shared_shift(stated()) is None
    assert shared_shift([]) is None


def test_two_wrong_entities_of_many_are_no_rule() -> None:
    right = [document("头痛", ("头痛", 0, 2))] * 10
    wrong = [document("伴头痛", ("头痛", 0, 2))]
    assert shared_shift(right + wrong * 2) is None
    assert shared_shift(right + wrong * 3) == Shift(1, whole=False)


def test_shifts_that_differ_are_no_rule() -> None:
    ways = [document("一二三四五头痛", ("头痛", start, start + 2)) for start in (0, 1, 2, 3)]
    assert shared_shift(ways) is None


def test_a_unit_must_leave_right_what_is_right() -> None:
    right = [document("😀头痛", ("头痛", 1, 3))] * 6
    wrong = [document("😀头痛", ("头痛", 2, 4))] * 3
    assert shared_shift(right + wrong) == Shift(-1, whole=False)


def test_an_offset_inside_a_character_means_nothing() -> None:
    assert Shift(unit="UTF-16 code units").start("😀痛", 1) is None
    assert Shift(unit="UTF-8 bytes").start("痛", 1) is None
    assert Shift(unit="UTF-8 bytes").start("痛", -1) is None


def test_where_an_entity_is_moved_to() -> None:
    text = "哈哈头痛又头痛"
    assert repaired_span(text, RawEntity(9, 11, "x", "又"), None) == (4, 5)
    assert repaired_span(text, RawEntity(3, 5, "x", "头痛"), None) is None
    assert repaired_span(text, RawEntity(3, 5, "x", "头痛"), Shift(-1)) == (2, 4)
    assert repaired_span(text, RawEntity(2, 9, "x", "头痛"), None) == (2, 4)
    assert repaired_span(text, RawEntity(0, 2, "x", "腹痛"), Shift(-1)) is None
    assert repaired_span(text, RawEntity(0, 2, "x"), Shift(-1)) is None
    # The entity fits both unmoved and shifted: a shift of the whole file wins, a shift of few entities does not.
    assert repaired_span(text, RawEntity(1, 2, "x", "哈"), Shift(-1)) == (0, 1)
    assert repaired_span(text, RawEntity(1, 2, "x", "哈"), Shift(-1, whole=False)) == (1, 2)


def test_occurrences_overlap() -> None:
    assert repaired_span("aaa.", RawEntity(5, 7, "x", "aa"), None) is None
    assert shared_shift([document("aaa.", ("aa", 4, 6))] * 3) == Shift(-3)  # both fit equally often: the smaller
    assert repaired_span("aaa.", RawEntity(5, 6, "x", "."), None) == (3, 4)
