"""`POST /v1/chat/completions` as OpenAI's clients call it: the text is the last message, the answer is its entities.

The answer is written in the answer format of the run, from the entities that `/v1/extract` returns for the same text,
so thresholds and chunks apply here too. A run that reads spans answers in the format `jsonl`. A parameter that an
extractor cannot obey is an error and is never ignored. Errors have OpenAI's fields as well as those of this service.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from functools import cache
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError

from spantune.core import Document, Extraction, Status, TaskSpec, json_text
from spantune.encoding import FORMATS
from spantune.serving.errors import QUEUE, ApiError
from spantune.serving.requests import ServiceOf, while_connected
from spantune.serving.schemas import EVENT, Strict
from spantune.serving.service import ServedRun, Service

router = APIRouter()
_FRAME = {"id": "chatcmpl-0a1b2c", "created": 1795880305, "model": "demo", "system_fingerprint": "baed9d7d15b1"}
_LINE = '{"entity_text": "右下肺炎", "entity_label": "dis"}\n'
_COMPLETION = {
    **_FRAME,
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": _LINE}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 40, "completion_tokens": 12, "total_tokens": 52},
}
_CHUNK = {
    **_FRAME,
    "object": "chat.completion.chunk",
    "choices": [{"index": 0, "delta": {"content": _LINE}, "finish_reason": None}],
}


class PartIn(Strict):
    """A part of a message; only text parts are accepted."""

    type: Literal["text"]
    text: str


class MessageIn(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | tuple[PartIn, ...] | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, tuple):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptionsIn(Strict):
    """The options of a stream."""

    include_usage: StrictBool = False
    include_obfuscation: StrictBool = False


class ChatIn(Strict):
    """A request of OpenAI's chat completions; a field that an extractor cannot obey is refused."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "demo", "messages": [{"role": "user", "content": "胸片示右下肺炎。"}]}]
        }
    )
    messages: Annotated[tuple[MessageIn, ...], Field(min_length=1, max_length=1000)]
    model: Annotated[str, Field(max_length=256)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptionsIn | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description="Decoding is greedy whatever it is."
    )
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="Decoding is greedy whatever it is.")
    seed: int | None = Field(None, description="Decoding is greedy whatever it is.")
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    logprobs: Literal[False] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None


class ChatError(ApiError):
    """An error with the fields that OpenAI's clients read, and those of this service."""

    def __init__(self, error: ApiError, param: str | None = None):
        super().__init__(error.status, error.code, error.message, error.remedy, headers=error.headers)
        self.param = param

    def response(self) -> JSONResponse:
        """Return the response with this error."""
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        message = f"{self.message}; {self.remedy}" if self.remedy else self.message
        error = {"message": message, "type": kind, "param": self.param, "code": self.code, "remedy": self.remedy}
        return JSONResponse({"error": error}, self.status, headers=self.headers)


