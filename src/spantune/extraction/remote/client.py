"""The client of a completions server: which failures are retried, and which are errors of the document.

What the server refuses is an error of the document at once, and so is an answer beyond a limit of time, bytes, depth or
tokens: a body is read as it comes, and no further. What the server fails at is retried; after several failures it is an
error of the document, if the server answers otherwise. A server that cannot be reached or is busy is waited for,
and given up after a time without any answer. The key comes from the environment and is sent only to the given address;
redirects are not followed.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import httpx2 as httpx
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    wait_exponential,
    wait_random_exponential,
)

from spantune.core import ConfigError, ModelError, encodable


@dataclass(frozen=True)
class Patience:
    """How a server that fails is waited for, in seconds.

    The pause before a retry is between half of `first` and `first`, and doubles with each retry up to `longest`. After
    `seconds` without any answer the server is given up.
    """

    first: float = 0.5
    longest: float = 30.0
    seconds: float = 300.0

    def pause(self, state: RetryCallState) -> float:
        """Return the pause before the next attempt; random, so that threads do not retry at the same time."""
        half, most = self.first / 2, self.longest / 2
        pause = wait_exponential(half, max=most)(state) + wait_random_exponential(half, max=most)(state)
        error = state.outcome.exception() if state.outcome else None
        return max(pause, error.seconds if isinstance(error, _Busy) else 0.0)


CONCURRENCY = 16
"""Requests at a time to a server of which nothing is known."""


@dataclass(frozen=True, eq=False)
class Ticket:
    """The permission to send one request: how often the server had answered by then, and the cuts of the limit."""

    answers: int
    cuts: int


class Breaker:
    """A circuit breaker over all threads: while the server does not answer, one request at a time probes it.

    A failure counts if the server has answered nothing since its request was sent: a late failure of an older request
    says nothing of the server as it is now. After too long without an answer the server is given up for all threads.
    While a busy server answers others, fewer requests are sent at a time: half as many after a refusal, and one more
    for as many answers as are sent at a time (additive increase, multiplicative decrease, as TCP has it).

    Args:
        patience: how a server that fails is waited for.
        concurrency: the most requests at a time.
    """

    def __init__(self, patience: Patience, concurrency: int = CONCURRENCY):
        self._patience = patience
        self._most, self.limit = concurrency, float(concurrency)
        self._in_flight = self._cuts = 0
        self._changed = threading.Condition()
        self._answers = 0
        self._since: float | None = None  # of the first failure since the last answer
        self._probe: Ticket | None = None
        self._failed_probes, self._next_probe = 0, 0.0
        self._reason: str | None = None
        self.given_up = threading.Event()

    def enter(self) -> Ticket:
        """Wait until a request may be sent: at once while the server answers, otherwise as its only probe.

        Raises:
            ModelError: the server is given up.
        """
        with self._changed:
            while True:
                if self.given_up.is_set():
                    raise ModelError(f"the server is given up: {self._reason}; see to it, and go on with --resume")
                wait = self._next_probe - time.monotonic()
                if self._since is None and self._in_flight < int(self.limit):
                    break
                if self._since is not None and self._probe is None and wait <= 0:
                    break
                self._changed.wait(None if self._since is None or self._probe else wait)
            ticket = Ticket(self._answers, self._cuts)
            self._in_flight += 1
            if self._since is not None:
                self._probe = ticket
            return ticket

    def busy(self, ticket: Ticket, reason: str) -> None:
        """Record that the server refused a request for now; refusals of requests sent together halve the limit once."""
        with self._changed:
            if ticket.cuts == self._cuts:
                self._cuts += 1
                self.limit = max(1.0, min(self.limit, self._in_flight) / 2)
        self.failed(ticket, reason)

    def failed(self, ticket: Ticket, reason: str) -> None:
        """Record that a request had no answer."""
        now = time.monotonic()
        with self._changed:
            self._in_flight -= 1
            if ticket.answers != self._answers:
                self._changed.notify_all()
                return
            self._since = self._since or now
            duration = now - self._since
            if self._probe in (None, ticket):
                self._failed_probes += 1
                pause = min(self._patience.longest, self._patience.first * 2.0 ** min(self._failed_probes - 1, 30)) / 2
                self._next_probe = now + pause
                self._probe = None
            self._changed.notify_all()
        if duration > self._patience.seconds:
            self.give_up(f"no answer for {duration:.0f} seconds, lastly: {reason}")

    def answered(self) -> None:
        """Record that the server answers."""
        with self._changed:
            self._in_flight -= 1
            self.limit = min(self._most, self.limit + 1 / self.limit)
            self._answers += 1
            self._since = self._probe = None
            self._failed_probes, self._next_probe = 0, 0.0
            self._changed.notify_all()

    def give_up(self, reason: str) -> None:
        """Let no request through any more, and end every pause."""
        with self._changed:
            self._reason = self._reason or reason
            self.given_up.set()
            self._changed.notify_all()


KEY_VARIABLE = "SPANTUNE_API_KEY"
Grammar = Literal["auto", "vllm", "llamacpp", "none"]


@dataclass(frozen=True)
class Server:
    """A server that speaks OpenAI's protocol, and how it is asked.

    Args:
        url: its address, including /v1.
        model: its name for the model; None for a server with one model.
        grammar: how a grammar is sent: for vLLM, for llama.cpp, `auto` (by the kind of the server), or not at all.
        concurrency: maximum number of requests at a time; None for what suits the server (see `Served.concurrency`).
        timeout: seconds that a whole answer may take, from the request to its last byte.
        attempts: after so many failures a document is given up, if the server answers otherwise.
        patience: how a server that does not answer is waited for.

    Raises:
        ConfigError: the address is not one, or holds a password.
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
    """The server does not answer this request, and a retry would not change that."""


