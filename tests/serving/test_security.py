"""Access to the service: tokens, host names, origins, and the headers that browsers get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from helpers.served import Served
from spantune.core import ConfigError
from spantune.serving import ServeSettings

TOKEN = "a-token-of-some-length"


def test_another_host_name_is_refused(served: Served) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::2]", ""):
        response = served.client.get("/v1/task", headers={"Host": host})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "unknown_host"), host
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"):
        assert served.client.get("/v1/task", headers={"Host": host}).status_code == 200, host


def test_browsers_are_told_to_load_nothing_from_elsewhere(served: Served) -> None:
    for path in ("/health", "/absent", "/v1/task"):
        headers = served.client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers and "access-control-allow-origin" not in headers


def test_a_form_of_another_site_is_refused(served: Served) -> None:
    response = served.client.post("/v1/extract", content=b'{"text": "x"}', headers={"Content-Type": "text/plain"})
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_a_token_is_a_bearer_or_a_password(serve_with: Callable[..., Any]) -> None:
    with serve_with(token=TOKEN, allow_origins=("https://app.example",)) as served:
        client = served.client
        for headers in (
            {},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": "Basic !"},
            {"Authorization": "Bearer é".encode("latin-1")},
        ):
            refused = client.get("/v1/task", headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unauthorized")
            assert refused.headers.get_list("www-authenticate") == ['Basic realm="spantune", charset="UTF-8"', "Bearer"]
        assert client.get("/v1/task", auth=("", "wrong")).status_code == 401
        assert client.get("/openapi.json").status_code == client.get("/static").status_code == 401
        assert client.get("/").status_code == client.get("/static/main.js").status_code == 200  # the page asks for it
        assert client.get("/v1/task", auth=("anyone", TOKEN)).status_code == 200
        assert client.get("/v1/task", headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200
        assert client.get("/health").status_code == client.get("/readyz").status_code == 200
        asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        allowed = client.options("/v1/extract", headers=asked)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://app.example")
        other = client.options("/v1/extract", headers={**asked, "Origin": "https://evil.example"})
        assert other.status_code == 400 and "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "gpu-box"])
def test_a_host_that_others_reach_needs_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match="a token is needed; set SPANTUNE_TOKEN"):
        ServeSettings(host=host)
    assert ServeSettings(host=host, token=TOKEN).is_loopback is False


@pytest.mark.parametrize("token", ["", "  ", "schlüssel", "a\nb"])
def test_a_token_that_no_header_carries_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match="the token is empty or has characters"):
        ServeSettings(token=token)


def test_a_mounted_app_knows_its_own_paths(serve_with: Callable[..., Any]) -> None:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    with serve_with(token=TOKEN) as served:
        own = FastAPI()
        own.mount("/ner", served.app)
        client = TestClient(own, base_url="http://localhost")
        assert client.get("/ner/health").status_code == 200
        assert client.get("/ner/v1/task").status_code == 401
        answer = client.post("/ner/v1/extract", json={"text": "痨"}, headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 200
        assert "/v1/extract" in client.get("/ner/metrics", auth=("", TOKEN)).text


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/", "HTTPS://example.org", ""])
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(ConfigError, match="is not what browsers send as an origin"):
        ServeSettings(allow_origins=(origin,))


@pytest.mark.parametrize("host", ["http://example.org", "example.org/", "*.example.org", ""])
def test_a_host_name_that_matches_nothing_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="is no host name"):
        ServeSettings(allow_hosts=(host,))
