"""Masking of credentials: they are replaced by `***` in every text that is printed, logged or written to a file.

These are credentials: the user and password of a URL, a parameter of a URL such as `token=`, an authorisation header, a
key of a well-known form such as `hf_…`, and the value of an environment variable whose name says that it is a secret,
such as `API_KEY`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from urllib.parse import unquote

MASK = "***"
_SHORTEST = 6
"""The minimum number of characters of a secret from the environment. Shorter ones would match texts by chance."""

_END = r"\s\"'<>`"
_USER = re.compile(
    rf"((?:[a-z][a-z0-9+.-]*:)?//)(?:[^{_END}/?#]*@|[^{_END}/?#@:]*:(?!\d+/)[^{_END}@]*@)", re.IGNORECASE
)
_LETTERS = "(?:[a-z0-9_.-]|%(?!26|3f))*"  # not the characters before a name, so that the search takes linear time
_NAMES = (
    f"{_LETTERS}(?:token|secret|password|passwd|pwd|signature|authorization|credential|apikey|accesskey|secretkey)"
    f"{_LETTERS}|(?:{_LETTERS}(?:[_.-]|%5f|%2d))?(?:key|sig|sign|auth|pass|jwt|bearer|sas|code|jsessionid|sessionid)"
    "|x-amz-[a-z-]+|x-goog-[a-z-]+"
)
_PARAMETER = re.compile(rf"((?:[?&;]|%26|%3f)(?:{_NAMES})(?:\[\])?(?:=|%3d))[^&;#\s<>`]+", re.IGNORECASE)
_HEADER = re.compile(
    r"((?<![a-z])(?:authorization[\"']?\s*[:=]\s*[\"']?(?:(?:basic|bearer|token|digest)\s+)?|(?:"
    r"x-api-key|api[-_]?key|access[-_]token|auth[-_]token|client[-_]secret|secret[-_]key|password|passwd)"
    rf"[\"']?\s*[:=]\s*[\"']?))[^{_END},;&)]{{3,}}",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"(\b(?:bearer|basic)\s+)(?=\S*[0-9])[a-z0-9+/=._~-]{16,}", re.IGNORECASE)
_KNOWN_FORM = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_[A-Za-z0-9_]{20,}|AKIA[A-Z0-9]{16}|ms-[0-9a-f]{8}-[0-9a-f-]{27})"
)
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:API_?KEY|KEY|TOKEN|AUTH_?TOKEN|SECRET|PASSWORD|PASSWD|PASS|PAT|PASSPHRASE|CREDENTIALS?|WEBHOOK)(?:_ID)?$",
    re.I,
)
_PASSWORD = re.compile(rf"://[^{_END}/?#:@]*:(?!\d+/)([^{_END}@]+)@")
_PATTERNS = ((_USER, rf"\1{MASK}@"), (_PARAMETER, rf"\1{MASK}"))
_MORE_PATTERNS = ((_HEADER, rf"\1{MASK}"), (_SCHEME, rf"\1{MASK}"), (_KNOWN_FORM, MASK))


def masked(text: str) -> str:
    """Return `text` with `***` for every credential in it."""
    for pattern, replacement in (*_PATTERNS, *_MORE_PATTERNS):
        text = pattern.sub(replacement, text)
    for value in sorted(set(_environment_secrets()), key=len, reverse=True):
        if value in text:
            text = text.replace(value, MASK)
    return text


def masked_values(value: object) -> object:
    """Return a JSON-like value with every text in it masked, except the keys of objects. Tuples become lists."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {key: masked_values(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [masked_values(part) for part in value]
    return value


def holds_credential(text: str) -> bool:
    """Return whether `text` has a URL with a user, a password or a secret parameter."""
    return any(pattern.sub(replacement, text) != text for pattern, replacement in _PATTERNS)


def _environment_secrets() -> Iterator[str]:
    """Yield the secrets of the environment variables, including passwords in URLs, as they are and percent-decoded."""
    for name, value in os.environ.items():
        secrets = [value] if _SECRET_NAME.search(name) and not os.path.exists(value) else []
        if "://" in value:
            secrets += _PASSWORD.findall(value)
            # if a URL is a secret, libraries may print its path without the host
            secrets += [f"/{secret.partition('://')[2].partition('/')[2]}" for secret in secrets if "://" in secret]
        for secret in secrets:
            for form in (secret.strip(), unquote(secret.strip())):
                if len(form) >= _SHORTEST:
                    yield form