class Overrun(Refused):
    """An answer went beyond a limit of time, bytes, depth or tokens."""


@dataclass(frozen=True)
class Reply:
    """A response with its whole body, which is within the limit."""

    status: int
    reason: str
    retry_after: str | None
    body: bytes

    def json(self) -> object:
        """Parse the body.

        Raises:
            Overrun: it is nested too deep.
            ValueError: it is not JSON.
        """
        try:
            value: object = json.loads(self.body)
        except RecursionError:
            raise Overrun("the server's answer is nested too deep to be read") from None
        return value

    @property
    def message(self) -> str:
        """The message of an error response, in one line."""
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
    """Ends a request that is not over after some seconds, whatever it waits for, by shutting its connection down."""

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
        """Keep the connection of the request; every request has one of its own."""
        if event == "connection.connect_tcp.complete":
            self._socket = info["return_value"].get_extra_info("socket")

    def _end(self) -> None:
        self.is_over = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


MODELS_BYTES = 4 * 2**20
"""Most bytes of the list of models, and of what a server says of itself."""
SPARE_BYTES, TOKEN_BYTES, PROMPT_TOKEN_BYTES = 2**20, 2048, 32
"""Most bytes of an answer: some for all else, and so many for each token of the answer and of the prompt."""


class Client:
    """Sends requests to one server, from many threads."""

    def __init__(self, server: Server):
        self.server = server
        key = os.environ.get(KEY_VARIABLE)
        near = urlsplit(server.url).hostname in ("127.0.0.1", "localhost", "::1")
        concurrency = server.concurrency or CONCURRENCY
        self._breaker = Breaker(server.patience, concurrency)
        self._http = httpx.Client(
            base_url=server.url.rstrip("/") + "/",
            # a body that was compressed could be of any size
            headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=httpx.Timeout(server.timeout + 10.0, connect=10.0),
            limits=httpx.Limits(max_connections=concurrency + 1, max_keepalive_connections=0),
            trust_env=not near,  # the proxy of the environment is not for this machine
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
            ModelError: it cannot be reached, or does not speak the protocol.
        """
        try:
            reply = self._send("GET", "models", MODELS_BYTES)
            self._check(reply)
            body = reply.json()
            models = list(body["data"]) if isinstance(body, dict) else []
            if not isinstance(body, dict) or not all(isinstance(model["id"], str) for model in models):
                raise ValueError("a model without a name")
        except (httpx.HTTPError, Refused, _Busy) as error:
            raise ModelError(f"{self.server.url}: {error}; is the server up, and --url right?") from None
        except (ValueError, LookupError, TypeError, RecursionError):
            raise ModelError(
                f"{self.server.url}: /models names no models; expected a server of OpenAI's protocol"
            ) from None
        return models

    def about(self, path: str) -> Mapping[str, object]:
        """Return what the server says of itself at `path` beside /v1; nothing where that cannot be read."""
        root = self.server.url.rstrip("/").removesuffix("/v1")
        try:
            reply = self._send("GET", f"{root}/{path}", MODELS_BYTES)
            body = reply.json() if reply.status == 200 else None
        except (httpx.HTTPError, Refused, ValueError):
            return {}
        return body if isinstance(body, dict) else {}

    def complete(self, request: Mapping[str, object], read: Callable[[object], Answer]) -> Answer:
        """Send `request`, with retries, and return what `read` makes of the response.

        Args:
            request: the body.
            read: reads the JSON of a response; raises ValueError where it is not an answer.

        Raises:
            Refused: the server does not answer this request, or failed several times while it answers otherwise.
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
            except _Busy as busy:
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
            retry=retry_if_exception_type((_Busy, httpx.HTTPError, ValueError)),
            wait=self.server.patience.pause,
            sleep=sleep_using_event(self._breaker.given_up),
        )
        return retrying(ask)

    def _send(self, method: str, path: str, most: int, request: Mapping[str, object] | None = None) -> Reply:
        """Send a request and read the whole response, of `most` bytes and within `Server.timeout` seconds.

        Raises:
            httpx.HTTPError: there is no response.
            Overrun: the response goes beyond a limit.
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
        """Raise what the status of a response stands for.

        Raises:
            _Busy: the server is to be asked again later.
            httpx.HTTPError: the server failed.
            Refused: the server refuses this request.
            ModelError: the server refuses every request.
        """
        status = reply.status
        if status < 300:
            return
        if status in (429, 503):
            raise _Busy(f"{status} {reply.reason}", _seconds(reply.retry_after))
        message = f"{status} {reply.reason}: {reply.message}"
        if status in (401, 403):
            raise ModelError(f"{self.server.url}: {message}; set {KEY_VARIABLE} to a key that the server takes")
        if status in (404, 405) or 300 <= status < 400:
            raise ModelError(f"{self.server.url}: {message}; check --url (up to and with /v1) and --model")
        if status in (408, 409, 425) or status >= 500:
            raise httpx.HTTPError(message)
        raise Refused(f"the server refuses: {message}")

    def _drop_if_closed(self, response: httpx.Response) -> None:
        """Close the connection of a request that was connecting while the client closed; no pool holds it any more."""
        if self._http.is_closed:
            response.extensions["network_stream"].close()

    def _is_well(self) -> bool:
        """Whether the server answers."""
        try:
            return self._send("GET", "models", MODELS_BYTES).status < 300
        except (httpx.HTTPError, Refused):
            return False


class _Busy(Exception):
    """The server asks for a pause of some seconds."""

    def __init__(self, message: str, seconds: float):
        super().__init__(message)
        self.seconds = seconds


def _has_port(url: str) -> bool:
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def _seconds(retry_after: str | None) -> float:
    """Return the seconds of a Retry-After header; 0 without one, and for a date."""
    try:
        return min(max(float(retry_after or 0), 0.0), 120.0)
    except ValueError:
        return 0.0
