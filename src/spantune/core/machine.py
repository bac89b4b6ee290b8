"""What the machine shows of itself without torch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

GPU_SIGNS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Device files of the drivers of NVIDIA and AMD, and of WSL."""


def shows_gpu() -> bool:
    """Return whether the system shows a GPU's driver; whether torch can use it is not known yet."""
    return shutil.which("nvidia-smi") is not None or any(Path(sign).exists() for sign in GPU_SIGNS)


def usable_cores() -> int:
    """Return how many CPU cores this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
