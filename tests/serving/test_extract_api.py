"""Extraction over HTTP: one text, several documents, and streams."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from helpers.served import Served
from spantune.extraction import Extractor

TEXTS = ["痨", "未见异常。", "疮痈"]


def spans(entities: list[dict[str, Any]]) -> list[tuple[int, int, str, str]]:
    """Return the entities without scores, whose last digits depend on the other texts of a pass."""
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


def test_a_request_chooses_its_run(serve_with: Callable[..., Any]) -> None:
    with serve_with(("first", "second")) as served:
        assert [model["id"] for model in served.client.get("/v1/models").json()["data"]] == ["first", "second"]
        assert served.extract(text="痨").json()["model"] == "first"
        assert served.extract(text="痨", model="second").json()["model"] == "second"
        unknown = served.extract(text="痨", model="third")
        assert "name one of: first, second" in unknown.json()["error"]["remedy"]


def test_options_change_what_is_answered(served: Served) -> None:
    (entity,) = served.extract(text="痨", min_score=0).json()["entities"]
    assert served.extract(text="痨", min_score=1).json()["entities"] == []
    whole = served.extract(text="痨", min_score=1, all_scores=True).json()
    assert whole["below_threshold"] == [entity]
    other = "sym" if entity["label"] != "sym" else "bod"
    assert served.extract(text="痨", min_score=0, labels=[other]).json()["entities"] == []
    assert served.extract(text="痨", min_score=0, labels=[entity["label"]]).json()["entities"] == [entity]


def test_an_error_in_the_middle_of_a_stream_is_its_last_event(
    serve_with: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_with(timeout=0.7) as served:
        session = next(iter(served.service._lanes.values())).session
        step, gate, ended = session.step, threading.Event(), []

        def stop_after_the_first() -> Any:
            if ended:
                gate.wait()
            some = step()
            ended.extend(some)
            return some

        monkeypatch.setattr(session, "step", stop_after_the_first)
        body = {"documents": [{"text": "未见异常，痨。" * count} for count in (1, 3, 9, 27)]}
        response = served.client.post("/v1/extract", json=body, headers={"Accept": "text/event-stream"})
        gate.set()
    events = [block.split("\n")[0].removeprefix("event: ") for block in response.text.strip().split("\n\n")]
    assert response.status_code == 200 and '"deadline_exceeded"' in response.text
    assert 1 < len(events) < 5 and set(events[:-1]) == {"document"} and events[-1] == "error"
