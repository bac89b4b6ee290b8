"""The short form of bench/kills.py: three kills at random moments lose nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "kills.py"


@pytest.mark.no_cover
@pytest.mark.slow
def test_two_random_kills_lose_no_step_and_take_no_torn_checkpoint() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH), "--kills", "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # a kill before there is a folder, or after the end, is followed by one more
    assert found["resumes"] == 2 and found["kills"] == 2 + found["not_resumed"], found
    failures = ("lost_steps", "torn_checkpoints", "wrong_checkpoints_taken", "runs_that_differ")
    assert not any(found[name] for name in failures), found
