"""Extraction over HTTP: one text, several documents, and streams."""

from __future__ import annotations

import json
from typing import Any

import pytest

from helpers.served import Served
from spantune.extraction import Extractor

TEXTS = ["痨", "未见异常。", "疮痈"]


def spans(entities: list[dict[str, Any]]) -> list[tuple[int, int, str, str]]:
    """What does not depend on which texts share a pass: all but the last digits of the scores."""
    return [(entity["start"], entity["end"], entity["label"], entity["text"]) for entity in entities]


def expected(offline: Extractor, text: str) -> list[tuple[int, int, str, str]]:
    document = offline.extract(text)
    return [(entity.start, entity.end, entity.label, document.surface(entity)) for entity in document.entities]


def test_a_text_is_answered_as_by_the_extractor(served: Served, offline: Extractor) -> None:
    response = served.extract(text="痨")
    answer = response.json()
    assert response.status_code == 200
    assert spans(answer["entities"]) == expected(offline, "痨") != []
    assert answer["entities"][0]["score"] == pytest.approx(offline.extract("痨").entities[0].score, abs=1e-4)
    assert (answer["status"], answer["problems"], answer["model"]) == ("stopped", [], "toy")


def test_documents_are_answered_in_order_under_their_ids(served: Served, offline: Extractor) -> None:
    documents = [{"id": "a", "text": TEXTS[0]}, {"text": TEXTS[1]}, {"id": "a", "text": TEXTS[2]}]
    answer = served.extract(documents=documents).json()
    assert [document["id"] for document in answer["documents"]] == ["a", "1", "a"]
    assert [spans(document["entities"]) for document in answer["documents"]] == [
        expected(offline, text) for text in TEXTS
    ]


def test_lines_are_streamed_with_id_and_index(served: Served, offline: Extractor) -> None:
    body = {"documents": [{"text": text} for text in TEXTS]}
    response = served.client.post("/v1/extract", json=body, headers={"Accept": "application/x-ndjson"})
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = sorted((json.loads(line) for line in response.text.splitlines()), key=lambda line: line["index"])
    assert [line["id"] for line in lines] == ["0", "1", "2"]
    assert [spans(line["entities"]) for line in lines] == [expected(offline, text) for text in TEXTS]


def test_events_end_with_done(served: Served) -> None:
    body = {"documents": [{"text": text} for text in TEXTS]}
    response = served.client.post("/v1/extract", json=body, headers={"Accept": "text/event-stream"})
    events = [block.split("\n")[0].removeprefix("event: ") for block in response.text.strip().split("\n\n")]
    assert events == ["document", "document", "document", "done"]
