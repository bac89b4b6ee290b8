"""What the machine shows of itself without torch, and what this process asks of Python's own."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

GPU_SIGNS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Device files of the drivers of NVIDIA and AMD, and of WSL."""


def shows_gpu() -> bool:
    """Return whether the system shows a GPU's driver; whether torch can use it is not known yet."""
    return shutil.which("nvidia-smi") is not None or any(Path(sign).exists() for sign in GPU_SIGNS)


def keep_for_good() -> None:
    """Leave what has been made so far out of later garbage collections: for a process that uses its model to the end.

    A collection over the objects of a loaded model takes a third of a second or more, in which a GPU gets no work.
    """
    gc.collect()
    gc.freeze()


def usable_cores() -> int:
    """Return how many CPU cores this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
