"""Extraction over HTTP: one text, several documents, and streams."""

from __future__ import annotations

import json
from typing import Any

from spantune.extraction import Extractor

TEXTS = ["痨", "未见异常。", "疮痈"]


def _offline(toy: Extractor, text: str) -> list[dict[str, Any]]:
    document = toy.extract(text)
    entities: Any = document.to_dict()["entities"]
    return list(entities)


def test_a_text_is_answered_as_by_the_extractor(served: Any, toy: Extractor) -> None:
    response = served.extract(text="痨")
    assert response.status_code == 200
    answer = response.json()
    assert answer["entities"] == _offline(toy, "痨") != []
    assert (answer["status"], answer["problems"], answer["model"]) == ("stopped", [], "toy")


def test_documents_are_answered_in_order_under_their_ids(served: Any, toy: Extractor) -> None:
    documents = [{"id": "a", "text": TEXTS[0]}, {"text": TEXTS[1]}, {"id": "a", "text": TEXTS[2]}]
    answer = served.extract(documents=documents).json()
    assert [document["id"] for document in answer["documents"]] == ["a", "1", "a"]
    assert [document["entities"] for document in answer["documents"]] == [_offline(toy, text) for text in TEXTS]


def test_lines_are_streamed_with_id_and_index(served: Any, toy: Extractor) -> None:
    body = {"documents": [{"text": text} for text in TEXTS]}
    response = served.client.post("/v1/extract", json=body, headers={"Accept": "application/x-ndjson"})
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = sorted((json.loads(line) for line in response.text.splitlines()), key=lambda line: line["index"])
    assert [line["id"] for line in lines] == ["0", "1", "2"]
    assert [line["entities"] for line in lines] == [_offline(toy, text) for text in TEXTS]


def test_events_end_with_done(served: Any) -> None:
    body = {"documents": [{"text": text} for text in TEXTS]}
    response = served.client.post("/v1/extract", json=body, headers={"Accept": "text/event-stream"})
    events = [block.split("\n")[0].removeprefix("event: ") for block in response.text.strip().split("\n\n")]
    assert events == ["document", "document", "document", "done"]
