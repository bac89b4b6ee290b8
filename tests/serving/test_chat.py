"""`/v1/chat/completions`, called as OpenAI's clients call it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from helpers.run_folders import READING, save_run
from helpers.served import Served
from spantune.encoding import FORMATS
from spantune.extraction import Extractor
from spantune.serving import ServeSettings

PATH = "/v1/chat/completions"


def say(text: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


def ask(served: Any, body: object) -> Any:
    return served.client.post(PATH, json=body)


def test_the_answer_states_the_entities_in_the_format_of_the_run(served: Any, offline: Extractor) -> None:
    response = ask(served, say("疮痈", model="toy"))
    assert response.status_code == 200
    answer = response.json()
    content = answer["choices"][0]["message"]["content"]
    document = offline.extract("疮痈")
    assert content == FORMATS["jsonl"].render(document, offline.task) != ""
    assert json.loads(content.splitlines()[0])["entity_text"] == document.surface(document.entities[0])
    prompt, written = len(offline.encoder.prompt_ids("疮痈")), len(offline.encoder.tokenizer(content)["input_ids"])
    assert answer == {
        "id": answer["id"],
        "created": answer["created"],
        "object": "chat.completion",
        "model": "toy",
        "system_fingerprint": served.service.run().fingerprint,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written},
    }


def test_the_text_is_the_last_message_whatever_was_said_before(served: Any, offline: Extractor) -> None:
    messages = [
        {"role": "system", "content": offline.task.instruction + "\n"},
        {"role": "user", "content": "痨"},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "user", "content": [{"type": "text", "text": "疮"}, {"type": "text", "text": "痈"}]},
    ]
    answer = ask(served, {"messages": messages, "temperature": 0.7, "seed": 1, "n": 1}).json()
    assert answer["choices"] == ask(served, say("疮痈")).json()["choices"]


def test_a_stream_has_the_same_content_and_ends_with_done(served: Any) -> None:
    whole = ask(served, say("疮痈")).json()
    response = ask(served, say("疮痈", stream=True, stream_options={"include_usage": True}))
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.strip().split("\n\n")
    assert events.pop() == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks.pop()["usage"] == whole["usage"]
    deltas = [chunk["choices"][0] for chunk in chunks]
    assert deltas[0]["delta"]["role"] == "assistant" and deltas[-1]["finish_reason"] == "stop"
    said = "".join(delta["delta"].get("content", "") for delta in deltas)
    assert said == whole["choices"][0]["message"]["content"]
    assert all(delta["finish_reason"] is None for delta in deltas[:-1])


def test_an_answer_over_the_limit_of_tokens_is_cut_and_says_so(served: Any) -> None:
    whole = ask(served, say("疮痈")).json()["choices"][0]["message"]["content"]
    answer = ask(served, say("疮痈", max_tokens=3)).json()
    content = answer["choices"][0]["message"]["content"]
    assert whole.startswith(content) and len(content) < len(whole)
    assert answer["choices"][0]["finish_reason"] == "length" and answer["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"n": 2}, "n", "less than or equal to 1"),
        ({"tools": []}, "tools", "an extractor calls no tools"),
        ({"response_format": {"type": "json_object"}}, "response_format", "under the grammar of its text"),
        ({"logprobs": True}, "logprobs", "False"),
        ({"stop": ["x"]}, "stop", "greedy"),
        ({"presence_penalty": 1}, "presence_penalty", "less than or equal to 0"),
        ({"colour": 1}, "colour", "is not known here; leave it out"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "the last message must be the user's"),
        ({"messages": [{"role": "poet", "content": "x"}]}, "messages.0.role", "'user'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content",
            "",
        ),
        (
            {"messages": [{"role": "system", "content": "Be a poet."}, {"role": "user", "content": "x"}]},
            "messages",
            "is not the instruction that the run was trained with",
        ),
    ],
)
def test_what_an_extractor_cannot_do_is_an_error_of_openais_shape(
    served: Any, change: dict[str, Any], param: str, message: str
) -> None:
    response = ask(served, say("疮痈") | change)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error" and error["param"].startswith(param)
    assert message in error["message"]
    assert set(error) == {"message", "type", "param", "code", "remedy"}


def test_other_errors_have_the_shape_too(served: Any) -> None:
    for body, status, code in (
        (b"{", 400, "invalid_json"),
        (b"[" * 100_000, 400, "invalid_json"),
        (b"3", 400, "invalid_request"),
    ):
        response = served.client.post(PATH, content=body, headers={"Content-Type": "application/json"})
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert response.json()["error"]["type"] == "invalid_request_error"
    response = ask(served, say("x", model="none"))
    assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_model")


def test_a_run_that_reads_is_answered_in_lines_of_json(tiny_folder: Any, tmp_path: Any) -> None:
    run = save_run(tmp_path / "reads", tiny_folder, READING)
    with Served(run, ServeSettings()) as served:
        entities = served.extract(text="肺炎患者 abc 咳嗽").json()["entities"]
        answer = ask(served, say("肺炎患者 abc 咳嗽")).json()
    assert entities and answer["usage"]["prompt_tokens"] > 0
    lines = [json.loads(line) for line in answer["choices"][0]["message"]["content"].splitlines()]
    assert [line["entity_text"] for line in lines] == [entity["text"] for entity in entities]
