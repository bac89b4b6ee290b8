"""A completions server on this machine that generates with a real model and can be told to fail."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

Trouble = Callable[[int, dict[str, Any]], "Response | str | None"]


@dataclass(frozen=True)
class Response:
    """An HTTP answer with its own status."""

    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class CompletionsServer:
    """Greedy completions of a model over OpenAI's protocol.

    `kind` chooses the server whose fields and answers are used: `vllm`, `llamacpp`, or `openai` for a server without
    grammars. `trouble` is called before each completion with its number and the request. Its result decides what
    happens: a Response is sent in place of the answer, "hang" keeps the client waiting, "drop" closes the connection,
    and None lets the model answer.
    """

    model: Any
    tokenizer: Any
    kind: str = "vllm"
    names: tuple[str, ...] = ("tiny",)
    trouble: Trouble = lambda number, request: None
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    hanging: int = 0
    port: int = 0
    about: dict[str, Any] = field(default_factory=dict)  # answers by path, such as /version and /props

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._generating = threading.Lock()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        """The base URL of the server."""
        return f"http://127.0.0.1:{self.port}/v1"

    def models(self) -> dict[str, Any]:
        """Return the answer to /models."""
        owner = {"vllm": "vllm", "llamacpp": "llamacpp"}.get(self.kind, "somebody")
        window = {"max_model_len": 2048} if self.kind == "vllm" else {}
        return {"object": "list", "data": [{"id": name, "owned_by": owner, **window} for name in self.names]}

    def answer(self, request: dict[str, Any]) -> Response | str:
        """Return what is sent for a completion request."""
        with self._lock:
            number = len(self.requests)
            self.requests.append(request)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            found = self.trouble(number, request)
            if found is not None:
                return found
            if request["model"] not in self.names:
                return Response(404, {"error": {"message": f"The model `{request['model']}` does not exist."}})
            with self._generating:
                return Response(200, self._complete(request))
        finally:
            with self._lock:
                self.at_once -= 1

    def _complete(self, request: dict[str, Any]) -> dict[str, Any]:
        prompt, stop = request["prompt"], self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        if self.kind == "llamacpp" and "logit_bias" in request:
            return self._choose(request, stop)
        matcher = self._matcher(request, stop)
        ids: list[int] = []
        logprobs: list[float] = []
        while len(ids) < request["max_tokens"] and (not ids or ids[-1] != stop):
            with torch.no_grad():
                logits = self.model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0, -1].float()
            masked = logits
            if matcher is not None:
                biases = torch.tensor(list(matcher.compute_logit_bias()))[: len(logits)]
                masked = logits.masked_fill(biases == 0, float("-inf"))
            ids.append(int(masked.argmax()))
            # vLLM applies the grammar's mask before it takes log-probabilities; llama.cpp takes them without the mask
            logprobs.append(float((masked if self.kind == "vllm" else logits).log_softmax(-1)[ids[-1]]))
            if matcher is not None:
                matcher.consume_token(ids[-1])
        finish = "stop" if ids[-1] == stop else "length"
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": finish}
        if self.kind == "vllm":
            choice["logprobs"] = {"token_logprobs": logprobs, "tokens": [self.tokenizer.decode([i]) for i in ids]}
            choice["token_ids"] = ids if request.get("return_token_ids") else None
        elif self.kind == "llamacpp":
            rows = [{"id": i, "logprob": logprob} for i, logprob in zip(ids, logprobs, strict=True) if i != stop]
            choice["logprobs"] = {"content": rows} if request.get("logprobs") else None
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(ids)}
        return {"object": "text_completion", "model": request["model"], "choices": [choice], "usage": usage}

    def _choose(self, request: dict[str, Any], stop: int) -> dict[str, Any]:
        """Return llama.cpp's answer of one token: the best one, with the `logprobs` best of the `top_k` probabilities.

        If the token is an incomplete character, llama.cpp sends no probabilities.
        """
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([request["prompt"]]), use_cache=False).logits[0, -1].float()
        for index, bias in request["logit_bias"]:
            logits[index] += bias
        best = logits.topk(request["top_k"])
        pairs = list(zip(best.indices.tolist(), best.values.softmax(-1).tolist(), strict=True))
        drawn = pairs[0][0]
        text = "" if drawn == stop else self.tokenizer.decode([drawn])
        rows = [{"id": index, "prob": prob} for index, prob in pairs[: request["logprobs"]] if prob]
        content = None if "\ufffd" in text else {"content": [{"id": drawn, "prob": pairs[0][1], "top_probs": rows}]}
        choice = {"index": 0, "text": text, "finish_reason": "stop" if drawn == stop else "length", "logprobs": content}
        usage = {"prompt_tokens": len(request["prompt"]), "completion_tokens": 1}
        return {"object": "text_completion", "model": request["model"], "choices": [choice], "usage": usage}

    def _matcher(self, request: dict[str, Any], stop: int) -> Any:
        import llguidance.hf
        from llguidance import LLMatcher
        from llguidance.gbnf_to_lark import any_to_lark

        grammar = None
        if self.kind == "vllm" and "structured_outputs" in request:
            grammar = request["structured_outputs"]["grammar"]
        elif self.kind == "llamacpp" and "grammar" in request:
            grammar = any_to_lark(request["grammar"])
        if grammar is None:
            return None
        size = self.model.get_output_embeddings().weight.shape[0]
        known = llguidance.hf.from_tokenizer(self.tokenizer, n_vocab=size, eos_token=stop)
        matcher = LLMatcher(known, LLMatcher.grammar_from_lark(grammar))
        assert not matcher.get_error(), matcher.get_error()
        return matcher


@contextmanager
def serving(server: CompletionsServer, port: int = 0) -> Iterator[CompletionsServer]:
    """Serve in threads of this process until the end of the block."""

    connections: set[socket.socket] = set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            connections.add(self.connection)

        def finish(self) -> None:
            connections.discard(self.connection)
            super().finish()

        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self._send(Response(200, server.models()))
            elif self.path in server.about:
                self._send(Response(200, server.about[self.path]))
            else:
                self._send(Response(404, {"error": {"message": "nothing here"}}))

        def do_POST(self) -> None:
            server.keys.append(self.headers.get("Authorization"))
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found = server.answer(request) if self.path == "/v1/completions" else Response(404, {"error": "no"})
            if found == "hang":
                server.hanging += 1
                server.closing.wait(60)
                server.hanging -= 1
            if isinstance(found, str):
                self.close_connection = True
            else:
                self._send(found)

        def _send(self, found: Response) -> None:
            body = found.body if isinstance(found.body, bytes) else json.dumps(found.body).encode()
            self.send_response(found.status)
            for name, value in {**found.headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # the client has closed the connection
                super().handle()

    listener = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    listener.daemon_threads = True
    server.port = listener.server_address[1]
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        listener.shutdown()
        listener.server_close()
        for connection in list(connections):  # connections that are kept alive would still be answered after the end
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join()


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until `condition` holds; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
