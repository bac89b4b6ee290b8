"""What a call of the command line came to."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a call of the command line came to."""

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
    """The last line of stdout as the one JSON object that scripts read."""
    found: dict[str, Any] = json.loads(outcome.out.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def fresh(*arguments: object, **changes: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, as users have it."""
    return subprocess.run(
        [sys.executable, "-m", "spantune", *map(str, arguments)], capture_output=True, text=True, check=False, **changes
    )
