"""The short form of bench/fuzz.py: for any text, an untrained model writes a valid and grounded answer."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.real import bench
from spantune.core import Document, Entity, Extraction, Label, Problem, ProblemKind, Status, TaskSpec
from spantune.encoding import FORMATS


@pytest.fixture(scope="module")
def fuzz() -> Any:
    return bench("fuzz")


@pytest.mark.no_cover
@pytest.mark.parametrize("answer", sorted(FORMATS))
@pytest.mark.parametrize("ordered", [True, False])
def test_fuzzed_texts(answer: str, ordered: bool, fuzz: Any) -> None:
    labels = tuple(Label(code=code) for code in fuzz.CODES)
    task = TaskSpec.model_validate({"labels": labels, "instruction": "Find entities.", "answer": answer})
    documents = list(fuzz.fuzzed(60, seed=1))
    found = list(fuzz.tiny(task, fuzz.LIVELY[answer], ordered=ordered).stream(documents))
    for document, extraction in zip(documents, found, strict=True):
        assert fuzz.wanting(extraction, task, document.text, ordered=ordered) == [], (document.text, extraction.answer)
    assert sum(len(one.document.entities) for one in found) > 15
    ends = {"stopped", "length"} if ordered or answer == "inline" else {"stopped", "repeated"}
    assert ends <= {one.status for one in found}


def test_the_fuzzer_sees_what_is_wrong(fuzz: Any) -> None:
    task = TaskSpec(labels=(Label(code="a"),), instruction="x")
    line = '{"entity_text": "x", "entity_label": "a"}\n'

    def of(*entities: Entity, answer: str = line, status: str = "stopped", ordered: bool = True) -> list[str]:
        problems = (Problem(ProblemKind.REPEATED, "x"),) if status == "repeated" else ()
        extraction = Extraction(Document("1", "xyx", entities), answer, Status(status), problems)
        found: list[str] = fuzz.wanting(extraction, task, "xyx", ordered=ordered)
        return found

    assert of(Entity(0, 1, "a", 0.5)) == []
    assert of(Entity(0, 1, "b", 0.5)) == ["entity outside"] and of(Entity(0, 1, "a")) == ["no score"]
    assert of(Entity(0, 1, "a", 0.5), Entity(0, 1, "a", 0.5), answer="") == ["said twice"]
    assert of(Entity(0, 1, "a", 0.5), answer=line + " ") == ["another answer would say it"]
    assert of(Entity(0, 1, "a", 0.5), status="repeated") == ["problem repeated"]
    assert of(Entity(0, 1, "a", 0.5), answer=line + " ", ordered=False) == []
    assert of(Entity(0, 1, "a", 0.5), status="repeated", ordered=False) == []
