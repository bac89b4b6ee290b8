"""The client of a completions server: which failures are retried, and which are errors of the document.

If the server refuses a request, that is at once an error of the document. So is an answer beyond a limit of time,
bytes, nesting or tokens; a body is read only up to its limit. If the server fails at a request, the request is retried;
after several failures it is an error of the document, provided that the server answers other requests. If the server
cannot be reached or is busy, the client waits, and gives the server up after some time without any answer. The key
comes from the environment and is sent only to the given address; redirects are not followed.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import httpx2 as httpx
from tenacity import (
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
)

from spantune.core import ConfigError, ModelError, encodable
from spantune.extraction.remote.breaker import CONCURRENCY, Breaker, Busy, Patience

KEY_VARIABLE = "SPANTUNE_API_KEY"
Grammar = Literal["auto", "vllm", "llamacpp", "none"]


@dataclass(frozen=True)
class Server:
    """A server that speaks OpenAI's protocol, and how requests are sent to it.

    Args:
        url: the address, including /v1.
        model: the server's name for the model; None for a server with one model.
        grammar: how a grammar is sent: as vLLM takes it, as llama.cpp takes it, `auto` (by the kind of the server), or
            `none`.
        concurrency: the most requests at a time; None takes the number that suits the server (see
            `Served.concurrency`).
        timeout: the most seconds from a request to the last byte of its answer.
        attempts: the number of failures after which a document is given up, if the server answers other requests.
        patience: how long to wait for a server that does not answer.

    Raises:
        ConfigError: `url` is not an address, or holds a key or password.
    """

    url: str
    model: str | None = None
    grammar: Grammar = "auto"
    concurrency: int | None = None
    timeout: float = 180.0
    attempts: int = 4
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.username or parts.password:
            raise ConfigError(f"--url: no key or password belongs into an address; set {KEY_VARIABLE} instead")
        if parts.scheme not in ("http", "https") or not parts.hostname or not _has_port(self.url):
            raise ConfigError(f"--url {self.url}: expected an address such as http://127.0.0.1:8000/v1")


Answer = TypeVar("Answer")


class Refused(Exception):
    """The server refuses this request, and a retry would not change that."""


class Overrun(Refused):
    """An answer exceeds a limit of time, bytes, nesting or tokens."""


@dataclass(frozen=True)
class Reply:
    """A response with its whole body; `retry_after` is the header Retry-After."""

    status: int
    reason: str
    retry_after: str | None
    body: bytes

    def json(self) -> object:
        """Parse the body as JSON.

        Raises:
            Overrun: the body is nested too deeply.
            ValueError: the body is not JSON.
        """
        try:
            value: object = json.loads(self.body)
        except RecursionError:
            raise Overrun("the server's answer is nested too deep to be read") from None
        return value

    @property
    def message(self) -> str:
        """The message of an error response, in one line of at most 300 characters."""
        text = self.body.decode(errors="replace")
        try:
            body = self.json()
        except (ValueError, Refused):
            body = None
        if isinstance(body, dict):
            error = body.get("error", body)
            text = str(error.get("message", text) if isinstance(error, dict) else error)
        return encodable(" ".join(text.split())[:300])


class _Deadline:
    """Ends a request after some seconds, whatever it waits for, by shutting its connection down."""

    def __init__(self, seconds: float):
        self.seconds, self.is_over = seconds, False
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Store the socket of the request; each request has a connection of its own."""
        if event == "connection.connect_tcp.complete":
            self._socket = info["return_value"].get_extra_info("socket")

    def _end(self) -> None:
        self.is_over = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


MODELS_BYTES = 4 * 2**20
"""The most bytes of the list of models, and of the server's description of itself."""
SPARE_BYTES, TOKEN_BYTES, PROMPT_TOKEN_BYTES = 2**20, 2048, 32
"""The most bytes of an answer: a fixed number, and a number for each token of the answer and of the prompt."""


