"""Uploading an export to both hubs with their own clients, to a local stand-in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.hub_server import TOKEN, HubServer
from spantune.core import ConfigError, ModelError
from spantune.export.push import parse_place, push, require_login

FILES = {
    "config.json": b"{}",
    "README.md": b"# a card\n",
    "model.safetensors": bytes(range(256)) * 40,
    "a/b.txt": b"in",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """Both hubs in one server, to which this process has a token and no login."""
    server = HubServer()
    for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(name, server.url)
    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.setenv(name, TOKEN)
    for name in ("SPANTUNE_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An exported folder."""
    for name, content in FILES.items():
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "out"


@pytest.mark.parametrize("name", ["hf", "modelscope"])
@pytest.mark.parametrize("public", [False, True])
def test_a_folder_is_uploaded_as_it_is(name: str, public: bool, hub: HubServer, folder: Path) -> None:
    place = parse_place(f"{name}:me/demo")
    require_login(place)
    url = push(folder, place, public=public)
    assert url == f"{hub.url}/{'' if name == 'hf' else 'models/'}me/demo"
    assert hub.files == {("me/demo", path): content for path, content in FILES.items()}
    assert hub.private == {"me/demo": not public}
    assert hub.licenses == ([] if name == "hf" else ["Other"])
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == set(FILES)
    push(folder, place)  # again, into the existing repository
    assert hub.files.keys() == {("me/demo", path) for path in FILES}


@pytest.mark.parametrize("name", ["hf", "modelscope"])
def test_what_a_hub_refuses_is_one_sentence(
    name: str, hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    place = parse_place(f"{name}:me/demo")
    secret = TOKEN[:-4] + "9876"
    for variable in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.setenv(variable, secret)
    with pytest.raises(ModelError, match=r"does not accept the token; (set|run)") as login:
        require_login(place)
    with pytest.raises(ModelError, match=re.escape(f"the export is whole in {folder}: upload it later")) as refused:
        push(folder, place)
    for caught in (login, refused):
        assert secret not in str(caught.value) and "\n" not in str(caught.value)
    assert secret not in "".join(capfd.readouterr())


def test_a_hub_that_does_not_answer_is_named(hub: HubServer) -> None:
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ModelError, match=f"{hub.url} could not be reached .* check the connection"):
        require_login(parse_place("hf:me/demo"))  # ModelScope's client retries for 15 seconds


def test_places_are_checked_before_anything_is_done(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("demo", "hf:demo", "github:me/demo", "hf:me/../demo", "modelscope:", "hf:me/demo/x"):
        with pytest.raises(ConfigError, match="expected modelscope:OWNER/NAME or hf:OWNER/NAME"):
            parse_place(text)
    monkeypatch.setenv("SPANTUNE_OFFLINE", "1")
    with pytest.raises(ConfigError, match="the network is switched off"):
        parse_place("hf:me/demo")
    assert hub.requests == []
