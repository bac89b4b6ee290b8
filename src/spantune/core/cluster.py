"""Ray: start it on this machine or connect to a cluster, hide its output, and choose the resources of its workers."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from spantune.core.errors import ConfigError, RunError
from spantune.core.extras import need
from spantune.core.files import first_line
from spantune.core.frames import number
from spantune.core.terminal import is_verbose, say

CONNECT_SECONDS = 10.0
"""The maximum time in which an address must accept a connection."""
HEALTH_SECONDS = 20.0
"""The maximum time in which the head of a cluster must pass Ray's health check."""
CORES = 4
"""CPU cores of a worker without a GPU, when Ray runs on this machine alone.

Every worker loads its own copy of the model, so fewer workers with several threads each need less memory.
"""
_ADDRESS = re.compile(r"(?:ray://)?(?P<host>[^\s/:]+|\[[^\]]+\]):(?P<port>\d{1,5})")
_OBJECT_STORE = 256 << 20


@dataclass(frozen=True)
class Cluster:
    """Where Ray runs, and how many workers there are.

    Args:
        address: `HOST:PORT` of a cluster's head, `ray://HOST:PORT` of its client server, or `auto` for the cluster that
            this machine belongs to. None starts Ray on this machine alone.
        workers: the number of processes that hold the model. If None: one for each GPU. Without GPUs: one for each CPU
            core of a cluster, or on this machine alone one for every `CORES` cores.
        gpus_per_worker: the number of GPUs of each worker, which may be a fraction. If None: 1 where there are GPUs.
    """

    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float | None = None


@dataclass(frozen=True)
class Resources:
    """The number of workers, and the CPU cores and GPUs of each one."""

    workers: int
    cpus: int
    gpus: float


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Yield the module `ray`, connected to the cluster `address`, or to Ray started on this machine if it is None.

    If the program has already initialised Ray, that connection is used and stays open. Otherwise Ray is shut down when
    the block ends.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers at the address.
        RunError: Ray cannot be started on this machine.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # otherwise Ray sends usage statistics to its developers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not is_verbose():
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray = need("ray", "ray", "--engine ray")
    if ray.is_initialized():
        _quiet(ray)
        yield ray
        return
    options: dict[str, object] = {"log_to_driver": is_verbose(), "logging_level": logging.ERROR}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    else:
        _require_answer(address)
        options |= {"address": address}
    say("starting Ray on this machine …" if address is None else f"connecting to Ray at {address} …")
    try:
        with nullcontext() if is_verbose() else _silenced():
            ray.init(**options)
    except Exception as error:  # Ray raises many types of errors here
        if address is None:
            remedy = "see /tmp/ray/session_latest/logs"
            raise RunError(f"Ray cannot be started here: {first_line(error)}; {remedy}") from None
        raise _no_answer(address, first_line(error)) from None
    try:
        _quiet(ray)
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def worker_errors(ray: Any, then: str = "") -> Iterator[None]:
    """Turn Ray's errors inside the block into a RunError of one sentence, which ends with the text `then`.

    An error that a task raised (`RayTaskError`) is a bug of spantune and passes unchanged, with its traceback.

    Raises:
        RunError: a worker ended, and Ray has stopped restarting it.
    """
    try:
        yield
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise RunError(
            f"a worker of Ray ended ({type(error).__name__}: {first_line(error)}); if it had too little memory, start "
            f"fewer by --workers{then}"
        ) from None


@contextmanager
def _silenced() -> Iterator[None]:
    """Discard what is written to stderr inside the block, since Ray's C++ code writes messages there.

    No error is lost, because Ray also raises its errors.
    """
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _quiet(ray: Any) -> None:
    """Hide the progress bars and messages of Ray Data, which those of spantune replace."""
    import ray.data as data

    context = data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_options.verbose_progress = False
    if not is_verbose():
        logging.getLogger("ray.data").setLevel(logging.ERROR)


def _require_answer(address: str) -> None:
    if address == "auto":
        return
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ConfigError(
            f"--address {address}: expected HOST:PORT, such as 10.0.0.1:6379, ray://HOST:10001, or auto for the "
            "cluster that this machine belongs to"
        )
    try:
        socket.create_connection((match["host"].strip("[]"), int(match["port"])), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_answer(address, first_line(error)) from None
    if not address.startswith("ray://"):  # Ray's client has a time limit of its own; ray.init would wait for ever
        check = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
        try:
            subprocess.run(check, check=True, capture_output=True, timeout=HEALTH_SECONDS)
        except (subprocess.SubprocessError, OSError):
            raise _no_answer(address, f"what listens there is no Ray head within {HEALTH_SECONDS:g} s") from None


def _no_answer(address: str, problem: str) -> ConfigError:
    return ConfigError(
        f"--address {address}: no Ray cluster answers there ({problem}); check that `ray status` on its head is well, "
        "that this machine reaches it, and that Python and ray have the same versions on both"
    )


def resources_of(ray: Any, cluster: Cluster, device: str) -> Resources:
    """Return the number of workers and the resources of each, from the settings and the resources that Ray reports.

    Args:
        ray: the initialised module `ray`.
        cluster: the settings of the user.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        ConfigError: the cluster has fewer GPUs or CPUs than are asked for. Ray itself would wait for ever.
    """
    there = ray.cluster_resources()
    cpus, gpus = int(there.get("CPU", 0)), float(there.get("GPU", 0))
    each = cluster.gpus_per_worker
    if each is None:
        each = 1.0 if gpus and device != "cpu" else 0.0
    if device == "cuda" and not each:
        raise ConfigError("--device cuda: Ray sees no GPU; give --device cpu, or add machines with GPUs to the cluster")
    alone = cluster.address is None  # in a cluster a worker gets one core, so that it fits on the smallest machine
    workers = cluster.workers or max(1, int(gpus // each) if each else -(-cpus // CORES) if alone else cpus)
    if workers * each > gpus:
        raise ConfigError(
            f"{number(workers, 'worker')} with {each:g} GPUs each need {workers * each:g}, and Ray sees {gpus:g}; "
            "lower --workers or --gpus-per-worker"
        )
    if workers > cpus:
        raise ConfigError(f"{number(workers, 'worker')} need a CPU core each, and Ray sees {cpus}; lower --workers")
    return Resources(workers, max(1, cpus // workers) if alone and not each else 1, each)