class Client:
    """Sends requests to one server; may be used from many threads."""

    def __init__(self, server: Server):
        self.server = server
        key = os.environ.get(KEY_VARIABLE)
        near = urlsplit(server.url).hostname in ("127.0.0.1", "localhost", "::1")
        concurrency = server.concurrency or CONCURRENCY
        self._breaker = Breaker(server.patience, concurrency)
        self._http = httpx.Client(
            base_url=server.url.rstrip("/") + "/",
            # A compressed body could expand to any size.
            headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=httpx.Timeout(server.timeout + 10.0, connect=10.0),
            limits=httpx.Limits(max_connections=concurrency + 1, max_keepalive_connections=0),
            trust_env=not near,  # a proxy of the environment is not used for this machine
            event_hooks={"response": [self._drop_if_closed]},
        )

    def close(self) -> None:
        """Close the connections; requests that wait for a retry end with an error."""
        self._breaker.give_up("the client was closed")
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def models(self) -> list[Mapping[str, object]]:
        """Return the server's descriptions of its models.

        Raises:
            ModelError: the server cannot be reached, or does not speak the protocol.
        """
        try:
            reply = self._send("GET", "models", MODELS_BYTES)
            self._check(reply)
            body = reply.json()
            models = list(body["data"]) if isinstance(body, dict) else []
            if not isinstance(body, dict) or not all(isinstance(model["id"], str) for model in models):
                raise ValueError("a model without a name")
        except (httpx.HTTPError, Refused, Busy) as error:
            raise ModelError(f"{self.server.url}: {error}; is the server up, and --url right?") from None
        except (ValueError, LookupError, TypeError, RecursionError):
            raise ModelError(
                f"{self.server.url}: /models names no models; expected a server of OpenAI's protocol"
            ) from None
        return models

    def about(self, path: str) -> Mapping[str, object]:
        """Return the server's description of itself at `path`, beside /v1; empty if it cannot be read."""
        root = self.server.url.rstrip("/").removesuffix("/v1")
        try:
            reply = self._send("GET", f"{root}/{path}", MODELS_BYTES)
            body = reply.json() if reply.status == 200 else None
        except (httpx.HTTPError, Refused, ValueError):
            return {}
        return body if isinstance(body, dict) else {}

    def complete(self, request: Mapping[str, object], read: Callable[[object], Answer]) -> Answer:
        """Send `request`, with retries, and return the answer that `read` reads from the response.

        Args:
            request: the body.
            read: reads the JSON of a response, and raises ValueError if it is not an answer.

        Raises:
            Refused: the server refuses this request, or has failed at it several times while it answers other requests.
            ModelError: the server is given up, expects another key, or does not have the model.
        """
        failures = 0
        tokens, prompt = request.get("max_tokens"), request.get("prompt")
        most = SPARE_BYTES + TOKEN_BYTES * (tokens if isinstance(tokens, int) else 0)
        most += PROMPT_TOKEN_BYTES * (len(prompt) if isinstance(prompt, list) else 0)

        def ask() -> Answer:
            nonlocal failures
            ticket = self._breaker.enter()
            try:
                reply = self._send("POST", "completions", most, request)
                self._check(reply)
                answer = read(reply.json())
            except Busy as busy:
                self._breaker.busy(ticket, str(busy))
                raise
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                self._breaker.failed(ticket, f"it cannot be reached ({error})")
                raise
            except (httpx.HTTPError, ValueError) as error:
                failures += 1
                reason = str(error) or type(error).__name__
                self._breaker.failed(ticket, reason)
                if failures >= self.server.attempts and self._is_well():
                    raise Refused(f"the server failed {failures} times, lastly: {reason}") from None
                raise
            except (Refused, ModelError):
                self._breaker.answered()
                raise
            except BaseException:
                self._breaker.failed(ticket, "it was interrupted")
                raise
            self._breaker.answered()
            return answer

        retrying = Retrying(
            retry=retry_if_exception_type((Busy, httpx.HTTPError, ValueError)),
            wait=self.server.patience.pause,
            sleep=sleep_using_event(self._breaker.given_up),
        )
        return retrying(ask)

    def _send(self, method: str, path: str, most: int, request: Mapping[str, object] | None = None) -> Reply:
        """Send a request and read the whole response, at most `most` bytes and within `Server.timeout` seconds.

        Raises:
            httpx.HTTPError: there is no response.
            Overrun: the response exceeds a limit.
        """
        seconds, has_begun = self.server.timeout, False
        with _Deadline(seconds) as deadline:
            try:
                with self._http.stream(method, path, json=request, extensions={"trace": deadline.trace}) as response:
                    has_begun, body = True, bytearray()
                    if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
                        raise Overrun(f"the server's answer is compressed ({encoding}), which was not asked for")
                    for part in response.iter_bytes():
                        body += part
                        if len(body) > most:
                            raise Overrun(f"the server's answer has more than {most} bytes, which no answer needs")
                        if deadline.is_over:
                            raise httpx.ReadTimeout("")
                    if deadline.is_over:
                        raise httpx.ReadTimeout("")
                    retry_after = response.headers.get("Retry-After")
                    return Reply(response.status_code, response.reason_phrase, retry_after, bytes(body))
            except httpx.HTTPError:
                if not deadline.is_over:
                    raise
                if has_begun:
                    late = f"the server's answer was not complete after {seconds:g} seconds"
                    raise Overrun(f"{late}; if it is slow, raise --timeout") from None
                raise httpx.ReadTimeout(f"no answer within {seconds:g} seconds") from None

    def _check(self, reply: Reply) -> None:
        """Raise the error that the status of a response stands for, if any.

        Raises:
            Busy: the request is to be sent again later.
            httpx.HTTPError: the server failed.
            Refused: the server refuses this request.
            ModelError: the server refuses every request.
        """
        status = reply.status
        if status < 300:
            return
        if status in (429, 503):
            raise Busy(f"{status} {reply.reason}", _seconds(reply.retry_after))
        message = f"{status} {reply.reason}: {reply.message}"
        if status in (401, 403):
            raise ModelError(f"{self.server.url}: {message}; set {KEY_VARIABLE} to a key that the server takes")
        if status in (404, 405) or 300 <= status < 400:
            raise ModelError(f"{self.server.url}: {message}; check --url (up to and with /v1) and --model")
        if status in (408, 409, 425) or status >= 500:
            raise httpx.HTTPError(message)
        raise Refused(f"the server refuses: {message}")

    def _drop_if_closed(self, response: httpx.Response) -> None:
        """Close the connection of a request that was connecting while the client closed, since no pool closes it."""
        if self._http.is_closed:
            response.extensions["network_stream"].close()

    def _is_well(self) -> bool:
        """Whether the server answers other requests."""
        try:
            return self._send("GET", "models", MODELS_BYTES).status < 300
        except (httpx.HTTPError, Refused):
            return False


def _has_port(url: str) -> bool:
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def _seconds(retry_after: str | None) -> float:
    """Return the seconds of a Retry-After header, at most 120; 0 if there is no header or it is a date."""
    try:
        return min(max(float(retry_after or 0), 0.0), 120.0)
    except ValueError:
        return 0.0
