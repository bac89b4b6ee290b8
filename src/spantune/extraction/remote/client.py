"""The client of a completions server: which failures are retried, and which are errors of the document.

What the server refuses is an error of the document at once. What it fails at is retried; after several failures it is
an error of the document, if the server answers otherwise. A server that cannot be reached or is busy is waited for,
and given up after a time without any answer. The key comes from the environment and is sent only to the given address;
redirects are not followed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar
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


class Outage:
    """Since when the server has not answered, over all threads of a client; after too long it is given up for all."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._lock = threading.Lock()
        self._since: float | None = None
        self._reason: str | None = None
        self.given_up = threading.Event()

    def failed(self, reason: str) -> None:
        """Record that a request had no answer."""
        now = time.monotonic()
        with self._lock:
            self._since = self._since or now
            duration = now - self._since
        if duration > self._seconds:
            self.give_up(f"no answer for {duration:.0f} seconds, lastly: {reason}")

    def answered(self) -> None:
        """Record that the server answers."""
        with self._lock:
            self._since = None

    def give_up(self, reason: str) -> None:
        """Let no request through any more, and end every pause."""
        with self._lock:
            self._reason = self._reason or reason
        self.given_up.set()

    def check(self) -> None:
        """Check that requests may be sent.

        Raises:
            ModelError: the server is given up.
        """
        if self.given_up.is_set():
            raise ModelError(f"the server is given up: {self._reason}; see to it, and go on with --resume")


KEY_VARIABLE = "SPANTUNE_API_KEY"
Grammar = Literal["auto", "vllm", "llamacpp", "none"]


@dataclass(frozen=True)
class Server:
    """A server that speaks OpenAI's protocol, and how it is asked.

    Args:
        url: its address, including /v1.
        model: its name for the model; None for a server with one model.
        grammar: how a grammar is sent: for vLLM, for llama.cpp, `auto` (by the kind of the server), or not at all.
        concurrency: maximum number of requests at a time.
        timeout: seconds that an answer may take.
        attempts: after so many failures a document is given up, if the server answers otherwise.
        patience: how a server that does not answer is waited for.

    Raises:
        ConfigError: the address is not one, or holds a password.
    """

    url: str
    model: str | None = None
    grammar: Grammar = "auto"
    concurrency: int = 16
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


class Client:
    """Sends requests to one server, from many threads."""

    def __init__(self, server: Server):
        self.server = server
        key = os.environ.get(KEY_VARIABLE)
        near = urlsplit(server.url).hostname in ("127.0.0.1", "localhost", "::1")
        self._outage = Outage(server.patience.seconds)
        self._http = httpx.Client(
            base_url=server.url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(server.timeout, connect=10.0),
            limits=httpx.Limits(max_connections=server.concurrency),
            trust_env=not near,  # the proxy of the environment is not for this machine
            event_hooks={"response": [self._drop_if_closed]},
        )

    def close(self) -> None:
        """Close the connections; requests that wait for a retry end with an error."""
        self._outage.give_up("the client was closed")
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
            response = self._http.get("models")
            self._check(response)
            models = list(response.json()["data"])
            if not all(isinstance(model["id"], str) for model in models):
                raise ValueError("a model without a name")
        except (httpx.HTTPError, Refused, _Busy) as error:
            raise ModelError(f"{self.server.url}: {error}; is the server up, and --url right?") from None
        except (ValueError, LookupError, TypeError, RecursionError):
            raise ModelError(
                f"{self.server.url}: /models names no models; expected a server of OpenAI's protocol"
            ) from None
        return models

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

        def ask() -> Answer:
            nonlocal failures
            self._outage.check()
            try:
                response = self._http.post("completions", json=request)
                self._check(response)
                answer = read(_json(response))
            except _Busy as busy:
                self._outage.failed(str(busy))
                raise
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                self._outage.failed(f"it cannot be reached ({error})")
                raise
            except (httpx.HTTPError, ValueError) as error:
                failures += 1
                reason = str(error) or type(error).__name__
                self._outage.failed(reason)
                if failures >= self.server.attempts and self._is_well():
                    raise Refused(f"the server failed {failures} times, lastly: {reason}") from None
                raise
            except (Refused, ModelError):
                self._outage.answered()
                raise
            self._outage.answered()
            return answer

        retrying = Retrying(
            retry=retry_if_exception_type((_Busy, httpx.HTTPError, ValueError)),
            wait=self.server.patience.pause,
            sleep=sleep_using_event(self._outage.given_up),
        )
        return retrying(ask)

    def _check(self, response: httpx.Response) -> None:
        """Raise what the status of a response stands for.

        Raises:
            _Busy: the server is to be asked again later.
            httpx.HTTPError: the server failed.
            Refused: the server refuses this request.
            ModelError: the server refuses every request.
        """
        status = response.status_code
        if status < 300:
            return
        if status in (429, 503):
            raise _Busy(f"{status} {response.reason_phrase}", _seconds(response.headers.get("Retry-After")))
        message = f"{status} {response.reason_phrase}: {_message(response)}"
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
            return bool(self._http.get("models", timeout=10.0).status_code < 300)
        except httpx.HTTPError:
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


def _json(response: httpx.Response) -> object:
    """Parse the body of a response.

    Raises:
        ValueError: it is not JSON, or is nested too deep.
    """
    try:
        body: object = response.json()
    except RecursionError:
        raise ValueError("an answer that is nested too deep") from None
    return body


def _message(response: httpx.Response) -> str:
    """Return the message of an error response, in one line."""
    text = response.text
    try:
        body = _json(response)
    except ValueError:
        body = None
    if isinstance(body, dict):
        error = body.get("error", body)
        text = str(error.get("message", text) if isinstance(error, dict) else error)
    return encodable(" ".join(text.split())[:300])
