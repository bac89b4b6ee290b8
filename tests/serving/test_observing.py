"""What an operator of the service sees: log lines, request ids, metrics, and the description of the API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from helpers.served import Served

SECRET = "病人王小明"


def test_the_log_has_ids_and_routes_and_no_text(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    answer = served.client.post("/v1/extract", json={"text": SECRET}, headers={"X-Request-ID": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    served.client.get(f"/{SECRET}?q={SECRET}", headers={"X-Request-ID": "a b\t" + SECRET.encode().hex()})
    served.until(lambda: True)
    error = capfd.readouterr().err
    lines = [json.loads(line) for line in error.splitlines() if line.startswith("{")]
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("POST", "/v1/extract", 200),
        ("GET", "other", 404),
    ]
    assert lines[0]["id"] == "abc-1" and len(lines[1]["id"]) == 32
    assert SECRET not in error and "%E7" not in error


def test_metrics_count_requests_documents_and_seconds(served: Served) -> None:
    def value(name: str) -> float:
        lines = served.client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    request = 'spantune_requests_total{method="POST",route="/v1/extract",status="200"}'
    names = (request, "spantune_documents_total", "spantune_document_seconds_count")
    before = [value(name) for name in names]
    served.extract(documents=[{"text": "痨"}, {"text": "疮"}])
    assert [value(name) for name in names] == [before[0] + 1, before[1] + 2, before[2] + 2]
    refused = value('spantune_problems_total{kind="refused",model="toy"}')
    served.extract(text="x" * 500_001)
    assert value('spantune_problems_total{kind="refused",model="toy"}') == refused + 1


def test_every_route_is_described_with_an_example_and_our_errors(served: Served) -> None:
    described = served.client.get("/openapi.json").json()
    assert {"/v1/extract", "/v1/task", "/v1/models", "/health", "/ready", "/metrics"} <= set(described["paths"])
    assert "HTTPValidationError" not in described["components"]["schemas"]
    for path, methods in described["paths"].items():
        for operation in methods.values():
            answer = operation["responses"].get("200") or operation["responses"]["201"]
            assert _examples(answer, described), path
            assert "422" in operation["responses"], path
    assert served.client.get("/docs").status_code == 404


def test_the_task_has_labels_with_colours(served: Served) -> None:
    task = served.client.get("/v1/task", params={"model": "toy"}).json()
    assert (task["model"], task["answer"], task["nested"]) == ("toy", "jsonl", True)
    assert task["labels"][0] == {"code": "dis", "name": "", "description": "", "colour": ["#1771e3", "#83b1e9"]}
    assert served.client.get("/v1/task", params={"model": "nope"}).status_code == 404


def test_models_have_a_fingerprint(served: Served) -> None:
    (model,) = served.client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["answer"]) == ("toy", "model", "jsonl")
    assert len(model["fingerprint"]) == 12 and int(model["fingerprint"], 16)


def _examples(response: dict[str, Any], described: dict[str, Any]) -> bool:
    """Whether a response has an example, of its own or in its schema."""
    for content in response["content"].values():
        schema = content.get("schema", {})
        name = schema.get("$ref", "").rpartition("/")[2]
        schema = described["components"]["schemas"].get(name, schema)
        if not ("example" in content or "examples" in content or "examples" in schema):
            return False
    return True
