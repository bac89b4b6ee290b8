"""The settings of the service: where it listens, who may send requests, and how much it accepts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from spantune.core import ConfigError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""The hosts that only this machine can reach."""
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]+|\*|null")
_HOST = re.compile(r"[^/?#\s@*]+")


@dataclass(frozen=True)
class ServeSettings:
    """The settings of the service; each is an option of `spantune serve`, which explains it.

    Args:
        host: the address to listen on.
        port: the port to listen on; 0 for a free one.
        token: what clients must send as a bearer token or as the password of HTTP Basic; None if no token is needed.
        corrections: the folder in which corrections are saved; None if none are saved.
        device: `auto`, `cpu` or `cuda`.
        max_queue: the most documents that are accepted and not finished, over all requests.
        max_documents: the most documents of a request.
        max_body: the most bytes of a request's body.
        timeout: the most seconds of a request; its body must arrive within this time and within 30 seconds.
        allow_origins: the origins, such as `https://example.org`, whose pages may send requests from a browser.
        allow_hosts: further host names by which clients may call the service, for example behind a reverse proxy.
        min_score: the lowest score of an entity, from 0 to 1, which replaces the run's thresholds.

    Raises:
        ConfigError: a limit is not positive, an origin or host is invalid, the token is empty, or there is no token
            although other machines can reach the host.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    corrections: Path | None = None
    device: str = "auto"
    max_queue: int = 256
    max_documents: int = 64
    max_body: int = 1 << 20
    timeout: float = 60
    allow_origins: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    min_score: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_queue", "max_documents", "max_body", "timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: expected a number over 0, found {getattr(self, name)}")
        if self.max_documents > self.max_queue:
            raise ConfigError(
                f"max_documents={self.max_documents} is over max_queue={self.max_queue}, so that a request that is "
                "allowed would never be accepted; raise max_queue, or lower max_documents"
            )
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise ConfigError(
                "the token is empty or has characters that a header cannot carry; give letters and digits"
            )
        for origin in self.allow_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"allow_origins: {origin!r} is not what browsers send as an origin; expected scheme, host and port "
                    "in lower case, without a path, such as https://example.org"
                )
        for host in self.allow_hosts:
            if not _HOST.fullmatch(host):
                raise ConfigError(f"allow_hosts: {host!r} is no host name; expected one such as ner.example.org")
        if self.token is None and not self.is_loopback:
            raise ConfigError(
                f"host {self.host} can be reached from other machines, so that a token is needed; set SPANTUNE_TOKEN, "
                "for example to the output of: openssl rand -hex 24"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the host."""
        return self.host.strip("[]") in LOOPBACK or self.host.startswith("127.")
