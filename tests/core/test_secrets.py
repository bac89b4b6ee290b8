"""Credentials are masked in every form in which libraries and users write them; other text is unchanged."""

from __future__ import annotations

import pytest

from spantune.core import ConfigError, DataError, masked, masked_values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://alice:secret@127.0.0.1:5999/x?token=abc&b=1#f", "http://***@127.0.0.1:5999/x?token=***&b=1#f"),
        ("https://onlytoken@host/path", "https://***@host/path"),
        ("postgresql+psycopg2://bob:p/w%40@db/runs", "postgresql+psycopg2://***@db/runs"),
        ("http://a:b@c@host/", "http://***@host/"),
        ("u http://h/?api_key=1&API-KEY=2;apikey=3 v", "u http://h/?api_key=***&API-KEY=***;apikey=*** v"),
        ("https://b/f?X-Amz-Credential=A%2F1&X-Amz-Signature=2&n=1", "https://b/f?X-Amz-Credential=***&X-Amz-Signature=***&n=1"),
        ("https://b/f?sig=a%2Fb&access_token=q&signature=z", "https://b/f?sig=***&access_token=***&signature=***"),
        ("?accessToken=a1&clientsecret=b2&api%5Fkey=c3", "?accessToken=***&clientsecret=***&api%5Fkey=***"),
        ("?a=1%26token%3Dx1&pass=y;jsessionid=z", "?a=1%26token%3D***&pass=***;jsessionid=***"),
        ("//alice:pw@host/x and ?token=a'b", "//***@host/x and ?token=***"),
        ("Authorization: Bearer abcdefgh", "Authorization: Bearer ***"),
        ("{'Authorization': 'Basic YWxpY2U6c2VjcmV0'}", "{'Authorization': 'Basic ***'}"),
        ("x-api-key: abc123", "x-api-key: ***"),
        ("Incorrect API key provided: sk-abcdefghijklmnop123", "Incorrect API key provided: ***"),
        ("token hf_abcdefghijklmnopqrstuvwxyz", "token ***"),
    ],
)  # fmt: skip
def test_credentials_are_masked_once(text: str, expected: str) -> None:
    assert masked(text) == expected
    assert masked(expected) == expected


def test_the_address_of_a_webhook_is_a_secret_with_its_host_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANTUNE_LARK_WEBHOOK", "https://open.example/hook/3f2a")
    assert masked("POST https://open.example/hook/3f2a failed") == "POST *** failed"
    assert masked("no answer with url: /hook/3f2a (host open.example)") == "no answer with url: *** (host open.example)"


@pytest.mark.parametrize(
    "text",
    ["https://host:8000/v1/@x", "stop token: <|end|>", "a basic example of the bearer", "a@b.example", "3:4@5",
     "?keyboard=1", "a // b"],
)  # fmt: skip
def test_ordinary_text_is_unchanged(text: str) -> None:
    assert masked(text) == text


def test_values_of_the_environment_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "zebra-giraffe")
    monkeypatch.setenv("SOME_URI", "http://bob:pass%2Fword@host/")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "falsehood")
    monkeypatch.setenv("HF_TOKEN_PATH", "/somewhere")
    text = "zebra-giraffe pass%2Fword pass/word falsehood /somewhere"
    assert masked(text) == "*** *** *** falsehood /somewhere"
    assert masked_values({"a": ["zebra-giraffe", 1, None, {"b": "x"}]}) == {"a": ["***", 1, None, {"b": "x"}]}


def test_errors_hold_no_credential() -> None:
    assert str(ConfigError("http://u:p@h refused")) == "http://***@h refused"
    error = DataError("no http://u:p@h", path="x.jsonl", line=2)
    assert str(error) == "x.jsonl:2: no http://***@h" and error.message == "no http://***@h"


@pytest.mark.parametrize("part", ["%26", "?a", "//a", "&x_", "token;", "%3f%"])
def test_a_long_text_without_credentials_is_searched_once(part: str) -> None:
    text = part * 30_000  # an algorithm with quadratic time would take minutes
    assert masked(text) == text
