"""Run Triton kernels on a CPU with Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


def check_interpreted(test_file: str, call: str) -> None:
    """Evaluate `call` in a process whose Triton kernels are interpreted; skip the test if Triton is not installed.

    Args:
        test_file: the path of the test module.
        call: a Python expression that may use `test`, the test module, and `torch`.
    """
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    path = Path(test_file)
    code = f"import torch, {path.stem} as test; {call}"
    search_path = os.pathsep.join([str(path.parent), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": search_path}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