def _inlined(value: Any, definitions: dict[str, Any]) -> Any:
    """Return a JSON schema in which each reference to one of the `definitions` is replaced by the definition."""
    if isinstance(value, list):
        return [_inlined(inner, definitions) for inner in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return _inlined(definitions[value["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(inner, definitions) for name, inner in value.items() if name != "$defs"}


def _documented(model: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI entry for a route whose handler parses the body as `model` itself."""
    schema = model.model_json_schema()
    content = {"application/json": {"schema": _inlined(schema, schema.get("$defs", {}))}}
    return {"requestBody": {"required": True, "content": content}}


@router.post(
    "/v1/chat/completions",
    responses={
        **QUEUE,
        200: {
            "content": {
                "application/json": {"example": _COMPLETION},
                "text/event-stream": {"schema": EVENT, "example": f"data: {json_text(_CHUNK)}\n\n"},
            },
            "description": "The entities.",
        },
        422: {"description": "Not used: what is wrong with a request is a 400."},
    },
    openapi_extra=_documented(ChatIn),
)
async def chat(request: Request, service: ServiceOf) -> Response:
    """Extract the entities of the last message; return them as the assistant's answer."""
    try:
        asked = _parsed(await request.body())
        run = service.run(asked.model)
        _require_instruction(asked, run.task)
        text = asked.messages[-1].text
        (extraction,) = await while_connected(request, service.extract_all(run.name, [Document("0", text)]))
        answer = await asyncio.to_thread(_Answer, extraction, run, service, asked)
    except ChatError as error:
        return error.response()
    except ApiError as error:
        return ChatError(error).response()
    if asked.stream:
        body = answer.chunks(with_usage=bool(asked.stream_options and asked.stream_options.include_usage))
        return StreamingResponse(body, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    return JSONResponse(answer.completion())


class _Answer:
    """The answer to a conversation.

    Raises:
        ChatError: the model gave no answer for this text.
    """

    def __init__(self, extraction: Extraction, run: ServedRun, service: Service, asked: ChatIn):
        if extraction.status.is_failure:
            said = "; ".join(problem.found for problem in extraction.problems)
            raise _invalid(f"no answer for this text ({extraction.status}): {said}", "messages", "no_answer")
        encoder = service.encoder(run.name)
        form = FORMATS["jsonl" if run.task.reads else run.task.answer]
        self.content = form.render(extraction.document, run.task)
        ids = encoder.tokenizer(self.content, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        limit = asked.max_completion_tokens or asked.max_tokens
        self.finish = "stop" if extraction.status is Status.STOPPED else "length"
        if limit is not None and len(ids) > limit:
            ids, self.finish = ids[:limit], "length"
            self.content = _cut(self.content, encoder.tokenizer.decode(ids))
        prompt = len(encoder.prompt_ids(extraction.document.text))
        self.usage = {"prompt_tokens": prompt, "completion_tokens": len(ids), "total_tokens": prompt + len(ids)}
        self._frame = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": run.name,
            "system_fingerprint": run.fingerprint,
        }

    def completion(self) -> dict[str, Any]:
        """Return the whole answer as one object."""
        message = {"role": "assistant", "content": self.content, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": self.finish, "logprobs": None}
        return {**self._frame, "object": "chat.completion", "choices": [choice], "usage": self.usage}

    async def chunks(self, *, with_usage: bool) -> AsyncIterator[str]:
        """Yield the answer as server-sent events, one for each line of the answer."""
        yield self._event({"role": "assistant", "content": ""}, None)
        for line in self.content.splitlines(keepends=True):
            yield self._event({"content": line}, None)
        yield self._event({}, self.finish)
        if with_usage:
            yield self._data({"choices": [], "usage": self.usage})
        yield "data: [DONE]\n\n"

    def _event(self, delta: dict[str, str], finish: str | None) -> str:
        return self._data({"choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]})

    def _data(self, fields: dict[str, Any]) -> str:
        return f"data: {json_text({**self._frame, 'object': 'chat.completion.chunk', **fields})}\n\n"


def _parsed(body: bytes) -> ChatIn:
    """Return the request in `body`.

    Raises:
        ChatError: the body is not such a request, or asks for something that an extractor cannot do.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise ChatError(
            ApiError(400, "invalid_json", "the body is not JSON", "send one JSON object in UTF-8")
        ) from None
    try:
        asked = ChatIn.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = ".".join(str(part) for part in first["loc"])[:200]
        if first["type"] == "extra_forbidden" and param in _cannot():
            raise _invalid(f"{param}: {_cannot()[param]}", param, "unsupported_parameter") from None
        said = "is not known here; leave it out" if first["type"] == "extra_forbidden" else first["msg"]
        raise _invalid(f"{param or 'body'}: {said}", param or None) from None
    if asked.messages[-1].role != "user":
        raise _invalid("the last message must be the user's: it is the text to extract from", "messages")
    return asked


@cache
def _cannot() -> dict[str, str]:
    """Return why an extractor refuses a parameter, for parameters that clients know from other servers."""
    grammar = "every answer is under the grammar of its text and run already; leave it out"
    reasons = {
        ("tools", "tool_choice", "functions", "function_call", "parallel_tool_calls"): "an extractor calls no tools",
        ("response_format", "structured_outputs", "grammar", "guided_grammar", "guided_json"): grammar,
        (
            "logit_bias",
            "top_k",
            "min_p",
            "stop",
            "repetition_penalty",
        ): "decoding is greedy under a grammar; leave it out",
        ("top_logprobs",): "no log-probabilities are told; /v1/extract tells a score for each entity",
        ("audio", "modalities", "prediction", "web_search_options"): "an extractor only answers texts; leave it out",
    }
    return {name: reason for names, reason in reasons.items() for name in names}


def _require_instruction(asked: ChatIn, task: TaskSpec) -> None:
    """Check that system messages are empty or are the run's own instruction, which the model gets in any case.

    Raises:
        ChatError: a system message is something else.
    """
    for message in asked.messages:
        if message.role in ("system", "developer") and message.text.strip() not in ("", task.instruction.strip()):
            raise _invalid(
                "the system message is not the instruction that the run was trained with, and no other one would be "
                "followed; leave it out, or send the instruction of /v1/task",
                "messages",
            )


def _invalid(message: str, param: str | None, code: str = "invalid_request") -> ChatError:
    return ChatError(ApiError(400, code, message), param)


def _cut(whole: str, decoded: str) -> str:
    """Return the beginning of `whole` that is equal to the beginning of `decoded`, which may end inside a character."""
    length = next(
        (index for index, (a, b) in enumerate(zip(whole, decoded, strict=False)) if a != b),
        min(len(whole), len(decoded)),
    )
    return whole[:length]
