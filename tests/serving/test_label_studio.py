"""Requests of Label Studio as version 1.23.2 sent them (`fixtures/label_studio_ml`), and invalid ones."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from spantune.data import formats
from spantune.extraction import Extractor
from spantune.serving import label_studio

RECORDED = Path(__file__).parents[1] / "fixtures" / "label_studio_ml" / "requests.jsonl"
TEXT = "肺炎患者😀咳嗽"


def recorded(name: str) -> dict[str, Any]:
    """Return the body of a recorded request, by its action or its path."""
    for line in RECORDED.read_text(encoding="utf-8").splitlines():
        request = json.loads(line)
        body = request["body"] or {}
        if name in (request["path"], body.get("action")):
            return deepcopy(body)
    raise AssertionError(name)


@pytest.fixture
def folder(served: Any) -> Path:
    """The folder of the corrections, emptied."""
    folder: Path = served.service.settings.corrections
    for path in folder.iterdir():
        path.unlink()
    return folder


def post(served: Any, path: str, body: object) -> Any:
    return served.client.post(path, json=body)


def stored(folder: Path) -> list[dict[str, Any]]:
    path = folder / "corrections.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def test_the_recorded_session_is_answered_and_its_secrets_are_not_kept(
    served: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for line in RECORDED.read_text(encoding="utf-8").splitlines():
        request = json.loads(line)
        response = served.client.request(request["method"], request["path"], json=request["body"])
        assert response.status_code == (201 if request["path"] == "/webhook" else 200), (request, response.text)
        assert "SECRET" not in response.text
    assert "SECRET" not in caplog.text and TEXT not in caplog.text
    assert "SECRET" not in "".join(path.read_text() for path in folder.iterdir())
    assert [line["meta"].get("withdrawn") for line in stored(folder)] == [None, None, True]


def test_setup_names_the_version_and_what_does_not_match(served: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "spantune")
    answer = post(served, "/setup", recorded("/setup")).json()
    (run,) = served.service.runs
    assert answer["model_version"] == f"toy-{run.fingerprint}"
    assert "does not know other of the project" in answer["problems"][1]
    assert "2 of 9 labels of the run toy match" in caplog.text and "does not know other" in caplog.text
    assert served.client.get("/versions").json() == {"versions": [answer["model_version"]]}
    assert served.client.get("/label-studio/toy/versions").json() == {"versions": [answer["model_version"]]}
    assert served.client.get("/label-studio/toy/health").json() == {"status": "UP", "model_class": "spantune"}
    assert served.client.get("/label-studio/none/versions").status_code == 404


def test_predictions_are_those_of_the_extractor_under_the_names_of_the_project(
    serve_with: Callable[..., Any], offline: Extractor
) -> None:
    body = recorded("/predict")
    texts = ["😀痨", "", "疮痈", "疮"]
    body["tasks"] = [{"id": 9 - number, "data": {"text": text}} for number, text in enumerate(texts)]
    body["tasks"][3]["data"] = {label_studio.UNNAMED: texts[3]}
    with serve_with(max_documents=1, max_queue=1) as served:
        results = post(served, "/predict", body).json()["results"]
    assert len(results) == 4  # in order, although only one document is accepted at a time
    for text, result in zip(texts, results, strict=True):
        expected = [entity for entity in offline.extract(text).entities if entity.label in ("dis", "sym")]
        found = [
            (region["value"]["start"], region["value"]["end"], region["value"]["labels"], region["value"]["text"])
            for region in result["result"]
        ]
        assert found == [(e.start, e.end, [e.label], text[e.start : e.end]) for e in expected]
        for region in result["result"]:
            assert (region["from_name"], region["to_name"], region["type"]) == ("label", "text", "labels")
            assert 0 <= region["score"] <= 1
        assert result["model_version"].startswith("toy-")
        if expected:
            assert result["score"] == pytest.approx(min(e.score or 0 for e in expected), abs=1e-5)
    assert any(result["result"] for result in results)


def test_the_labels_of_a_prediction_are_those_of_the_project(served: Any) -> None:
    body = recorded("/predict")
    body["label_config"] = body["label_config"].replace('value="疾病" alias="dis"', 'value="DIS"')
    body["tasks"] = [{"data": {"text": "痨"}}]
    (result,) = post(served, "/predict", body).json()["results"]
    assert [region["value"]["labels"] for region in result["result"]] == [["DIS"]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"text": "https://example.org/a.txt"}, "is a link, and links are not fetched"),
        ({"text": "s3://bucket/a.txt"}, "is a link, and links are not fetched"),
        ({"body": "痨"}, "no text in its field 'text'"),
        ({"text": ["痨"]}, "no text in its field 'text'"),
    ],
)
def test_a_task_without_a_text_has_an_error_of_its_own(served: Any, data: dict[str, Any], message: str) -> None:
    body = recorded("/predict")
    body["tasks"] = [{"data": data}, {"data": {"text": "痨"}}]
    refused, predicted = post(served, "/predict", body).json()["results"]
    assert message in refused["error"] and "result" not in refused  # Label Studio logs this error and asks again
    assert predicted["result"]


def test_a_field_inside_a_field_is_found(served: Any) -> None:
    body = recorded("/predict")
    body["label_config"] = body["label_config"].replace("$text", "$note.body")
    body["tasks"] = [{"data": {"note": {"body": "痨"}}}, {"data": {"note": "痨"}}]
    inner, absent = post(served, "/predict", body).json()["results"]
    assert inner["result"] and "no text in its field 'note.body'" in absent["error"]


def test_tasks_for_which_there_is_no_time_have_an_error(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_studio, "SECONDS", 0.0)
    results = post(served, "/predict", recorded("/predict")).json()["results"]
    assert [result["error"] for result in results] == ["there was no time for this task; ask again"] * 2


def test_annotations_become_corrections(served: Any, folder: Path) -> None:
    created = recorded("ANNOTATION_CREATED")
    created["annotation"]["result"] += [
        {**created["annotation"]["result"][0], "value": {"start": 5, "end": 7, "labels": ["other", "sym"]}},
        {"type": "choices", "to_name": "text", "value": {"choices": ["good"]}},
    ]
    answer = post(served, "/webhook", created)
    assert answer.status_code == 201
    assert answer.json() == {"saved": 1, "problems": ["labels that the run does not have were left out: other"]}
    (line,) = stored(folder)
    (run,) = served.service.runs
    assert line["text"] == TEXT and line["id"] == "label-studio-1-1"
    assert [(e["start"], e["end"], e["label"], e["text"]) for e in line["entities"]] == [
        (0, 2, "dis", "肺炎"),
        (5, 7, "sym", "咳嗽"),
    ]
    meta = line["meta"]
    assert (meta["model"], meta["fingerprint"], meta["source"]) == ("toy", run.fingerprint, "label-studio")
    assert meta["left_out"] == ["other"] and meta["annotator"] == 1
    post(served, "/webhook", recorded("ANNOTATION_UPDATED"))
    (document,) = formats.read(folder / "corrections.jsonl").documents
    assert [(e.start, e.end, e.label) for e in document.entities] == [(5, 7, "sym")]


def test_several_annotations_of_one_message_are_stored_together(served: Any, folder: Path) -> None:
    several = recorded("ANNOTATION_CREATED")
    second = {**several["annotation"], "id": 2, "result": []}
    several |= {
        "action": "ANNOTATIONS_CREATED",
        "annotation": [several["annotation"], second],
        "task": [several["task"], {**several["task"], "id": 2, "data": {"text": "b"}}],
    }
    assert post(served, "/webhook", several).json()["saved"] == 2
    assert [line["text"] for line in stored(folder)] == [TEXT, "b"]


@pytest.mark.parametrize("action", ["ANNOTATIONS_DELETED", "cancelled"])
def test_a_deleted_or_skipped_annotation_is_withdrawn(served: Any, folder: Path, action: str) -> None:
    if action == "cancelled":
        gone = recorded("ANNOTATION_UPDATED")
        gone["annotation"]["was_cancelled"] = True
    else:
        gone = recorded(action)
    assert post(served, "/webhook", gone).json()["saved"] == 0  # it was never stored
    post(served, "/webhook", recorded("ANNOTATION_CREATED"))
    other = recorded("ANNOTATION_CREATED")
    other["annotation"]["id"], other["task"]["data"]["text"] = 2, TEXT + "!"
    post(served, "/webhook", other)
    assert post(served, "/webhook", gone).json()["saved"] == 1
    corpus = formats.read(folder / "corrections.jsonl")
    assert [document.text for document in corpus.documents] == [TEXT + "!"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body["annotation"]["result"][0]["value"].update(end=99), "outside the text of 7 characters"),
        (lambda body: body["annotation"]["result"][0]["value"].update(start=True), "outside the text"),
        (
            lambda body: body["annotation"]["result"][0]["value"].update(text="咳嗽"),
            "not that of the task at its offsets",
        ),
        (lambda body: body["annotation"]["result"][0]["value"].pop("labels"), "no span with labels"),
        (lambda body: body["annotation"].update(result=[3]), "annotation.result: expected an object"),
        (lambda body: body["annotation"].pop("id"), "the annotation has no id"),
        (lambda body: body["task"].update(data={"text": "https://example.org/x"}), "is a link"),
        (lambda body: body.update(task=[]), "1 annotations and 0 tasks"),
        (lambda body: body["project"].update(label_config="<View/>"), "no <Labels> that belongs"),
        (lambda body: body.pop("project"), "is not XML"),
    ],
)
def test_an_annotation_that_is_wrong_is_refused_and_nothing_is_stored(
    served: Any, folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    body = recorded("ANNOTATION_CREATED")
    change(body)
    response = post(served, "/webhook", body)
    assert response.status_code == 422
    assert message in response.json()["error"]["message"] and response.json()["error"]["remedy"]
    assert stored(folder) == []


def test_without_a_folder_annotations_are_refused_and_predictions_are_not(serve_with: Callable[..., Any]) -> None:
    with serve_with() as served:
        answer = post(served, "/webhook", recorded("ANNOTATION_CREATED"))
        assert answer.status_code == 409 and answer.json()["error"]["remedy"] == "start it with --corrections FOLDER"
        assert post(served, "/webhook", recorded("TASKS_CREATED")).status_code == 201
        assert post(served, "/predict", recorded("/predict")).status_code == 200
        training = post(served, "/webhook", recorded("START_TRAINING"))
        assert training.status_code == 201 and "spantune train RECIPE" in training.json()["message"]


def test_an_interface_without_a_label_of_the_run_is_refused(served: Any) -> None:
    for path, field in (("/setup", "schema"), ("/predict", "label_config")):
        body = recorded(path)
        body[field] = "<View></View>"
        response = post(served, path, body)
        assert response.status_code == 422
        assert response.json()["error"]["code"] == "labelling_interface"
        assert "give the project an interface with <Labels> on a <Text>" in response.json()["error"]["message"]
