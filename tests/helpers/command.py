"""The result of a call of the command line: its exit code and its output."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """The exit code, stdout and stderr of a call of the command line."""

    code: int
    out: str
    err: str


def one_line_error(outcome: Any, *parts: str) -> None:
    assert outcome.code == 2 and outcome.out == "", outcome
    lines = [line for line in outcome.err.splitlines() if not re.fullmatch("loading .* …", line)]
    assert len(lines) == 1 and lines[0].startswith("error: "), outcome.err
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in outcome.err


def last_object(outcome: Any) -> dict[str, Any]:
    """Return the last line of stdout, which must be one JSON object, as scripts read it."""
    found: dict[str, Any] = json.loads(outcome.out.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def fresh(*arguments: object, **changes: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a new interpreter, as users do."""
    return subprocess.run(
        [sys.executable, "-m", "spantune", *map(str, arguments)], capture_output=True, text=True, check=False, **changes
    )
