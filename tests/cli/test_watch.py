"""`spantune watch`: it prints its address, opens a browser only if asked to, and ends with Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
import urllib.request
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.growing_run import begun, record, step


def test_it_serves_until_ctrl_c_and_ends_well(
    tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    record(begun(tmp_path / "run"), step(1))
    seen: list[str] = []

    def browse(url: str) -> None:
        try:
            with urllib.request.urlopen(f"{url}state.json", timeout=10) as answer:
                seen.append(answer.read().decode())
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(webbrowser, "open", lambda url: threading.Thread(target=browse, args=(url,)).start())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore Ctrl-C
    try:
        ended = command("watch", tmp_path / "run", "--open")
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.code == 0 and ended.out == "", ended
    assert f"{tmp_path / 'run'} is shown at http://127.0.0.1:" in ended.err and ended.err.endswith("runs go on\n")
    assert '"name": "run"' in seen[0]


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path, command: Callable[..., Any]) -> None:
    ended = command("watch", tmp_path / "none")
    assert ended.code == 2 and ended.err.startswith(f"error: {tmp_path / 'none'}: no such folder; a run has one when")
