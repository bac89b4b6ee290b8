"""bench/processes.py runs the parts of a bench in turn, ends them in time, and returns what they have printed."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from helpers import real

PRINTS = "print('hello'); print('{\"a\": 1}'); print('{\"a\": 2, \"b\": 3}', flush=True)"


@pytest.fixture
def processes() -> Iterator[ModuleType]:
    before = signal.getsignal(signal.SIGTERM)
    yield real.bench("processes")
    signal.signal(signal.SIGTERM, before)


def test_parts_give_their_last_figures_or_their_error(processes: ModuleType) -> None:
    commands = {
        "good": [sys.executable, "-S", "-c", PRINTS],
        "bad": [sys.executable, "-S", "-c", "raise SystemExit('it broke')"],
    }
    assert processes.run_parts(commands, 20.0) == {"good": {"a": 2, "b": 3}, "bad": {"error": "it broke\n"}}


def test_a_part_that_takes_too_long_is_ended_with_what_it_has_started(processes: ModuleType) -> None:
    child = f"import subprocess, sys, time; subprocess.Popen(['sleep', '60']); {PRINTS}; time.sleep(60)"
    found = processes.run_parts({"long": [sys.executable, "-S", "-c", child]}, 3.0)
    assert found == {"long": {"a": 2, "b": 3, "stopped": True}}
