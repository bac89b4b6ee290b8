"""What every writer writes is read back: the same document, or a refusal, or a note that counts what has no place."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.strategies import annotated
from spantune.core import DataError, Document, Entity
from spantune.data import Options, formats

SUFFIXES = {
    "native": ".jsonl",
    "few_shot": ".jsonl",
    "cmeee": ".json",
    "chip": ".txt",
    "brat": "",
    "label_studio": ".json",
    "doccano": ".jsonl",
    "spacy": ".jsonl",
    "table": ".csv",
    "marked": ".txt",
    "conll": ".bio",
}
WITHOUT_IDS = ("few_shot", "cmeee", "chip", "marked", "conll")
JSON = ("native", "few_shot", "cmeee", "label_studio", "doccano", "spacy")

odd_texts = st.text(st.sampled_from("a肺😀 \"',;\t\r\n\u2028\x00\\\ufeff"), max_size=6)
odd_numbers = st.sampled_from([0, -1, 1 << 70, 1e308, -0.0, 5e-324, math.nan, math.inf, -math.inf])
values = st.recursive(
    st.none() | st.booleans() | odd_numbers | odd_texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_texts, inner, max_size=3),
    max_leaves=5,
)
metas = st.dictionaries(st.sampled_from(["ward", "a,b", 'q"', "é\u2028", "note\n"]), values, max_size=2)


@st.composite
def documents(draw: st.DrawFn) -> Document:
    document = draw(annotated())
    scores = st.none() | st.sampled_from([0.0, 0.25, 1.0])
    scored = [replace(entity, score=draw(scores)) for entity in document.entities]
    return Document("d", document.text, tuple(scored), draw(metas))


def is_finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    return all(map(is_finite, value)) if isinstance(value, list) else True


@pytest.mark.parametrize("format", SUFFIXES)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(document=documents())
def test_what_is_written_is_read_back_refused_or_counted(format: str, document: Document) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"back{SUFFIXES[format]}"
        try:
            notes = formats.write(path, [document], format, Options(nested="outermost"))
        except DataError:
            assert not path.exists()  # refused, and nothing is left behind
            return
        (back,) = formats.read(path, format, Options(offsets="codepoints")).documents
    if format != "conll":
        assert (back.text, back.entities) == (document.text, document.entities)
    scores = [entity.score for entity in back.entities]
    if format != "conll" and not any("score" in note for note in notes):
        assert scores == [entity.score for entity in document.entities]
    assert (back.id == document.id) or any("id left out" in note for note in notes) or not document.id
    lost_meta = any("meta" in note for note in notes)
    if document.meta and not lost_meta and format != "conll":
        assert {name: value for name, value in back.meta.items() if name in document.meta} == document.meta


@pytest.mark.parametrize("format", JSON)
@given(value=values.filter(lambda value: not is_finite(value)))
@settings(deadline=None, max_examples=10)
def test_json_is_never_written_with_numbers_that_are_none(format: str, value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"out{SUFFIXES[format]}"
        with pytest.raises(DataError, match="JSON cannot hold a value of its meta"):
            formats.write(path, [Document("d", "肺", (), {"ward": value})], format)
        assert list(Path(folder).iterdir()) == []


@pytest.mark.parametrize("format", JSON)
def test_meta_that_is_nested_too_deeply_is_refused(format: str, tmp_path: Path) -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(DataError, match="JSON cannot hold"):
        formats.write(tmp_path / f"out{SUFFIXES[format]}", [Document("d", "肺", (), {"ward": value})], format)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity", "9" * 400 + ".0"])
def test_a_number_that_is_not_finite_is_named_and_costs_only_its_document(number: str, tmp_path: Path) -> None:
    lines = '{"id": "a", "text": "x", "entities": [], "meta": {"dose": [1, {"max": %s}]}}\n{"id": "b", "text": "y", '
    (tmp_path / "in.jsonl").write_text(lines % number + '"entities": [], "meta": {"e": "1e999 NaN"}}\n', "utf-8")
    error, second = formats.items(tmp_path / "in.jsonl", "native", Counter())
    assert isinstance(error, DataError)
    assert "in.jsonl:1, field meta.dose[1].max: " in str(error) and "mend it" in str(error)
    assert not isinstance(second, DataError) and second.meta == {"e": "1e999 NaN"}


def test_a_number_in_an_array_costs_only_its_document(tmp_path: Path) -> None:
    task = '{"id": %d, "data": {"text": "lung", "dose": %s}, "annotations": [{"id": 2, "result": []}]}'
    (tmp_path / "in.json").write_text(f"[{task % (1, '1e999')},\n{task % (2, '1e300')}]", "utf-8")
    error, second = formats.items(tmp_path / "in.json", "label_studio", Counter())
    assert "in.json:1, field data.dose: the number is infinite" in str(error)
    assert not isinstance(second, DataError) and second.id == "2-2"


def test_of_equal_spans_the_higher_score_is_written_flat(tmp_path: Path) -> None:
    scored = (Entity(0, 2, "a", 0.1), Entity(0, 2, "b", 0.9))
    crossing = (Entity(0, 2, "a", 0.1), Entity(1, 3, "b", 0.9))
    unscored = (Entity(0, 2, "a", 0.99), Entity(0, 2, "b"))
    for nested in ("outermost", "innermost"):
        for number, entities in enumerate((scored, crossing, unscored)):
            path = tmp_path / f"{nested}{number}.bio"
            formats.write(path, [Document("d", "肺部炎", entities)], "conll", Options(nested=nested))
            kept = [entity.label for entity in formats.read(path, "conll").documents[0].entities]
            assert kept == ["b"]
