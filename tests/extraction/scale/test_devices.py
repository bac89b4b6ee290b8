"""Extraction by several processes without Ray: the results of one process, in order; if a process dies, all end."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from helpers.run_folders import READING, save_run
from spantune.core import ConfigError, Document, RunError, Status, config
from spantune.extraction import DeviceEngine, DeviceSettings, load_run, parse_devices

SETTINGS = config.Extract(max_new_tokens=40, max_characters=50)


@pytest.mark.no_cover
def test_two_processes_extract_what_one_does(tiny_folder: Path, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", tiny_folder, READING)
    documents = [Document(str(number), f"疹{number}肺炎患者咳嗽"[: 1 + number % 9]) for number in range(150)]
    documents[7] = Document("7", "疹" * 51)
    expected = list(load_run(run, "cpu", SETTINGS).stream(documents, strict=False))
    engine = DeviceEngine(DeviceSettings(run, SETTINGS), ("cpu", "cpu"))
    found = list(engine.stream(documents, strict=False))
    assert [e.document.entities for e in found] == [e.document.entities for e in expected]
    assert [e.document.id for e in found] == [d.id for d in documents] and any(e.document.entities for e in found)
    assert [e.status for e in found] == [e.status for e in expected] and found[7].status is Status.REFUSED
    # A killed process ends the work with one error.
    again = engine.stream((Document(str(number), "疹") for number in range(20_000)), strict=False)
    next(again)
    ours = [child for child in multiprocessing.active_children() if child.name.startswith("spantune")]
    os.kill(ours[0].pid or 0, signal.SIGKILL)
    with pytest.raises(RunError, match=r"the process on cpu was killed by SIGKILL.*--resume"):
        for _ in again:
            pass
    assert not [child for child in multiprocessing.active_children() if child.name.startswith("spantune")]


@pytest.mark.parametrize(
    ("devices", "device", "match"),
    [
        ("0,1", "cpu", "expected the number of processes"),
        ("0;1", "auto", "expected all, or numbers of GPUs"),
        ("all", "auto", "sees no GPU"),
    ],
)
def test_devices_that_make_no_sense(devices: str, device: str, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ConfigError, match=match):
        parse_devices(devices, device)


def test_gpus_are_named_by_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert parse_devices("all", "auto") == ("cuda:0", "cuda:1", "cuda:2")
    assert parse_devices("2,0", "cuda") == ("cuda:2", "cuda:0") and parse_devices("2", "cpu") == ("cpu", "cpu")
    for wrong, match in (("3", "there is no GPU 3"), ("1,1", "1 stands twice")):
        with pytest.raises(ConfigError, match=match):
            parse_devices(wrong, "auto")
