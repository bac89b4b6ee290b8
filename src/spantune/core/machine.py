"""Facts about the machine that need no torch, such as its GPU driver and CPU cores, and a setting of the collector."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

GPU_SIGNS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Device files of the GPU drivers of NVIDIA (`nvidiactl`), AMD (`kfd`) and WSL (`dxg`)."""


def shows_gpu() -> bool:
    """Return whether a GPU driver is present. Whether torch can use the GPU is not checked."""
    return shutil.which("nvidia-smi") is not None or any(Path(sign).exists() for sign in GPU_SIGNS)


def keep_for_good() -> None:
    """Exclude all present objects from later garbage collections (`gc.freeze`).

    Call it after a model is loaded that the process uses until it ends. A collection over the objects of a model takes
    a third of a second or more, during which the GPU gets no work.
    """
    gc.collect()
    gc.freeze()


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
