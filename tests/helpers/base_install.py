"""Run the command line as if the extra `train` were not installed: importing torch and its packages fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import spantune
from spantune.core.extras import TRAIN

SCRIPT = f"""
import contextlib, io, json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {TRAIN!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.partition(".")[0])

sys.meta_path.insert(0, Absent())
from spantune.cli import main

outcomes = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["spantune", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as ended:
            outcomes.append((ended.code, out.getvalue(), err.getvalue()))
print(json.dumps(outcomes))
"""


def run_without_train(calls: Sequence[Sequence[object]], folder: Path) -> list[tuple[int, str, str]]:
    """Run several calls of the command line in one process; return exit code, stdout and stderr of each call."""
    plain = json.dumps([[str(argument) for argument in arguments] for arguments in calls])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, plain],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(spantune.__file__).parents[1]), "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert len(outcomes) == len(calls)
    return [(code, out, err) for code, out, err in outcomes]
