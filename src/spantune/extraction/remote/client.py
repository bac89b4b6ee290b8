"""Asking a completions server, and telling its failures from the documents'.

A lost document is worse than a wait: what the server refuses is the document's fault at once, what it fails at is the
document's after several tries, if the server is otherwise well, and a server that is away or busy is waited for (see
`breaker`). Keys come from the environment and are sent nowhere but to the address given; redirects are not followed.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import httpx2 as httpx

from spantune.core import ConfigError, ModelError, encodable


@dataclass(frozen=True)
class Patience:
    """How a server that fails is waited for, in seconds.

    The first pause is `first` at most, later ones up to twice as long each time and `longest` at most; after `seconds`
    without any answer the server is given up.
    """

    first: float = 0.5
    longest: float = 30.0
    seconds: float = 300.0

    def pause(self, times: int) -> float:
        """The pause after so many earlier ones: at random, so that threads do not come back all at once."""
        return random.uniform(0.5, 1.0) * min(self.longest, self.first * 2.0 ** min(times, 30))


class Breaker:
    """Lets requests through while the server is well, one at a time while it is not, and none once it is given up."""

    THRESHOLD = 5
    """Failures in a row after which the server is taken to be down."""

    def __init__(self, patience: Patience):
        self._patience = patience
        self._changed = threading.Condition()
        self._failures = 0
        self._rounds = 0
        self._opened_until = 0.0
        self._probing = False
        self._failing_since: float | None = None
        self._lost: str | None = None

    def enter(self) -> None:
        """Wait for leave to ask.

        Raises:
            ModelError: the server is given up.
        """
        with self._changed:
            while True:
                self._check()
                left = self._opened_until - time.monotonic()
                if self._failures < self.THRESHOLD:
                    return
                if left <= 0 and not self._probing:
                    self._probing = True
                    return
                self._changed.wait(max(left, 0.05))

    def leave(self, failure: str | None = None) -> None:
        """Say that a request came to nothing; to a `failure` of the server where it was one.

        Raises:
            ModelError: there was no answer for so long that the server is given up.
        """
        with self._changed:
            self._probing = False
            if failure is not None:
                self._failures += 1
                now = time.monotonic()
                # once, and not for each of those that were under way
                if self._failures >= self.THRESHOLD and now >= self._opened_until:
                    self._opened_until = now + self._patience.pause(self._rounds)
                    self._rounds += 1
                self._give_up_after(failure)
            self._changed.notify_all()
            self._check()

    def answered(self) -> None:
        """Say that the server is well."""
        with self._changed:
            self._failures, self._rounds = 0, 0
            self._probing, self._failing_since = False, None
            self._changed.notify_all()

    def pause(self, times: int, why: str, least: float = 0.0) -> None:
        """Sleep before the next try after a request has failed so many `times`, `least` seconds at least.

        Raises:
            ModelError: there was no answer for so long that the server is given up.
        """
        until = time.monotonic() + max(self._patience.pause(times - 1), least)
        with self._changed:
            self._give_up_after(why)
            while (left := until - time.monotonic()) > 0:
                self._check()
                self._changed.wait(left)
            self._check()

    def give_up(self, why: str) -> None:
        """Let nobody in any more."""
        with self._changed:
            self._lost = self._lost or why
            self._changed.notify_all()

    def _give_up_after(self, why: str) -> None:
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        if now - self._failing_since > self._patience.seconds:
            self._lost = self._lost or f"no answer for {now - self._failing_since:.0f} seconds, lastly: {why}"
            self._changed.notify_all()

    def _check(self) -> None:
        if self._lost is not None:
            raise ModelError(f"the server is given up: {self._lost}; see to it, and go on with --resume")


KEY_VARIABLE = "SPANTUNE_API_KEY"
Grammar = Literal["auto", "vllm", "llamacpp", "none"]


@dataclass(frozen=True)
class Server:
    """A server that speaks OpenAI's protocol, and how it is asked.

    Args:
        url: its address, up to and with /v1.
        model: its name for the model; its only one when absent.
        grammar: how a grammar is sent: as vLLM or as llama.cpp takes it, as the server says it is, or not at all.
        concurrency: most requests at a time.
        timeout: seconds that an answer may take.
        attempts: tries before a document is given up that the server fails at.
        patience: how long a server is waited for that is away.
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
    """The server will not answer this request, whenever it is asked."""


