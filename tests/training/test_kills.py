"""The short form of bench/kills.py: two kills at random moments lose nothing."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from helpers.forked import SERVER
from helpers.real import bench

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.no_cover
@pytest.mark.slow
def test_two_random_kills_lose_no_step_and_take_no_torn_checkpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = SERVER.Process(target=os.getpid)  # starts the server that all tests of a process share
    first.start()
    first.join()
    monkeypatch.syspath_prepend(str(BENCH))  # so that the processes can import the bench
    monkeypatch.setattr(sys, "argv", ["kills.py", "--kills", "2"])
    code = bench("kills").main()
    said = capsys.readouterr()
    assert code == 0, said.out + said.err
    found = json.loads(said.out.splitlines()[-1])
    # A kill before the folder exists, or after the end, is followed by one more.
    assert found["resumes"] == 2 and found["kills"] == 2 + found["not_resumed"], found
    failures = ("lost_steps", "torn_checkpoints", "wrong_checkpoints_taken", "runs_that_differ")
    assert not any(found[name] for name in failures), found
