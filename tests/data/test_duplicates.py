"""Texts that occur more than once, within a file or in several files, with the same or different annotations."""

from __future__ import annotations

from pathlib import Path

from spantune.data import Tally
from spantune.data.document_checks import rows_of
from spantune.data.duplicates import Stack, check_repetition
from spantune.data.parts import Part
from spantune.data.raw.document import RawDocument, RawEntity

LONG = "患者三天前无明显诱因出现右下腹持续性疼痛伴恶心呕吐在当地医院予以补液治疗后未见好转遂来我院急诊就诊"
NEAR = LONG.replace("急诊", "门诊")


def split(name: str, *documents: tuple[str, str]) -> list[RawDocument]:
    """Return documents from pairs of a text and its one annotated surface ("" for none)."""
    rows = []
    for line, (text, surface) in enumerate(documents, start=1):
        start = text.find(surface)
        entities = (RawEntity(start, start + len(surface), "x", surface),) if surface else ()
        rows.append(RawDocument(f"{name}-{line}", text, entities, Path(name), line))
    return rows


def found(*splits: list[RawDocument]) -> dict[str, tuple[int, str]]:
    tally = Tally()
    stacks = [
        Stack.of(Part(Path(f"{number}"), "native", items=tuple(split)), None, [rows_of(range(len(split)), split)])
        for number, split in enumerate(splits)
    ]
    check_repetition(stacks, tally)
    return {finding.name: (finding.count, finding.where) for finding in tally.findings()}


def test_within_a_file() -> None:
    same = split("a", ("头痛", "头痛"), ("咳嗽", ""), ("头痛", "头痛"), ("头痛", "头痛"))
    assert found(same) == {"duplicate-text": (2, "a:3")}
    differing = split("a", ("头痛", "头痛"), ("头痛", "头痛"), ("头痛", "头"), ("头痛", ""))
    assert found(differing) == {"duplicate-text": (3, "a:2"), "conflicting-duplicate": (1, "a:3")}


def test_between_files() -> None:
    first, second = split("a", ("头痛", "头痛"), ("咳嗽", "")), split("b", ("头痛", "头痛"), ("发热", ""))
    assert found(first, second) == {"shared-text": (1, "b:1")}
    third = split("c", ("恶心", ""), ("头痛", ""))
    assert found(first, second, third) == {"shared-text": (1, "b:1"), "conflicting-shared-text": (1, "c:2")}
    assert found(first, split("c", ("恶心", ""))) == {}


def test_a_text_twice_in_one_file_and_once_in_another() -> None:
    first, second = split("a", ("头痛", "头痛"), ("头痛", "头痛")), split("b", ("头痛", "头痛"))
    assert found(first, second) == {"duplicate-text": (1, "a:2"), "shared-text": (1, "b:1")}


def test_nearly_the_same_within_a_file() -> None:
    assert found(split("a", (LONG, "恶心"), (NEAR, "恶心"))) == {"near-duplicate": (1, "a:2")}
    conflict = {"near-duplicate": (1, "a:2"), "conflicting-near-duplicate": (1, "a:2")}
    assert found(split("a", (LONG, "恶心"), (NEAR, ""))) == conflict
    assert found(split("a", (LONG, ""), (NEAR, "恶心"))) == conflict
    # a surface that the other text does not contain cannot be missing in it
    assert found(split("a", (LONG, ""), (NEAR, "门诊"))) == {"near-duplicate": (1, "a:2")}


def test_nearly_the_same_between_files() -> None:
    assert found(split("a", (LONG, "恶心")), split("b", (NEAR, "恶心"))) == {"shared-near-duplicate": (1, "b:1")}
    assert found(split("a", (LONG, "恶心")), split("b", ("发热", ""), (NEAR, ""))) == {
        "shared-near-duplicate": (1, "b:2"),
        "conflicting-shared-near-duplicate": (1, "b:2"),
    }


def test_blank_texts_are_not_compared() -> None:
    assert found(split("a", (" ", ""), (" ", ""), ("", "")), split("b", ("", ""))) == {}