class Client:
    """Asks one server, from many threads."""

    def __init__(self, server: Server):
        self.server = server
        key = os.environ.get(KEY_VARIABLE)
        near = urlsplit(server.url).hostname in ("127.0.0.1", "localhost", "::1")
        self._breaker = Breaker(server.patience)
        self._http = httpx.Client(
            base_url=server.url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(server.timeout, connect=10.0),
            limits=httpx.Limits(max_connections=server.concurrency),
            trust_env=not near,  # a proxy of the environment is for other machines
            event_hooks={"response": [self._drop_if_closed]},
        )

    def close(self) -> None:
        """Give up the connections, and let no request that is waiting go on."""
        self._breaker.give_up("the client was closed")
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def models(self) -> list[dict[str, Any]]:
        """What the server says of its models.

        Raises:
            ModelError: it cannot be reached, or does not speak the protocol.
        """
        try:
            response = self._http.get("models")
            self._check(response)
            models = list(_json(response)["data"])
            if not all(isinstance(one["id"], str) for one in models):
                raise ValueError("a model without a name")
        except (httpx.HTTPError, Refused, _Busy) as error:
            raise ModelError(f"{self.server.url}: {error}; is the server up, and --url right?") from None
        except (ValueError, LookupError, TypeError):
            raise ModelError(
                f"{self.server.url}: /models names no models; expected a server of OpenAI's protocol"
            ) from None
        return models

    def complete(self, request: dict[str, Any], read: Callable[[Any], Answer]) -> Answer:
        """What `read` makes of the answer to `request`; it raises ValueError for an answer that is none.

        Raises:
            Refused: the server will not answer it, or fails at it again and again while it is well otherwise.
            ModelError: the server is down, wants another key, or has no such model.
        """
        failures = waits = 0
        while True:
            self._breaker.enter()
            try:
                response = self._http.post("completions", json=request)
                self._check(response)
                answer = read(_json(response))
            except _Busy as busy:
                waits += 1
                self._breaker.leave()
                self._breaker.pause(waits, str(busy), busy.seconds)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                self._breaker.leave(f"it cannot be reached ({error})")
            except (httpx.HTTPError, ValueError) as error:
                found = str(error) or type(error).__name__
                failures += 1
                self._breaker.leave(found)
                if failures >= self.server.attempts and self._is_well():
                    raise Refused(f"the server failed {failures} times, lastly: {found}") from None
                self._breaker.pause(failures, found)
            except (Refused, ModelError):
                self._breaker.answered()
                raise
            else:
                self._breaker.answered()
                return answer

    def _check(self, response: httpx.Response) -> None:
        """Tell failures from refusals."""
        status = response.status_code
        if status < 300:
            return
        if status in (429, 503):
            raise _Busy(f"{status} {response.reason_phrase}", _seconds(response.headers.get("Retry-After")))
        said = f"{status} {response.reason_phrase}: {_message(response)}"
        if status in (401, 403):
            raise ModelError(f"{self.server.url}: {said}; set {KEY_VARIABLE} to a key that the server takes")
        if status in (404, 405) or 300 <= status < 400:
            raise ModelError(f"{self.server.url}: {said}; check --url (up to and with /v1) and --model")
        if status in (408, 409, 425) or status >= 500:
            raise httpx.HTTPError(said)
        raise Refused(f"the server refuses: {said}")

    def _drop_if_closed(self, response: httpx.Response) -> None:
        """Close the connection of a request that was still connecting when the client closed: no pool knows it now."""
        if self._http.is_closed:
            response.extensions["network_stream"].close()

    def _is_well(self) -> bool:
        """Whether the server answers at all."""
        try:
            return bool(self._http.get("models", timeout=10.0).status_code < 300)
        except httpx.HTTPError:
            return False


class _Busy(Exception):
    """The server asks to be left alone for some seconds."""

    def __init__(self, what: str, seconds: float):
        super().__init__(what)
        self.seconds = seconds


def _has_port(url: str) -> bool:
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def _seconds(retry_after: str | None) -> float:
    """The seconds of a Retry-After header; 0 where it gives none, or a date."""
    try:
        return min(max(float(retry_after or 0), 0.0), 120.0)
    except ValueError:
        return 0.0


def _json(response: httpx.Response) -> Any:
    """What a response holds.

    Raises:
        ValueError: it is no JSON, or of ten thousand brackets.
    """
    try:
        return response.json()
    except RecursionError:
        raise ValueError("an answer that is nested too deep") from None


def _message(response: httpx.Response) -> str:
    """What an error response says, in one line."""
    try:
        found = _json(response)
        error = found.get("error", found)
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, AttributeError):
        text = response.text
    return encodable(" ".join(text.split())[:300])
